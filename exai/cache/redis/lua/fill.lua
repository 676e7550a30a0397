-- FILL: stores a page read from the database only while the lease it was read under is alive. APPLY deletes the lease,
-- so a page cannot overwrite a change that it lacks. The entry carries the generation and the time of the READ that
-- granted the lease, never the current ones.
--
-- KEYS entry, lease
-- ARGV token, ttl in ms, then the fields of the entry as name and value
-- Returns 1 stored | 0 refused

if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1], KEYS[2])
local written = redis.pcall('HSET', KEYS[1], unpack(ARGV, 3))
if type(written) == 'table' and written.err then
  redis.call('DEL', KEYS[1])
  return written
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
