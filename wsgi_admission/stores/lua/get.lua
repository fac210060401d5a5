-- id -> 'ok' and the ticket, or what is missing
local t = load(ARGV[1])
return t and {'ok', t} or missing(ARGV[1])
