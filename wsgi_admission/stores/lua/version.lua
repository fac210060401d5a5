-- -> the version
watch()
return redis.call('HGET', K.meta, 'version') or '0'
