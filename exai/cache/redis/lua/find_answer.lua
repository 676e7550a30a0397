-- FIND_ANSWER: returns an answer of one owner that is not older than the limit. A time in the future is none: the clock
-- was set back, and the true age is unknown.
--
-- KEYS answers, times
-- ARGV name, oldest age in ms
-- Returns the answer | nil

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local kept = tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or '')
if not kept or kept > now or kept + tonumber(ARGV[2]) * 1000 <= now then
  return false
end
return redis.call('HGET', KEYS[1], ARGV[1])
