-- A place is found by its session, so that a database that is distributed by team
-- keeps the promise within one part of it; and a replica finds its own, to give up
-- those whose callers have gone.
ALTER TABLE oncegate_waiters
    DROP CONSTRAINT oncegate_waiters_lease_id_key,
    ADD CONSTRAINT oncegate_waiters_lease_key UNIQUE (team_id, session_id, lease_id);
CREATE INDEX oncegate_waiters_by_replica ON oncegate_waiters (replica);
