-- APPLY: afterwards no lease granted before it is alive, and the entry is absent or at least as new as the committed
-- change. The delta is added only to an entry at the change's base revision. Any other entry that is older, of another
-- server epoch, or of another conversation under the same name is removed, and so is an entry that exceeds the
-- byte limit, because an entry holds the complete newest page. A writer that took the lease before its statement, and
-- still holds it, may store the page that the statement returned.
--
-- Added messages are kept in the tail, beside the page, until the tail is long enough to rewrite the page. The cost of
-- an addition, here and in the append-only file, is then that of the delta and not of the whole page.
--
-- One call may contain several changes, also of one conversation; they are applied in order.
--
-- KEYS entry and lease, for each change
-- ARGV for each change the number of its arguments, then these:
--      1 base revision, 2 revision, 3 server epoch, 4 conversation id, 5 ttl in ms, 6 most messages, 7 most bytes,
--      8 messages in the delta or -1 for none, 9 header, 10 delta, 11 token or '',
--      12... fields of the whole entry as name and value, with a token only
-- Returns for each change 1 appended | 2 stored whole | 3 current already | 4 absent | 5 removed, or an error

local TAIL_BYTES = 8192

local function apply(KEYS, ARGV)
  local entry_key, lease_key = KEYS[1], KEYS[2]
  local revision, added = tonumber(ARGV[2]), tonumber(ARGV[8])

  local function write(fields)
    local written = redis.pcall('HSET', entry_key, unpack(fields))
    if type(written) == 'table' and written.err then
      redis.call('DEL', entry_key)
      return written
    end
    redis.call('PEXPIRE', entry_key, ARGV[5])
    return nil
  end

  local held = ARGV[11] ~= '' and redis.call('GET', lease_key) == ARGV[11]
  redis.call('DEL', lease_key)
  if held then
    redis.call('DEL', entry_key)
    return write({unpack(ARGV, 12)}) or 2
  end

  local entry = redis.call('HMGET', entry_key, 'rev', 'epoch', 'id', 'older', 'count', 'tail')
  if not entry[1] then
    return 4
  end
  if entry[2] ~= ARGV[3] or entry[3] ~= ARGV[4] then
    redis.call('DEL', entry_key)
    return 5
  end
  if tonumber(entry[1]) >= revision then
    return 3
  end
  if tonumber(entry[1]) ~= tonumber(ARGV[1]) or added < 0 then
    redis.call('DEL', entry_key)
    return 5
  end

  local older, count, tail = entry[4], tonumber(entry[5]) + added, entry[6]
  if added > 0 then
    tail = tail == '' and ARGV[10] or tail .. ',\n' .. ARGV[10]
  end
  local start, room = 1, tonumber(ARGV[7]) - #ARGV[9]
  if #tail <= TAIL_BYTES and redis.call('HSTRLEN', entry_key, 'page') + 2 + #tail <= room then
    return write({'rev', ARGV[2], 'count', count, 'header', ARGV[9], 'tail', tail}) or 1
  end

  local page = redis.call('HGET', entry_key, 'page')
  if tail ~= '' then
    page = page == '' and tail or page .. ',\n' .. tail
  end
  while count > tonumber(ARGV[6]) do
    local cut = string.find(page, ',\n', start, true)
    if not cut then
      redis.call('DEL', entry_key)
      return 5
    end
    start, count, older = cut + 2, count - 1, '1'
  end
  if #page - start + 1 > room then
    redis.call('DEL', entry_key)
    return 5
  end
  return write({'rev', ARGV[2], 'older', older, 'count', count, 'header', ARGV[9],
    'page', string.sub(page, start), 'tail', ''}) or 1
end

local replies, before = {}, 0
for i = 1, #KEYS, 2 do
  local first = before + 2
  before = before + 1 + tonumber(ARGV[before + 1])
  replies[#replies + 1] = apply({KEYS[i], KEYS[i + 1]}, {unpack(ARGV, first, before)})
end
return replies
