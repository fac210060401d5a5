-- Put before the scripts that move a ticket: what moves.py says, and the order of the line (policy/ordering.py).

-- Its place among those of its route: by tier, start and number.
local function line_member(t)
    return text(t[F.route]) .. struct.pack('>ddd', t[F.tier_rank], t[F.start], t[F.number]) .. t[F.id]
end

local function client_of(t)
    return text(t[F.tier]) .. text(t[F.client])
end

-- Its place among those of its client, with its finish.
local function own_member(t)
    return client_of(t) .. struct.pack('>ddd', t[F.start], t[F.number], t[F.start] + t[F.cost])
end

-- Its place among those of its route that were never claimed, by when it was created.
local function created_member(t)
    return text(t[F.route]) .. struct.pack('>d', t[F.created_at]) .. t[F.id]
end

-- Its place among the final ones, beside the score: of those that ended together the number decides.
local function finished_member(t)
    return struct.pack('>d', t[F.number]) .. t[F.id]
end

local FINAL = {completed = true, failed = true, cancelled = true}

-- The last finish of a client: of its queued tickets and of those that were ever claimed.
local function last_finish(t)
    local client = client_of(t)
    local charged = tonumber(redis.call('HGET', K.finishes, client) or 0)
    local last = redis.call('ZREVRANGEBYLEX', K.own, '(' .. client .. LAST, '[' .. client, 'LIMIT', 0, 1)[1]
    return last and math.max(charged, (struct.unpack('>d', last, #last - 7))) or charged
end

-- Charge the client for a claimed ticket, and move the tier's virtual time to its rank, if that is later.
local function charge(t)
    local start, finish, client = tonumber(t[F.start]), t[F.start] + t[F.cost], client_of(t)
    if start >= tonumber(redis.call('HGET', K.virtual_times, t[F.tier]) or 0) then
        redis.call('HSET', K.virtual_times, t[F.tier], exact(start))
    end
    local charged = redis.call('HGET', K.finishes, client)
    if not charged or finish > tonumber(charged) then
        local tier = text(t[F.tier])
        if charged then
            redis.call('ZREM', K.finish_order, tier .. struct.pack('>d', charged) .. t[F.client])
        end
        redis.call('HSET', K.finishes, client, exact(finish))
        redis.call('ZADD', K.finish_order, 0, tier .. struct.pack('>d', finish) .. t[F.client])
    end
end

-- A large body is only marked: what its key is called is not known before the script begins.
local function erase(kind, id)
    redis.call('HDEL', K[kind], id)
    local body = redis.call('HGET', K.bodies, kind .. id)
    if body then
        redis.call('HDEL', K.bodies, kind .. id)
        redis.call('SADD', K.trash, body)
    end
end

-- Keep a recording; the key of a large body is the last of the script's, and would run out otherwise.
local function keep(kind, id, recording, body)
    redis.call('HSET', K[kind], id, recording)
    if body ~= '' then
        redis.call('PERSIST', KEYS[#KEYS])
        redis.call('HSET', K.bodies, kind .. id, body)
    end
end

-- Put a ticket where it belongs in its new state, and count that along with the other changes; return it as kept.
local function move(t, state, now, change)
    local before = t[F.state]
    if before == 'queued' then
        redis.call('ZREM', K.line, line_member(t))
        redis.call('ZREM', K.own, own_member(t))
        redis.call('ZREM', K.created, created_member(t))
    elseif before == 'processing' then
        redis.call('ZREM', K.leases, t[F.id])
    end
    if before ~= '' then
        change[before] = -1
    end
    change[state] = 1
    t[F.state] = state
    if state == 'queued' then
        redis.call('ZADD', K.line, 0, line_member(t))
        redis.call('ZADD', K.own, 0, own_member(t))
        if t[F.attempt] == '0' then
            redis.call('ZADD', K.created, 0, created_member(t))
        end
    elseif FINAL[state] then
        t[F.completed_at] = exact(now)
        if t[F.retryable] ~= '1' then
            erase('requests', t[F.id])
        end
        redis.call('ZADD', K.finished, exact(now), finished_member(t))
        count_minute(t, now, state == 'cancelled' and 'cancellations' or 'completions')
        if state == 'failed' then
            count_minute(t, now, 'failures')
        end
    end
    count(t[F.tier], t[F.route], change)
    changed()
    return save(t)
end

-- Rank a new ticket, and put it into the line.
local function add(t, now)
    t[F.number] = tostring(redis.call('HINCRBY', K.meta, 'number', 1))
    t[F.start] = exact(math.max(tonumber(redis.call('HGET', K.virtual_times, t[F.tier]) or 0), last_finish(t)))
    t[F.state] = ''
    count_minute(t, now, 'arrivals')
    move(t, 'queued', now, {accepted = 1})
    return {'ok', t[F.start], t[F.number]}
end

-- Its worker gives it back, or died: to its old place, or cancelled if that was asked for.
local function give_back(t, now, change)
    if t[F.cancelling] == '1' then
        return move(t, 'cancelled', now, change)
    end
    t[F.started_at], t[F.progress], t[F.note] = '', '', ''
    move(t, 'queued', now, change)
end

-- The ticket, if this attempt at it is under way.
local function held(id, attempt)
    local t = load(id)
    return t and t[F.state] == 'processing' and t[F.attempt] == attempt and t
end

local function run_seconds(t, now)
    return math.max(0, now - t[F.started_at])
end

-- Its worker died: back to the line, unless that was once too often.
local function crash(t, now, used_up)
    t[F.crashes] = tostring(t[F.crashes] + 1)
    if tonumber(t[F.crashes]) > tonumber(t[F.crash_retries]) and t[F.cancelling] ~= '1' then
        t[F.error], t[F.retryable] = used_up, '1'
        return move(t, 'failed', now, {crashed = 1})
    end
    give_back(t, now, {crashed = 1})
end
