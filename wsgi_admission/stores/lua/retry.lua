-- id, the new ticket, now -> 'ok', start, number, or why not
local id, t = ARGV[1], cjson.decode(ARGV[2])
local old = load(id)
if not old then
    return missing(id)
end
if old[F.retryable] ~= '1' then
    return {'not retryable'}
end
if redis.call('HEXISTS', K.tickets, t[F.id]) == 1 then
    return {'taken'}
end
redis.call('HSET', K.requests, t[F.id], redis.call('HGET', K.requests, id))
redis.call('HDEL', K.requests, id)
local body = redis.call('HGET', K.bodies, 'requests' .. id)
if body then
    redis.call('HDEL', K.bodies, 'requests' .. id)
    redis.call('HSET', K.bodies, 'requests' .. t[F.id], body)
end
old[F.retryable] = '0'
save(old)
return add(t, tonumber(ARGV[3]))
