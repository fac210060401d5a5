-- the schema of this version -> the schema of the line, which is this if the line is new
if redis.call('HEXISTS', K.meta, 'schema') == 0 then
    redis.call('HSET', K.meta, 'schema', ARGV[1])
end
return redis.call('HGET', K.meta, 'schema')
