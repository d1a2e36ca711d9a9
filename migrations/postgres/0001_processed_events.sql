-- One row an event that has been handled. A database of the older Python bots
-- holds this table already; it is adopted in place, so both spellings of the
-- table meet here: first the old one, where there is none, then the changes.
--
-- A lock that is not to be had soon is asked for again by the next try, so that
-- a long reader does not make everybody else queue behind this.
SET LOCAL lock_timeout = '5s';

CREATE TABLE IF NOT EXISTS processed_events (
    team_id      text,
    event_id     text,
    processed_at timestamptz DEFAULT now(),
    PRIMARY KEY (team_id, event_id)
);

UPDATE processed_events SET processed_at = now() WHERE processed_at IS NULL;

ALTER TABLE processed_events
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN request_id uuid;

-- One rewrite of the table does it all. COLLATE "C" compares bytes: the fastest
-- order, and the same on every machine. The expiry's default serves the older
-- bots, which may still write while the last of them is being replaced.
ALTER TABLE processed_events
    ALTER COLUMN team_id TYPE text COLLATE "C",
    ALTER COLUMN event_id TYPE text COLLATE "C",
    ALTER COLUMN processed_at SET NOT NULL,
    ALTER COLUMN expires_at TYPE timestamptz USING processed_at + interval '24 hours',
    ALTER COLUMN expires_at SET DEFAULT now() + interval '24 hours',
    ALTER COLUMN expires_at SET NOT NULL;

-- The sweeper's way to the expired rows. The older bots' index on processed_at
-- would cost every mark an index write that nothing here reads.
CREATE INDEX processed_events_expires_at ON processed_events (expires_at);
DROP INDEX IF EXISTS idx_processed_events_time;

COMMENT ON TABLE processed_events IS 'Events that have been handled, one row each, until they expire';
COMMENT ON COLUMN processed_events.team_id IS 'The tenant; nothing crosses teams';
COMMENT ON COLUMN processed_events.event_id IS 'The event id, as given or as derived from a Slack delivery';
COMMENT ON COLUMN processed_events.processed_at IS 'When the event was marked';
COMMENT ON COLUMN processed_events.expires_at IS 'From this moment the event is new again, whether the row is still here or not';
COMMENT ON COLUMN processed_events.request_id IS 'The winning attempt: 128 bits hashed from the caller''s request id and the event''s key, or random; null on a row of the older bots';
