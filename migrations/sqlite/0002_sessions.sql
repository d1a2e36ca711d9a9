-- The last fencing token granted, of all sessions, so that a session's tokens
-- keep rising after its row has been swept away.
CREATE TABLE session_fencing_tokens (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    last INTEGER NOT NULL
) STRICT;
INSERT INTO session_fencing_tokens (id, last) VALUES (1, 0);

-- One row a session: its current or latest lease, and what it is bound to.
-- Times are microseconds since 1970.
CREATE TABLE sessions (
    team_id       TEXT NOT NULL,    -- the tenant; nothing crosses teams
    session_id    TEXT NOT NULL,    -- the canonical id team:channel:thread, or an opaque one as given
    fencing_token INTEGER NOT NULL, -- of the current or latest lease; rises with every grant
    lease_id      TEXT NOT NULL,    -- the current or latest lease
    request_id    TEXT NOT NULL,    -- the attempt that was granted it: 128 bits, hex
    holder        TEXT NOT NULL,    -- who holds or held it, as it named itself
    labels        TEXT NOT NULL,    -- given with the lease, a JSON object of strings
    epic_id       TEXT,             -- the work the session is bound to; a bound row outlives its lease
    acquired_at   INTEGER NOT NULL, -- when the lease was granted
    expires_at    INTEGER NOT NULL, -- when the lease ends, or ended
    released      INTEGER NOT NULL DEFAULT 0, -- whether it was given back before its end
    repeated      INTEGER NOT NULL DEFAULT 0, -- whether the grant was told again: then it stays even if whoever asked first has gone
    PRIMARY KEY (team_id, session_id)
) STRICT, WITHOUT ROWID;
