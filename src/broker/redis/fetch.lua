-- What is kept of a topic, as one look.
-- KEYS: stream. ARGV: 'newest' or 'after', the id that is known, most bytes, most messages, oldest age in ms of a backlog.
-- Returns now; and if there is a stream: whether there is more, its last id, how many it ever had, how many it has, the id
-- of the first (or ''), and ids and payloads by turns: the newest first with 'newest', else the oldest.
local key, after = KEYS[1], ARGV[2]
local bytes_max, messages_max, age = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('EXISTS', key) == 0 then return {now} end

local facts = {}
local info = redis.call('XINFO', 'STREAM', key)
for i = 1, #info, 2 do facts[info[i]] = info[i + 1] end

local function payload(entry)
  local fields = entry[2]
  for i = 1, #fields, 2 do
    if fields[i] == 'm' then return fields[i + 1] end
  end
  return fields[2] or ''
end

local found, bytes, more, done = {}, 0, 0, false
local from = '(' .. after
if ARGV[1] == 'newest' then from = '+' end
while not done do
  local part
  if ARGV[1] == 'newest' then
    part = redis.call('XREVRANGE', key, from, '-', 'COUNT', 4)
  else
    part = redis.call('XRANGE', key, from, '+', 'COUNT', 4)
  end
  if #part == 0 then break end
  for _, entry in ipairs(part) do
    local body = payload(entry)
    local old = ARGV[1] == 'newest' and tonumber(string.match(entry[1], '^%d+')) < now - age
    if #found > 0 and (old or bytes + #body > bytes_max or #found >= 2 * messages_max) then
      more, done = 1, true
      break
    end
    bytes = bytes + #body
    found[#found + 1] = entry[1]
    found[#found + 1] = body
  end
  from = '(' .. part[#part][1]
end

local first = facts['first-entry']
return {now, more, facts['last-generated-id'], facts['entries-added'] or -1, facts['length'], first and first[1] or '', found}
