-- id, now, reason -> 'ok' and the ticket, 'final' and its state, or what is missing
local id, now = ARGV[1], tonumber(ARGV[2])
local t = load(id)
if not t then
    return missing(id)
end
if FINAL[t[F.state]] then
    return {'final', t[F.state]}
end
if t[F.error] == '' then
    t[F.error] = ARGV[3]
end
if t[F.state] == 'queued' then
    t[F.error] = ARGV[3]
    return {'ok', move(t, 'cancelled', now, {})}
end
write_even_when_full()
t[F.cancelling] = '1'
changed()
return {'ok', save(t)}
