-- the first minute -> JSON: minute, tier, route, arrivals and completions of each
local found = {}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', K.minutes, ARGV[1], '+inf')) do
    local tier, route = tier_and_route(string.sub(member, 9))
    local counts = redis.call('HMGET', K.minute_counts, 'arrivals' .. member, 'completions' .. member)
    local minute = struct.unpack('>d', member)
    found[#found + 1] = {minute, tier, route, counts[1] or '0', counts[2] or '0'}
end
return cjson.encode(found)
