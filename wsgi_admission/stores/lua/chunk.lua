-- seconds after which it goes if no other comes, a piece of a large body -> 1
-- The body goes by itself from its first piece on: its sender may die, or hear no answer, at any moment.
redis.call('RPUSH', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
