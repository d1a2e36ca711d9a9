-- The tables have names of their own, so that the database can be shared with an
-- application that has a table "sessions". A new database gets these names from
-- 0002 to 0004; one that was migrated before still has the old ones.
--
-- A lock that is not available soon is requested again by the next try, so that
-- a long reader does not make everybody else queue behind this.
SET LOCAL lock_timeout = '5s';

DO $$
DECLARE
    here text := quote_ident(current_schema()) || '.';
BEGIN
    -- The table that 0002 and 0003 have made. A table of another application does not
    -- have this column, and then the first rename fails and names it.
    IF EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = to_regclass(here || 'oncegate_sessions')
            AND attname = 'waiting' AND NOT attisdropped
    ) THEN
        RETURN;
    END IF;
    ALTER TABLE sessions RENAME TO oncegate_sessions;
    ALTER INDEX sessions_pkey RENAME TO oncegate_sessions_pkey;
    ALTER TABLE session_waiters RENAME TO oncegate_waiters;
    ALTER INDEX session_waiters_pkey RENAME TO oncegate_waiters_pkey;
    ALTER INDEX session_waiters_lease_key RENAME TO oncegate_waiters_lease_key;
    ALTER INDEX session_waiters_by_replica RENAME TO oncegate_waiters_by_replica;
    ALTER TABLE replicas RENAME TO oncegate_replicas;
    ALTER INDEX replicas_pkey RENAME TO oncegate_replicas_pkey;
    ALTER SEQUENCE session_fencing_tokens RENAME TO oncegate_fencing_tokens;
    ALTER SEQUENCE session_tickets RENAME TO oncegate_tickets;
END
$$;

-- An older table may count in another type, without a time zone: UTC.
DO $$
DECLARE
    older regtype := (
        SELECT atttypid FROM pg_attribute
        WHERE attrelid = 'processed_events'::regclass AND attname = 'processed_at');
    digits integer := (
        SELECT atttypmod FROM pg_attribute
        WHERE attrelid = 'processed_events'::regclass AND attname = 'processed_at');
BEGIN
    IF older = 'timestamp'::regtype THEN
        ALTER TABLE processed_events
            ALTER COLUMN processed_at DROP DEFAULT,
            ALTER COLUMN processed_at TYPE timestamptz USING processed_at AT TIME ZONE 'UTC';
    ELSIF digits <> -1 THEN
        ALTER TABLE processed_events ALTER COLUMN processed_at TYPE timestamptz;
    END IF;
END
$$;
ALTER TABLE processed_events ALTER COLUMN processed_at SET DEFAULT now();
