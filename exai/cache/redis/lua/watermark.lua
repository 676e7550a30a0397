-- WATERMARK: first step of a reconciliation. Returns the watermark and the server's time, which is taken here so that it
-- is earlier than the database snapshot that the reconciliation reads.
--
-- KEYS watermark
-- Returns {now in us, generation, xmin, server epoch, as of in us}, with '' for what is absent

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local watermark = redis.call('HMGET', KEYS[1], 'gen', 'xmin', 'epoch', 'asof')
return {now, watermark[1] or '', watermark[2] or '', watermark[3] or '', watermark[4] or ''}
