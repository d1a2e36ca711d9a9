-- The tables have names of their own, so that the database can be shared with an
-- application that has a table "sessions". A new database gets these names from
-- 0002 to 0004; one that was migrated before still has the old ones.
--
-- A lock that is not available soon is requested again by the next try, so that
-- a long reader does not make everybody else queue behind this.
SET LOCAL lock_timeout = '5s';

DO $$
BEGIN
    IF to_regclass('oncegate_sessions') IS NOT NULL THEN
        RETURN;
    END IF;
    ALTER SEQUENCE session_fencing_tokens RENAME TO oncegate_fencing_tokens;
    ALTER SEQUENCE session_tickets RENAME TO oncegate_tickets;
    ALTER TABLE sessions RENAME TO oncegate_sessions;
    ALTER INDEX sessions_pkey RENAME TO oncegate_sessions_pkey;
    ALTER TABLE session_waiters RENAME TO oncegate_waiters;
    ALTER INDEX session_waiters_pkey RENAME TO oncegate_waiters_pkey;
    ALTER INDEX session_waiters_lease_key RENAME TO oncegate_waiters_lease_key;
    ALTER INDEX session_waiters_by_replica RENAME TO oncegate_waiters_by_replica;
    ALTER TABLE replicas RENAME TO oncegate_replicas;
    ALTER INDEX replicas_pkey RENAME TO oncegate_replicas_pkey;
END
$$;
