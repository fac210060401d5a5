-- now, lease, worker, mark, routes -> the ticket, or nil
local now, first, best = tonumber(ARGV[1]), nil, nil
if redis.call('HGET', K.meta, 'paused') == '1' then
    return false
end
local function before(one, other)
    for at = 1, 3 do
        if one[at] ~= other[at] then
            return one[at] < other[at]
        end
    end
end
for argument = 5, #ARGV do
    local route = text(ARGV[argument])
    local head = redis.call('ZRANGEBYLEX', K.line, '[' .. route, '(' .. route .. LAST, 'LIMIT', 0, 1)[1]
    if head then
        local place = {struct.unpack('>ddd', head, #route + 1)}
        if not best or before(place, best) then
            first, best = string.sub(head, #route + 25), place
        end
    end
end
if not first then
    return false
end
local t, change = load(first), {}
if t[F.attempt] == '0' then
    change.started, change.wait_seconds = 1, math.max(0, now - t[F.created_at])
end
t[F.attempt] = tostring(t[F.attempt] + 1)
t[F.started_at] = exact(now)
t[F.worker], t[F.mark] = ARGV[3], ARGV[4]
local kept = move(t, 'processing', now, change)
redis.call('ZADD', K.leases, lease_end(ARGV[2]), first)
charge(t)
return kept
