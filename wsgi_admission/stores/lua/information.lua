-- -> what the server says of itself: asked so, it is the node of a cluster that has the keys of the line
return redis.call('INFO')
