-- '1' or '0'
redis.call('HSET', K.meta, 'paused', ARGV[1])
changed()
return 1
