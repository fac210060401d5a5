-- now, reason, then ids that were put and marks of claims of which no answer came -> those that were done after all
-- Nobody was told of either: such a ticket is cancelled, and such a claim is given back without a crash.
write_even_when_full()
local now, marks, settled = tonumber(ARGV[1]), {}, {}
for argument = 3, #ARGV do
    marks[ARGV[argument]] = true
    local t = load(ARGV[argument])
    if t then
        settled[#settled + 1] = ARGV[argument]
        t[F.error] = ARGV[2]
        if t[F.state] == 'queued' then
            move(t, 'cancelled', now, {})
        elseif t[F.state] == 'processing' then
            t[F.cancelling] = '1'
            save(t)
            changed()
        end
    end
end
for _, id in ipairs(redis.call('ZRANGE', K.leases, 0, -1)) do
    local t = load(id)
    if marks[t[F.mark]] then
        settled[#settled + 1] = t[F.mark]
        give_back(t, now, {})
    end
end
return settled
