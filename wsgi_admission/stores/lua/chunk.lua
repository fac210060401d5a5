-- seconds after which it goes, a piece of a large body -> 1
-- The body goes by itself from its first piece on: its sender may die, or hear no answer, at any moment.
if redis.call('RPUSH', KEYS[1], ARGV[2]) == 1 then
    redis.call('EXPIRE', KEYS[1], ARGV[1])
end
return 1
