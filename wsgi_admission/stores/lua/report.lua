-- id, the worker's report or nothing
if ARGV[2] == '' then
    redis.call('HDEL', K.workers, ARGV[1])
else
    write_even_when_full()
    redis.call('HSET', K.workers, ARGV[1], ARGV[2])
end
changed()
return 1
