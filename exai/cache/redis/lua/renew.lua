-- Second half of a pass: every change that the database snapshot saw and the last pass may not have seen is enforced
-- here, and only then is the licence renewed, as of the time at which the pass began. Nothing is done if the anchor
-- is not exactly the one that the pass began with: then it was renewed, lost or rolled back meanwhile, and the cursor
-- the rows were read from is not the one that belongs to it. The cursor lives in the anchor, beside the entries, so
-- that a Redis that loses its last seconds loses the matching part of the cursor with them. A missing anchor or
-- another database incarnation begins a new generation, which covers no entry made before.
--
-- KEYS anchor, then entry and lease of each changed conversation
-- ARGV expected generation, xmin, incarnation, as of; new generation, xmin, incarnation, as of; then a revision each
-- Returns {0, 0} lost | {1, entries removed} renewed | {2, entries removed} new generation

local anchor = redis.call('HMGET', KEYS[1], 'gen', 'xmin', 'inc', 'asof')
for i = 1, 4 do
  if (anchor[i] or '') ~= ARGV[i] then
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

if not anchor[1] or anchor[3] ~= ARGV[7] then
  redis.call('HSET', KEYS[1], 'gen', ARGV[5], 'xmin', ARGV[6], 'inc', ARGV[7], 'asof', ARGV[8])
  return {2, removed}
end
redis.call('HSET', KEYS[1], 'xmin', ARGV[6], 'asof', ARGV[8])
return {1, removed}
