-- RELEASE: removes the lease of a reader that will not fill, so that the next reader need not wait for its expiry.
-- A lease with another token and the entry are left unchanged.
--
-- KEYS lease
-- ARGV token

if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return 1
