-- now, the error of those that may not run again -> how many leases had run out
local now = tonumber(ARGV[1])
local expired = redis.call('ZRANGEBYSCORE', K.leases, '-inf', exact(clock()))
for _, id in ipairs(expired) do
    crash(load(id), now, ARGV[2])
end
return #expired
