-- run times to keep; the number of tallies; tier, route, passed and shadowed of each; then, for each route, its name,
-- the number of its run times, and they
local tallies = tonumber(ARGV[2])
for argument = 3, 2 + 4 * tallies, 4 do
    local change = {passed = tonumber(ARGV[argument + 2]), shadowed = tonumber(ARGV[argument + 3])}
    count(ARGV[argument], ARGV[argument + 1], change)
end
local argument = 3 + 4 * tallies
while argument <= #ARGV do
    local last = argument + 1 + ARGV[argument + 1]
    add_run_times(ARGV[argument], {unpack(ARGV, argument + 2, last)}, tonumber(ARGV[1]))
    argument = last + 1
end
changed()
return 1
