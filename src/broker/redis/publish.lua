-- Adds a message to the stream of its topic and publishes it, as one: what is live and what is kept have one order.
-- KEYS: stream and channel. ARGV: payload, ms to keep, bytes to keep, ms until an unused stream goes, whether to trim now.
local id = redis.call('XADD', KEYS[1], '*', 'm', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
if ARGV[5] == '1' then
  local oldest = tonumber(string.match(id, '^%d+')) - tonumber(ARGV[2])
  redis.call('XTRIM', KEYS[1], 'MINID', '~', string.format('%d', oldest))
  local used = redis.call('MEMORY', 'USAGE', KEYS[1])
  local most = tonumber(ARGV[3])
  if used and used > most then
    local length = redis.call('XLEN', KEYS[1])
    redis.call('XTRIM', KEYS[1], 'MAXLEN', '~', math.max(1, math.floor(length * most / used)))
  end
end
redis.call('PUBLISH', KEYS[1], id .. ' ' .. ARGV[1])
return id
