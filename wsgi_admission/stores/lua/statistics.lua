-- the first minute of which completions count
-- -> JSON: route, start and number of what runs; routes and run times; workers; completions
watch()
local running, completions = {}, 0
for _, id in ipairs(redis.call('ZRANGE', K.leases, 0, -1)) do
    local t = load(id)
    running[#running + 1] = {t[F.route], t[F.started_at], t[F.number]}
end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', K.minutes, ARGV[1], '+inf')) do
    completions = completions + (redis.call('HGET', K.minute_counts, 'completions' .. member) or 0)
end
return cjson.encode({running, redis.call('HGETALL', K.run_times), redis.call('HVALS', K.workers), completions})
