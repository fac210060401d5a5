-- route, before, now, reason, how many at most -> how many tickets were cancelled
local route = text(ARGV[1])
local last = '(' .. route .. struct.pack('>d', ARGV[2])
local overdue = redis.call('ZRANGEBYLEX', K.created, '[' .. route, last, 'LIMIT', 0, ARGV[5])
for _, member in ipairs(overdue) do
    local t = load(string.sub(member, #route + 9))
    t[F.error] = ARGV[4]
    move(t, 'cancelled', tonumber(ARGV[3]), {})
end
return #overdue
