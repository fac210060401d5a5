-- The statements of the SQLite store, by name.  {ticket} stands for the fields of Ticket, separated by commas.

-- name: rank
SELECT
    COALESCE((SELECT time FROM virtual_times WHERE line = :line AND tier = :tier), 0.0),
    MAX(
        COALESCE((SELECT finish FROM client_finishes WHERE line = :line AND tier = :tier AND client = :client), 0.0),
        COALESCE((
            SELECT start + cost FROM tickets
            WHERE line = :line AND tier = :tier AND client = :client AND state = 'queued'
            ORDER BY start DESC, number DESC LIMIT 1
        ), 0.0)
    );

-- name: charge
INSERT INTO client_finishes (line, tier, client, finish) VALUES (:line, :tier, :client, :start + :cost)
ON CONFLICT (line, tier, client) DO UPDATE SET finish = excluded.finish WHERE excluded.finish > finish;

-- name: move_virtual_time
INSERT INTO virtual_times (line, tier, time) VALUES (:line, :tier, :start)
ON CONFLICT (line, tier) DO UPDATE SET time = excluded.time WHERE excluded.time > time;

-- name: put_ticket
INSERT INTO tickets (
    id, route, tier, tier_rank, client, owner, cost, crash_retries, created_at, state, start, started_at, completed_at,
    attempt, crashes, cancelling, progress, note, error, retryable, line
) VALUES (
    :id, :route, :tier, :tier_rank, :client, :owner, :cost, :crash_retries, :created_at, :state, :start, :started_at,
    :completed_at, :attempt, :crashes, :cancelling, :progress, :note, :error, :retryable, :line
);

-- name: keep_key
UPDATE tickets SET key = :key, digest = :digest WHERE number = :number;

-- name: recall
SELECT digest, {ticket} FROM tickets WHERE line = :line AND route = :route AND client = :client AND key = :key;

-- name: get
SELECT {ticket} FROM tickets WHERE line = :line AND id = :id;

-- name: list_queued
SELECT {ticket} FROM tickets WHERE line = :line AND state = 'queued' AND :client IN ('', client)
ORDER BY tier_rank, start, number LIMIT :limit;

-- name: list_processing
SELECT {ticket} FROM tickets WHERE line = :line AND state = 'processing' AND :client IN ('', client)
ORDER BY started_at, number LIMIT :limit;

-- name: list_final
SELECT {ticket} FROM tickets
WHERE line = :line AND completed_at IS NOT NULL AND state = :state AND :client IN ('', client)
ORDER BY completed_at DESC, number DESC LIMIT :limit;

-- name: gone_owner
SELECT owner FROM gone WHERE line = :line AND id = :id;

-- name: first
SELECT {ticket} FROM tickets WHERE number = (
    SELECT head.number
    FROM json_each(:routes) AS wanted
    JOIN tickets AS head ON head.number = (
        SELECT number FROM tickets
        WHERE line = :line AND route = wanted.value AND state = 'queued'
        ORDER BY tier_rank, start, number LIMIT 1
    )
    ORDER BY head.tier_rank, head.start, head.number LIMIT 1
) AND NOT EXISTS (SELECT 1 FROM paused WHERE line = :line);

-- name: pause
INSERT OR IGNORE INTO paused (line) VALUES (:line);

-- name: resume
DELETE FROM paused WHERE line = :line;

-- name: paused
SELECT 1 FROM paused WHERE line = :line;

-- name: save
UPDATE tickets SET
    state = :state, started_at = :started_at, completed_at = :completed_at, attempt = :attempt, crashes = :crashes,
    cancelling = :cancelling, progress = :progress, note = :note, error = :error, retryable = :retryable,
    worker = COALESCE(:worker, worker), lease_until = COALESCE(:until, lease_until),
    lease_boot = COALESCE(:boot, lease_boot)
WHERE number = :number;

-- name: renew
UPDATE tickets SET lease_until = :until, lease_boot = :boot
WHERE line = :line AND id = :id AND attempt = :attempt AND state = 'processing';

-- name: progress
UPDATE tickets SET progress = :fraction, note = :note
WHERE line = :line AND id = :id AND attempt = :attempt AND state = 'processing';

-- name: expired
-- An empty boot is that of a system that does not tell: it is no other one.
SELECT {ticket} FROM tickets
WHERE line = :line AND state = 'processing' AND (
    lease_until <= :clock OR (lease_boot <> :boot AND lease_boot <> '' AND :boot <> '')
) ORDER BY number;

-- name: leased
SELECT {ticket} FROM tickets WHERE line = :line AND state = 'processing' AND worker = :id ORDER BY number;

-- name: is_overdue
SELECT 1 FROM tickets
WHERE line = :line AND route = :route AND state = 'queued' AND created_at < :before AND attempt = 0 LIMIT 1;

-- name: overdue
SELECT {ticket} FROM tickets
WHERE line = :line AND route = :route AND state = 'queued' AND created_at < :before AND attempt = 0 LIMIT :batch;

-- name: ahead
-- The better tiers are known as sums; only the ticket's own tier is counted.
WITH mine AS (
    SELECT tier_rank, start, number FROM tickets WHERE line = :line AND id = :id AND state = 'queued'
)
SELECT tallies.route, SUM(tallies.queued)
FROM mine JOIN tallies ON tallies.line = :line AND minute = :total AND tallies.tier_rank < mine.tier_rank
GROUP BY tallies.route
UNION ALL
SELECT own.route, (
    SELECT COUNT(*) FROM tickets
    WHERE line = :line AND route = own.route AND state = 'queued' AND tier_rank = mine.tier_rank
        AND (start, number) < (mine.start, mine.number)
)
FROM mine
JOIN (SELECT DISTINCT tier_rank, route FROM tallies WHERE line = :line AND minute = :total) AS own ON own.tier_rank = mine.tier_rank;

-- name: put_request
INSERT INTO requests (number, head, body, file, length, crc) VALUES (?, ?, ?, ?, ?, ?);

-- name: move_request
UPDATE requests SET number = :to WHERE number = :from;

-- name: put_response
INSERT INTO responses (number, head, body, file, length, crc) VALUES (?, ?, ?, ?, ?, ?);

-- name: request
SELECT head, body, file, length, crc FROM requests
WHERE number = (SELECT number FROM tickets WHERE line = :line AND id = :id);

-- name: response
SELECT head, body, file, length, crc FROM responses
WHERE number = (SELECT number FROM tickets WHERE line = :line AND id = :id);

-- name: request_file
SELECT file FROM requests WHERE number = ? AND file IS NOT NULL;

-- name: response_file
SELECT file FROM responses WHERE number = ? AND file IS NOT NULL;

-- name: erase_request
DELETE FROM requests WHERE number = ?;

-- name: erase_response
DELETE FROM responses WHERE number = ?;

-- name: files
SELECT file FROM requests WHERE file IS NOT NULL UNION ALL SELECT file FROM responses WHERE file IS NOT NULL;

-- name: count
INSERT INTO tallies VALUES (
    :line, :total, :tier_rank, :tier, :route, :queued, :processing, :accepted, :started, :completed, :failed,
    :cancelled, :crashed, :ran, :wait_seconds, :run_seconds, :passed, :shadowed, :late
), (
    :line, :minute, :tier_rank, :tier, :route, :queued, :processing, :accepted, :started, :completed, :failed,
    :cancelled, :crashed, :ran, :wait_seconds, :run_seconds, :passed, :shadowed, :late
)
ON CONFLICT (line, minute, tier_rank, tier, route) DO UPDATE SET
    queued = queued + excluded.queued,
    processing = processing + excluded.processing,
    accepted = accepted + excluded.accepted,
    started = started + excluded.started,
    completed = completed + excluded.completed,
    failed = failed + excluded.failed,
    cancelled = cancelled + excluded.cancelled,
    crashed = crashed + excluded.crashed,
    ran = ran + excluded.ran,
    wait_seconds = wait_seconds + excluded.wait_seconds,
    run_seconds = run_seconds + excluded.run_seconds,
    passed = passed + excluded.passed,
    shadowed = shadowed + excluded.shadowed,
    late = late + excluded.late;

-- name: tallies
SELECT
    tier, route, SUM(queued), SUM(processing), SUM(accepted), SUM(started), SUM(completed), SUM(failed), SUM(cancelled),
    SUM(crashed), SUM(ran), SUM(wait_seconds), SUM(run_seconds), SUM(passed), SUM(shadowed), SUM(late)
FROM tallies WHERE line = :line AND minute = :total GROUP BY tier, route;

-- name: minutes
SELECT minute, tier, route, SUM(accepted) AS arrivals, SUM(completed + failed) AS completions,
    SUM(failed) AS failures, SUM(cancelled) AS cancellations FROM tallies
WHERE line = :line AND minute >= :minute AND minute < :total
GROUP BY minute, tier, route HAVING arrivals > 0 OR completions > 0 OR cancellations > 0;

-- name: add_run_time
INSERT INTO run_times (line, route, turn, seconds) VALUES (
    :line, :route, (SELECT COALESCE(MAX(turn), 0) + 1 FROM run_times WHERE line = :line AND route = :route), :seconds
);

-- name: trim_run_times
DELETE FROM run_times WHERE line = :line AND route = :route
    AND turn <= (SELECT MAX(turn) FROM run_times WHERE line = :line AND route = :route) - :kept;

-- name: running
SELECT route, started_at FROM tickets WHERE line = :line AND state = 'processing' ORDER BY started_at, number;

-- name: run_times
SELECT route, seconds FROM run_times WHERE line = :line ORDER BY route, turn;

-- name: workers
SELECT id, host, pid, threads, slots, born, seen FROM workers WHERE line = :line ORDER BY id;

-- name: completions
SELECT COALESCE(SUM(completed + failed), 0) FROM tallies
WHERE line = :line AND minute >= :minute AND minute < :total;

-- name: report
INSERT INTO workers (line, id, host, pid, threads, slots, born, seen)
VALUES (:line, :id, :host, :pid, :threads, :slots, :born, :seen)
ON CONFLICT (line, id) DO UPDATE SET
    host = excluded.host, pid = excluded.pid, threads = excluded.threads, slots = excluded.slots, born = excluded.born,
    seen = excluded.seen;

-- name: forget_worker
DELETE FROM workers WHERE line = :line AND id = :id;

-- name: past_retention
SELECT number, id, owner FROM tickets WHERE line = :line AND completed_at < :before
ORDER BY completed_at LIMIT :batch;

-- name: remember_gone
INSERT OR REPLACE INTO gone (line, id, owner, at) VALUES (?, ?, ?, ?);

-- name: remove
DELETE FROM tickets WHERE number = ?;

-- name: prune_gone
DELETE FROM gone WHERE line = :line AND at < :gone_before;

-- name: prune_minutes
DELETE FROM tallies WHERE line = :line AND minute < :minute;

-- name: prune_workers
DELETE FROM workers WHERE line = :line AND seen < :seen_before;

-- name: prune_finishes
-- What the virtual time has passed, and everything of a tier in which nobody waits or runs: a busy period has ended.
DELETE FROM client_finishes WHERE line = :line AND (finish <= (
    SELECT time FROM virtual_times WHERE line = :line AND tier = client_finishes.tier
) OR tier NOT IN (
    SELECT tier FROM tallies WHERE line = :line AND minute = :total GROUP BY tier HAVING SUM(queued + processing) > 0
));
