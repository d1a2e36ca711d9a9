-- A place is found by its session, so that a database that is distributed by team
-- keeps the promise within one part of it; and a replica finds its own, to give up
-- those whose callers have gone.
ALTER TABLE session_waiters
    DROP CONSTRAINT session_waiters_lease_id_key,
    ADD CONSTRAINT session_waiters_lease_key UNIQUE (team_id, session_id, lease_id);
CREATE INDEX session_waiters_by_replica ON session_waiters (replica);
