-- the first minute -> JSON: minute, tier, route, arrivals, completions, failures and cancellations
local found = {}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', K.minutes, ARGV[1], '+inf')) do
    local tier, route = tier_and_route(string.sub(member, 9))
    local counts = redis.call('HMGET', K.minute_counts, unpack(minute_fields(member)))
    local minute = struct.unpack('>d', member)
    for n = 1, 4 do
        counts[n] = counts[n] or '0'
    end
    found[#found + 1] = {minute, tier, route, unpack(counts)}
end
return cjson.encode(found)
