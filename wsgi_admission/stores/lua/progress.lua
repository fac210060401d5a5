-- id, attempt, fraction, note -> 1, or 0 if the attempt is over
local t = held(ARGV[1], ARGV[2])
if not t then
    return 0
end
write_even_when_full()
t[F.progress], t[F.note] = ARGV[3], ARGV[4]
save(t)
changed()
return 1
