-- FILL: a page read from the database is stored only while the lease it was read under is alive, so nothing that was
-- told to Redis after the lease was given can be overwritten by a page that lacks it. The entry carries the generation
-- and the time of the READ that gave the lease, never those of now.
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
