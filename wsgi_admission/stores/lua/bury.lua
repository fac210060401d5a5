-- worker, now, the error of those that may not run again -> how many tickets it ran
redis.call('HDEL', K.workers, ARGV[1])
local buried = 0
for _, id in ipairs(redis.call('ZRANGE', K.leases, 0, -1)) do
    local t = load(id)
    if t[F.worker] == ARGV[1] then
        crash(t, tonumber(ARGV[2]), ARGV[3])
        buried = buried + 1
    end
end
changed()
return buried
