-- KEEP_ANSWER: stores an answer of one owner in place of an earlier one of the same name, and removes the owner's expired
-- answers, then the oldest ones until the rest is within the limits. The field 'size' holds the total of all answers; a
-- name is a digest, so that it is never equal to it. The server may evict each key at any time, so one without the other
-- is removed.
--
-- KEYS answers, times
-- ARGV name, answer, oldest age in ms, most answers, most bytes
-- Returns 1

local answers, times = KEYS[1], KEYS[2]
if redis.call('EXISTS', answers) ~= redis.call('EXISTS', times) then
  redis.call('DEL', answers, times)
end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local size = tonumber(redis.call('HGET', answers, 'size') or 0)
size = size - redis.call('HSTRLEN', answers, ARGV[1]) + #ARGV[2]
local written = redis.pcall('HSET', answers, ARGV[1], ARGV[2])
if type(written) == 'table' and written.err then
  redis.call('DEL', answers, times)
  return written
end
-- A number of 16 digits loses two of them where Lua makes a text of it.
redis.call('ZADD', times, string.format('%.0f', now), ARGV[1])

local function remove(name)
  size = size - redis.call('HSTRLEN', answers, name)
  redis.call('HDEL', answers, name)
  redis.call('ZREM', times, name)
end

for _, name in ipairs(redis.call('ZRANGEBYSCORE', times, '-inf', string.format('%.0f', now - tonumber(ARGV[3]) * 1000))) do
  remove(name)
end
while redis.call('ZCARD', times) > tonumber(ARGV[4]) or size > tonumber(ARGV[5]) do
  local oldest = redis.call('ZRANGE', times, 0, 0)[1]
  if not oldest then
    break
  end
  remove(oldest)
end
redis.call('HSET', answers, 'size', size)
redis.call('PEXPIRE', answers, ARGV[3])
redis.call('PEXPIRE', times, ARGV[3])
return 1
