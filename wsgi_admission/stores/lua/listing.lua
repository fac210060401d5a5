-- what, how many at most, where to begin -> where to go on, tickets
-- 'queued' is of a route, and begins after a member of the line; 'final' at a number; 'processing' is all there is.
local what, limit, from = ARGV[1], ARGV[2], ARGV[3]
local found, members = {from}, {}
if what == 'queued' then
    local route = text(ARGV[4])
    if from == '' then
        from = route
    end
    members = redis.call('ZRANGEBYLEX', K.line, '(' .. from, '(' .. route .. LAST, 'LIMIT', 0, limit)
    found[1] = members[#members] or from
    for place, member in ipairs(members) do
        members[place] = string.sub(member, #route + 25)
    end
elseif what == 'final' then
    members = redis.call('ZREVRANGE', K.finished, from, from + limit - 1)
    found[1] = tostring(from + #members)
    for place, member in ipairs(members) do
        members[place] = string.sub(member, 9)
    end
else
    members = redis.call('ZRANGE', K.leases, 0, -1)
end
for _, id in ipairs(members) do
    found[#found + 1] = redis.call('HGET', K.tickets, id)
end
return found
