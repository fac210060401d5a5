-- route, client, key, digest -> 'known' and the ticket, 'reused' and its id, or nil
return recall(ARGV[1], ARGV[2], ARGV[3], ARGV[4])
