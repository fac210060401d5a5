-- One file may hold several lines; `line` is the name of the one that a row belongs to.
-- A change here needs a new number at the end, and in opening.py.

-- The columns up to `retryable` are the fields of Ticket, in their order and under their names.
CREATE TABLE tickets (
    id TEXT NOT NULL,
    route TEXT NOT NULL,
    tier TEXT NOT NULL,
    tier_rank INTEGER NOT NULL,
    client TEXT NOT NULL,
    owner TEXT NOT NULL,
    cost REAL NOT NULL,
    crash_retries INTEGER NOT NULL,
    created_at REAL NOT NULL,
    state TEXT NOT NULL,
    start REAL NOT NULL,
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    started_at REAL,
    completed_at REAL,                        -- set when the ticket is final, and only then
    attempt INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    cancelling INTEGER NOT NULL,
    progress REAL,
    note TEXT NOT NULL,
    error TEXT NOT NULL,
    retryable INTEGER NOT NULL,
    line TEXT NOT NULL,
    worker TEXT,                              -- who claimed it last
    lease_until REAL,                         -- of the last claim, by the host's clock since the boot of this id
    lease_boot TEXT,
    key TEXT,                                 -- the Idempotency-Key it was put with, if any, and what that stands for
    digest TEXT,
    UNIQUE (line, id)
);

-- The line itself.  The route comes first, so that the first ticket of each route is found at once however
-- many of another route stand before it; the few routes are then compared with each other.  The state and the time
-- stand in it so that counting, and looking for what waits too long, need nothing but the index.
CREATE INDEX queued ON tickets (line, route, tier_rank, start, number, state, created_at, attempt) WHERE state = 'queued';
-- The queued tickets of one client.
CREATE INDEX own ON tickets (line, tier, client, start, number) WHERE state = 'queued';
CREATE INDEX leases ON tickets (line, lease_until) WHERE state = 'processing';
CREATE INDEX finished ON tickets (line, completed_at) WHERE completed_at IS NOT NULL;

CREATE UNIQUE INDEX keys ON tickets (line, route, client, key) WHERE key IS NOT NULL;

-- The recordings, by the number of their ticket.  The body is in the row or in the file of this name.
-- SQLite has no checksums of its own: crc is that of what the row holds, so that a damaged recording is never taken
-- for what was recorded.
CREATE TABLE requests (
    number INTEGER PRIMARY KEY, head TEXT NOT NULL, body BLOB, file TEXT, length INTEGER NOT NULL, crc INTEGER NOT NULL
);
CREATE TABLE responses (
    number INTEGER PRIMARY KEY, head TEXT NOT NULL, body BLOB, file TEXT, length INTEGER NOT NULL, crc INTEGER NOT NULL
);

-- The fields of Tally: since the beginning, and what each minute added to them.  The number that stands for the
-- beginning (TOTAL in rows.py) is larger than any minute, so that the two rows that a step changes are neighbours.
-- One tier may have had several ranks, if the configuration changed while tickets waited.
CREATE TABLE tallies (
    line TEXT NOT NULL,
    minute INTEGER NOT NULL,
    tier_rank INTEGER NOT NULL,
    tier TEXT NOT NULL,
    route TEXT NOT NULL,
    queued INTEGER NOT NULL,
    processing INTEGER NOT NULL,
    accepted INTEGER NOT NULL,
    started INTEGER NOT NULL,
    completed INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    crashed INTEGER NOT NULL,
    ran INTEGER NOT NULL,
    wait_seconds REAL NOT NULL,
    run_seconds REAL NOT NULL,
    passed INTEGER NOT NULL,
    shadowed INTEGER NOT NULL,
    late INTEGER NOT NULL,
    PRIMARY KEY (line, minute, tier_rank, tier, route)
) WITHOUT ROWID;

-- What a rank is made of, beside the client's queued tickets: see policy/ordering.py.  A client's finish is the last
-- of those of its tickets that were ever claimed.
CREATE TABLE virtual_times (line TEXT NOT NULL, tier TEXT NOT NULL, time REAL NOT NULL, PRIMARY KEY (line, tier))
WITHOUT ROWID;
CREATE TABLE client_finishes (
    line TEXT NOT NULL,
    tier TEXT NOT NULL,
    client TEXT NOT NULL,
    finish REAL NOT NULL,
    PRIMARY KEY (line, tier, client)
) WITHOUT ROWID;

-- The last run times of each route; `turn` counts upwards.
CREATE TABLE run_times (
    line TEXT NOT NULL,
    route TEXT NOT NULL,
    turn INTEGER NOT NULL,
    seconds REAL NOT NULL,
    PRIMARY KEY (line, route, turn)
) WITHOUT ROWID;

CREATE TABLE workers (
    line TEXT NOT NULL,
    id TEXT NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    threads INTEGER NOT NULL,
    slots INTEGER NOT NULL,
    born REAL NOT NULL,
    seen REAL NOT NULL,
    PRIMARY KEY (line, id)
) WITHOUT ROWID;

-- The lines from which nothing is claimed.
CREATE TABLE paused (line TEXT NOT NULL PRIMARY KEY) WITHOUT ROWID;

-- Removed tickets, to tell 410 from 404.
CREATE TABLE gone (line TEXT NOT NULL, id TEXT NOT NULL, owner TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (line, id))
WITHOUT ROWID;
CREATE INDEX gone_at ON gone (line, at);

PRAGMA application_id = 1463895121;           -- "WADQ"
PRAGMA user_version = 3;
