-- id -> 'ok' and the ticket, or what is missing
local kept = redis.call('HGET', K.tickets, ARGV[1])
return kept and {'ok', kept} or missing(ARGV[1])
