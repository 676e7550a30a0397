-- PEEK: returns the entry, covered or not, with the time since its fill or its watermark; changes nothing. Used only for
-- answers marked as stale while the database is unreachable.
--
-- KEYS entry, watermark
-- Returns {revision, age in us, has older, header, page, tail} | nil, also where the clock was set back and no age is known

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local watermark = redis.call('HMGET', KEYS[2], 'gen', 'asof')
local entry = redis.call('HMGET', KEYS[1], 'rev', 'gen', 'asof', 'older', 'header', 'page', 'tail')
if not entry[1] then
  return nil
end
local covered = tonumber(entry[3])
local advanced = watermark[1] and watermark[1] == entry[2] and tonumber(watermark[2]) or covered
if covered > now or (advanced > covered and advanced <= now) then
  covered = advanced
end
if covered > now then
  return nil
end
return {tonumber(entry[1]), now - covered, entry[4], entry[5], entry[6], entry[7]}
