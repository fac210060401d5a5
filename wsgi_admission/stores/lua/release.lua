-- id, attempt, now -> 1, or 0 if the attempt is over
local t = held(ARGV[1], ARGV[2])
if not t then
    return 0
end
give_back(t, tonumber(ARGV[3]), {})
return 1
