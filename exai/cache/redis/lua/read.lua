-- READ: returns an entry only while it is covered by its own age or by the watermark of its generation. Without one it
-- grants the single lease, with the generation and the time that a fill under it must carry. Lease, generation and time
-- are taken before the database is read, so a fill is never dated later than its snapshot. A time in the future covers
-- nothing: the clock was set back, and the true age is unknown.
--
-- KEYS entry, lease, watermark
-- ARGV token, lease in ms, bound in us, least revision wanted
-- Returns {1, revision, age in us, has older, header, page, tail} | {2, generation, now in us} | {3, token of the holder}

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local bound = tonumber(ARGV[3])
local watermark = redis.call('HMGET', KEYS[3], 'gen', 'asof')
local entry = redis.call('HMGET', KEYS[1], 'rev', 'gen', 'asof', 'older', 'header', 'page', 'tail')

if entry[1] and tonumber(entry[1]) >= tonumber(ARGV[4]) then
  local covered = tonumber(entry[3])
  local advanced = watermark[1] and watermark[1] == entry[2] and tonumber(watermark[2]) or covered
  if covered > now or (advanced > covered and advanced <= now) then
    covered = advanced
  end
  if covered <= now and covered + bound > now then
    return {1, tonumber(entry[1]), now - covered, entry[4], entry[5], entry[6], entry[7]}
  end
end

if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then
  return {2, watermark[1] or '', now}
end
return {3, redis.call('GET', KEYS[2])}
