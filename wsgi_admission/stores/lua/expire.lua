-- route, before, now, reason, how many at most -> how many tickets were cancelled
local route, now = text(ARGV[1]), tonumber(ARGV[3])
local last = '(' .. route .. struct.pack('>d', over_before(ARGV[2], now))
local overdue = redis.call('ZRANGEBYLEX', K.created, '[' .. route, last, 'LIMIT', 0, ARGV[5])
for _, member in ipairs(overdue) do
    local t = load(string.sub(member, #route + 9))
    t[F.error] = ARGV[4]
    move(t, 'cancelled', now, {})
end
return #overdue
