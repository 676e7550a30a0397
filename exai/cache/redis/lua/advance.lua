-- ADVANCE: second step of a reconciliation. Enforces every change that the database snapshot contains and that the last
-- reconciliation may have missed, and only then advances the watermark, to the time at which the reconciliation began.
-- Nothing is changed if the watermark differs from the one read in the first step: it was then advanced, lost or rolled
-- back meanwhile, and the rows were read from a cursor that does not belong to it. The cursor (xmin) is stored in the
-- watermark, beside the entries, so that a Redis that loses its last seconds loses the matching part of the cursor with
-- them. A missing watermark or another server epoch begins a new generation, which covers no entry stored before.
--
-- KEYS watermark, then entry and lease of each changed conversation
-- ARGV expected generation, xmin, server epoch, as of; new generation, xmin, server epoch, as of; then a revision each
-- Returns {0, 0} lost | {1, entries removed} advanced | {2, entries removed} new generation

local watermark = redis.call('HMGET', KEYS[1], 'gen', 'xmin', 'epoch', 'asof')
for i = 1, 4 do
  if (watermark[i] or '') ~= ARGV[i] then
    return {0, 0}
  end
end

local removed = 0
for i = 2, #KEYS, 2 do
  redis.call('DEL', KEYS[i + 1])
  local revision = redis.call('HGET', KEYS[i], 'rev')
  if revision and tonumber(revision) < tonumber(ARGV[8 + i / 2]) then
    redis.call('DEL', KEYS[i])
    removed = removed + 1
  end
end

if not watermark[1] or watermark[3] ~= ARGV[7] then
  redis.call('HSET', KEYS[1], 'gen', ARGV[5], 'xmin', ARGV[6], 'epoch', ARGV[7], 'asof', ARGV[8])
  return {2, removed}
end
redis.call('HSET', KEYS[1], 'xmin', ARGV[6], 'asof', ARGV[8])
return {1, removed}
