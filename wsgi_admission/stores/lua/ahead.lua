-- id -> 'ok' and route, number, route, number ..., or what is missing
local t = load(ARGV[1])
if not t then
    return missing(ARGV[1])
end
local found, seen = {'ok'}, {}
if t[F.state] ~= 'queued' then
    return found
end
local mine = string.sub(line_member(t), #text(t[F.route]) + 1)
for _, field in ipairs(redis.call('HKEYS', K.tallies)) do
    local _, route = tier_and_route(field)
    if not seen[route] then
        seen[route] = true
        local number = redis.call('ZLEXCOUNT', K.line, '[' .. text(route), '(' .. text(route) .. mine)
        if number > 0 then
            found[#found + 1] = route
            found[#found + 1] = number
        end
    end
end
return found
