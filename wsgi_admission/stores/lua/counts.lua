-- -> JSON: whether it is paused; tier, route, tally, and so on
watch()
local found = {redis.call('HGET', K.meta, 'paused') or '0'}
local tallies = redis.call('HGETALL', K.tallies)
for field = 1, #tallies, 2 do
    local tier, route = tier_and_route(tallies[field])
    found[#found + 1], found[#found + 2], found[#found + 3] = tier, route, tallies[field + 1]
end
return cjson.encode(found)
