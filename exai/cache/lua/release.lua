-- RELEASE: a lease whose holder will not fill is given back, so that the next reader need not wait for it to run out;
-- a lease of somebody else is left alone, and so is the entry.
--
-- KEYS lease
-- ARGV token

if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return 1
