-- First half of a pass: the licence as it stands and the time, which is taken here so that it lies before the database
-- snapshot that the pass will look at.
--
-- KEYS anchor
-- Returns {now in us, generation, xmin, incarnation, as of in us}, with '' for what is absent

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local anchor = redis.call('HMGET', KEYS[1], 'gen', 'xmin', 'inc', 'asof')
return {now, anchor[1] or '', anchor[2] or '', anchor[3] or '', anchor[4] or ''}
