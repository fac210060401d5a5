-- id, attempt, state, now, error, run times to keep, '1' to keep the request, '1' for a response, it, the name of its large body,
-- mark -> the ticket, or nil if the attempt is over
local id, state, now = ARGV[1], ARGV[3], tonumber(ARGV[4])
local t = held(id, ARGV[2])
if not t then
    local late = load(id)
    if late and late[F.mark] == ARGV[11] then
        return redis.call('HGET', K.tickets, id) -- this very step is said again, as its answer did not come
    end
    if late then
        write_even_when_full()
        count(late[F.tier], late[F.route], {late = 1})
        changed()
    end
    return false
end
t[F.mark] = ARGV[11]
if t[F.cancelling] == '1' then
    return move(t, 'cancelled', now, {})
end
local seconds = run_seconds(t, now)
t[F.error], t[F.retryable] = ARGV[5], ARGV[7]
-- The move comes first, and in it a removal: that is done even when memory is used up, and all that follows it.
local kept = move(t, state, now, {ran = 1, run_seconds = seconds})
if ARGV[8] == '1' then
    keep('responses', id, ARGV[9], ARGV[10])
end
if state == 'completed' then
    add_run_times(t[F.route], {exact(seconds)}, tonumber(ARGV[6]))
end
return kept
