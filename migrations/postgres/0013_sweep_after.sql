-- min_reader: 8
--
-- Sweeps find rows by a coarse column instead of expires_at, which changes with every claim, renewal and
-- end of a turn. A change of an indexed column writes to every index; a change of others can stay within
-- the row's page ("heap-only").
--
-- No row is rewritten: rows that are there get a constant, the default as of now. Rows that a binary of the
-- version before or an older bot writes get the default, which assumes a day. Both may be swept up to 25 hours
-- late. Such a binary sweeps by expires_at: correct, but it reads the whole table for each batch.
--
-- A lock that is not available soon is requested again by the next try, so that
-- a long reader does not make everybody else queue behind this.
SET LOCAL lock_timeout = '5s';

-- For a large table, an operator can add column and index before the upgrade: the index concurrently,
-- so that no lock is held while it is built.
DO $$
DECLARE
    here text := quote_ident(current_schema()) || '.';
BEGIN
    -- A column of another type is not ours, and then ADD COLUMN fails and names it.
    IF NOT EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = to_regclass(here || 'processed_events') AND attname = 'sweep_after'
            AND atttypid = 'timestamptz'::regtype AND attnotnull AND atthasdef AND NOT attisdropped
    ) THEN
        ALTER TABLE processed_events ADD COLUMN sweep_after timestamptz NOT NULL
            DEFAULT date_trunc('hour', now()) + interval '25 hours';
    END IF;
    -- CREATE INDEX CONCURRENTLY leaves an index that cannot be used if it fails.
    IF EXISTS (
        SELECT FROM pg_index
        WHERE indexrelid = to_regclass(here || 'processed_events_sweep_after') AND NOT indisvalid
    ) THEN
        DROP INDEX processed_events_sweep_after;
    END IF;
END
$$;

CREATE INDEX IF NOT EXISTS processed_events_sweep_after ON processed_events (sweep_after);
DROP INDEX IF EXISTS processed_events_expires_at;

-- Room for the second versions of most rows of a batch that is claimed together and ends together.
ALTER TABLE processed_events SET (fillfactor = 70);

COMMENT ON COLUMN processed_events.sweep_after IS 'From when a sweep deletes the row: the end of the hour in which it expires, or of the minute if it was kept for less than a day. A sweep that finds a row that has not expired corrects it';
