-- now, request, the name of its large body, the ticket -> 'ok', start, number
local now, t = tonumber(ARGV[1]), cjson.decode(ARGV[4])
local id = t[F.id]
if redis.call('HEXISTS', K.tickets, id) == 1 then
    return {'taken'}
end
if ARGV[3] ~= '' and redis.call('EXISTS', KEYS[#KEYS]) == 0 then
    return {'no body'}
end
keep('requests', id, ARGV[2], ARGV[3])
t[F.number] = tostring(redis.call('HINCRBY', K.meta, 'number', 1))
t[F.start] = exact(math.max(tonumber(redis.call('HGET', K.virtual_times, t[F.tier]) or 0), last_finish(t)))
t[F.state] = ''
count_minute(t, now, 'arrivals')
move(t, 'queued', now, {accepted = 1})
return {'ok', t[F.start], t[F.number]}
