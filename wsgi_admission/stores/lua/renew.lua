-- lease, then id and attempt of each -> the numbers of those that are held, from 1
-- First: where nothing can be written, whoever runs nothing must fail as well, and not take the others' leases for lost.
write_even_when_full()
local until_, kept = lease_end(ARGV[1]), {}
for argument = 2, #ARGV, 2 do
    if held(ARGV[argument], ARGV[argument + 1]) then
        redis.call('ZADD', K.leases, until_, ARGV[argument])
        kept[#kept + 1] = argument / 2
    end
end
if kept[1] then
    changed()
end
return kept
