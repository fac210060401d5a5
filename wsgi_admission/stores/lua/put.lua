-- now, request, the name of its large body, the ticket -> 'ok', start, number
-- or, if its key is known: 'known' and its ticket, or 'reused' and the id of that
local now, t = tonumber(ARGV[1]), cjson.decode(ARGV[4])
local id = t[F.id]
if t[F.key] ~= '' then
    local known = redis.call('HGET', K.keys, key_field(t[F.route], t[F.client], t[F.key]))
    if known then
        return load(known)[F.digest] == t[F.digest] and {'known', redis.call('HGET', K.tickets, known)} or {'reused', known}
    end
end
if redis.call('HEXISTS', K.tickets, id) == 1 then
    return {'taken'}
end
if ARGV[3] ~= '' and redis.call('EXISTS', KEYS[#KEYS]) == 0 then
    return {'no body'}
end
keep('requests', id, ARGV[2], ARGV[3])
if t[F.key] ~= '' then
    redis.call('HSET', K.keys, key_field(t[F.route], t[F.client], t[F.key]), id)
end
return add(t, now)
