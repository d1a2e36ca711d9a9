-- One row an event that has been handled. Times are microseconds since 1970.
CREATE TABLE processed_events (
    team_id      TEXT NOT NULL,    -- the tenant; nothing crosses teams
    event_id     TEXT NOT NULL,    -- as given, or as derived from a Slack delivery
    processed_at INTEGER NOT NULL, -- when the event was marked
    expires_at   INTEGER NOT NULL, -- from this moment the event is new again, swept or not
    request_id   TEXT NOT NULL,    -- the winning attempt: 128 bits, hex
    PRIMARY KEY (team_id, event_id)
) STRICT, WITHOUT ROWID;

-- The sweeper's way to the expired rows.
CREATE INDEX processed_events_expires_at ON processed_events (expires_at);
