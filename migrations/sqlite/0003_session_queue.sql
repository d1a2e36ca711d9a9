-- Who waits for which session: one row a caller, from when it queues until it has
-- the lease or leaves.
CREATE TABLE session_waiters (
    ticket     INTEGER PRIMARY KEY AUTOINCREMENT, -- the lowest is next
    team_id    TEXT NOT NULL,
    session_id TEXT NOT NULL,
    lease_id   TEXT NOT NULL,    -- the lease that the caller is given when it is its turn: 128 bits, hex
    request_id TEXT NOT NULL,    -- its attempt
    holder     TEXT NOT NULL,
    labels     TEXT NOT NULL,
    epic_id    TEXT,
    ttl_micros INTEGER NOT NULL
) STRICT;
CREATE INDEX session_waiters_by_session ON session_waiters (team_id, session_id, ticket);

-- Somebody may wait: whoever gives the lease back looks who is next.
ALTER TABLE sessions ADD COLUMN waiting INTEGER NOT NULL DEFAULT 0;
