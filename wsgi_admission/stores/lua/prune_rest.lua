-- gone before, minutes before, workers seen before, how many at most, gone to remember -> whether there may be more
local limit, more = tonumber(ARGV[4]), 0

local function removed(members)
    if #members == limit then
        more = 1
    end
    return ipairs(members)
end

local function forget(ids)
    for _, id in removed(ids) do
        redis.call('HDEL', K.gone, id)
        redis.call('ZREM', K.gone_at, id)
    end
end

forget(redis.call('ZRANGEBYSCORE', K.gone_at, '-inf', '(' .. ARGV[1], 'LIMIT', 0, limit))
local above = math.min(limit, redis.call('ZCARD', K.gone_at) - tonumber(ARGV[5]))
if above > 0 then
    forget(redis.call('ZRANGE', K.gone_at, 0, above - 1))
end
for _, member in removed(redis.call('ZRANGEBYSCORE', K.minutes, '-inf', '(' .. ARGV[2], 'LIMIT', 0, limit)) do
    redis.call('HDEL', K.minute_counts, unpack(minute_fields(member)))
    redis.call('ZREM', K.minutes, member)
end
local workers = redis.call('HGETALL', K.workers)
for field = 1, #workers, 2 do
    if cjson.decode(workers[field + 1]).seen < tonumber(ARGV[3]) then
        redis.call('HDEL', K.workers, workers[field])
    end
end

-- The finishes that the virtual time has passed, and all of a tier in which nobody waits or runs: a busy period has
-- ended there.
local busy = {}
local tallies = redis.call('HGETALL', K.tallies)
for field = 1, #tallies, 2 do
    local sums = cjson.decode(tallies[field + 1])
    if tonumber(sums.queued or 0) + tonumber(sums.processing or 0) > 0 then
        busy[tier_and_route(tallies[field])] = true
    end
end
local virtual_times = redis.call('HGETALL', K.virtual_times)
for field = 1, #virtual_times, 2 do
    local name, tier = virtual_times[field], text(virtual_times[field])
    local passed = busy[name] and struct.pack('>d', virtual_times[field + 1]) or ''
    local members = redis.call('ZRANGEBYLEX', K.finish_order, '[' .. tier, '(' .. tier .. passed .. LAST, 'LIMIT', 0, limit)
    for _, member in removed(members) do
        redis.call('HDEL', K.finishes, tier .. text(string.sub(member, #tier + 9)))
        redis.call('ZREM', K.finish_order, member)
    end
end
return more
