-- '1' or '0'
write_even_when_full()
redis.call('HSET', K.meta, 'paused', ARGV[1])
changed()
return 1
