-- 'requests' or 'responses', id -> 'ok', the recording and the name of its large body, 'none', or what is missing
local kind, id = ARGV[1], ARGV[2]
local recording = redis.call('HGET', K[kind], id)
if recording then
    return {'ok', recording, redis.call('HGET', K.bodies, kind .. id) or ''}
end
return redis.call('HEXISTS', K.tickets, id) == 1 and {'none'} or missing(id)
