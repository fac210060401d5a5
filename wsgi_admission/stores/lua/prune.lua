-- before, now, how many at most -> how many tickets were removed
write_even_when_full()
local old = redis.call('ZRANGEBYSCORE', K.finished, '-inf', '(' .. exact(over_before(ARGV[1], ARGV[2])), 'LIMIT', 0, ARGV[3])
for _, member in ipairs(old) do
    local id = string.sub(member, 9)
    local t = load(id)
    redis.call('HSET', K.gone, id, t[F.owner])
    redis.call('ZADD', K.gone_at, ARGV[2], id)
    erase('requests', id)
    erase('responses', id)
    if t[F.key] ~= '' then
        redis.call('HDEL', K.keys, key_field(t[F.route], t[F.client], t[F.key]))
    end
    redis.call('HDEL', K.tickets, id)
    redis.call('ZREM', K.finished, member)
end
if old[1] then
    changed()
end
return #old
