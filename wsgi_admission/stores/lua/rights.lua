-- -> the first command that the user may not use, or ''
-- Each is tried where it changes nothing: what is there already, nothing at all, or (here 'meta' is a hash) an error.
local NONE = KEYS[#KEYS]
local TRIED = {
    {'PING'},
    {'TIME'},
    {'PUBLISH', K.meta, ''},
    {'EXISTS', NONE},
    {'EXPIRE', NONE, 1},
    {'PERSIST', NONE},
    {'UNLINK', NONE},
    {'LINDEX', NONE, 0},
    {'RPUSH', K.meta, ''},
    {'HDEL', K.meta, ''},
    {'HSET', K.meta, 'watched', '1'},
    {'HGET', K.meta, ''},
    {'HMGET', K.meta, ''},
    {'HEXISTS', K.meta, ''},
    {'HINCRBY', K.meta, 'version', 0},
    {'HGETALL', NONE},
    {'HKEYS', NONE},
    {'HVALS', NONE},
    {'SADD', K.meta, ''},
    {'SMEMBERS', NONE},
    {'SREM', NONE, ''},
    {'ZADD', K.meta, 0, ''},
    {'ZREM', NONE, ''},
    {'ZCARD', NONE},
    {'ZRANGE', NONE, 0, 0},
    {'ZREVRANGE', NONE, 0, 0},
    {'ZRANGEBYSCORE', NONE, 0, 0},
    {'ZRANGEBYLEX', NONE, '-', '+'},
    {'ZREVRANGEBYLEX', NONE, '+', '-'},
    {'ZLEXCOUNT', NONE, '-', '+'},
}
for _, command in ipairs(TRIED) do
    local answer = redis.pcall(unpack(command))
    if type(answer) == 'table' and answer.err then
        for _, words in ipairs(ARGV) do
            if string.find(answer.err, words, 1, true) then
                return command[1]
            end
        end
    end
end
return ''
