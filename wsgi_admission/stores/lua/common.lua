-- Put before every script; and before this: K, the keys of the line by name; F, the places of the fields of a ticket;
-- SKEW, seconds that a test adds to the server's time.
--
-- A ticket is kept as a JSON list of texts, numbers among them, so that none loses a digit on its way.  Where an order
-- matters all scores are 0 and the members themselves sort: numbers that are not negative sort as their bytes do.

local LAST = '\255'

-- A text inside a member or a field, its length first: no text is then the beginning of another.
local function text(value)
    return struct.pack('>I4', #value) .. value
end

local function exact(number)
    return string.format('%.17g', number)
end

local function clock()
    local time = redis.call('TIME')
    return time[1] + time[2] / 1000000 + SKEW
end

-- The end of a lease in whole tenths of a second: what is claimed together runs out together.
local function lease_end(lease)
    return exact(math.floor((clock() + lease) * 10) / 10)
end

-- A moment before which something is over, as a caller says whose clock may be ahead: then it is that much earlier.
local function over_before(moment, now)
    return math.max(0, moment - math.max(0, now - clock()))
end

local function load(id)
    local json = redis.call('HGET', K.tickets, id)
    return json and cjson.decode(json)
end

-- Keep a ticket, and return it as it is kept.
local function save(t)
    local json = cjson.encode(t)
    redis.call('HSET', K.tickets, t[F.id], json)
    return json
end

local function key_field(route, client, key)
    return text(route) .. text(client) .. key
end

-- What to answer about a ticket that is not there.
local function missing(id)
    local owner = redis.call('HGET', K.gone, id)
    return owner and {'gone', owner} or {'unknown'}
end

-- Say that something changed; told to others only if one of them has read since the last time.
local function changed()
    local version = redis.call('HINCRBY', K.meta, 'version', 1)
    if redis.call('HGET', K.meta, 'watched') == '1' then
        redis.call('HSET', K.meta, 'watched', '0')
        redis.call('PUBLISH', K.meta, version)
    end
end

-- Let the script write even when memory is used up: a server refuses what may need more only as the first that a script
-- writes, and never a removal, which this is, of nothing.
local function write_even_when_full()
    redis.call('ZREM', K.leases, '')
end

-- Whoever reads what may change is told of the next change.
local function watch()
    if redis.call('HGET', K.meta, 'watched') ~= '1' then
        write_even_when_full()
        redis.call('HSET', K.meta, 'watched', '1')
    end
end

-- The tallies: a JSON object of texts for each tier and route.
local function count(tier, route, change)
    local field = text(tier) .. text(route)
    local sums = cjson.decode(redis.call('HGET', K.tallies, field) or '{}')
    for name, number in pairs(change) do
        sums[name] = exact((sums[name] or 0) + number)
    end
    redis.call('HSET', K.tallies, field, cjson.encode(sums))
end

-- The tier and the route in a field of the tallies.
local function tier_and_route(field)
    local length = struct.unpack('>I4', field)
    return string.sub(field, 5, 4 + length), string.sub(field, 9 + length)
end

-- What is counted of a minute.
local function minute_fields(member)
    return {'arrivals' .. member, 'completions' .. member, 'failures' .. member, 'cancellations' .. member}
end

local function count_minute(t, now, name)
    local minute = math.floor(now / 60)
    local member = struct.pack('>d', minute) .. text(t[F.tier]) .. text(t[F.route])
    if redis.call('HINCRBY', K.minute_counts, name .. member, 1) == 1 then
        redis.call('ZADD', K.minutes, minute, member)
    end
end

-- The last run times of a route: a JSON list of texts, oldest first.
local function add_run_times(route, seconds, kept)
    local times = cjson.decode(redis.call('HGET', K.run_times, route) or '[]')
    for _, time in ipairs(seconds) do
        times[#times + 1] = time
    end
    local first = math.max(1, #times - kept + 1)
    redis.call('HSET', K.run_times, route, cjson.encode({unpack(times, first)}))
end
