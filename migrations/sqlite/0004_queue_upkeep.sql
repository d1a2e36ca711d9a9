-- A place is found by its session and its lease.
CREATE UNIQUE INDEX session_waiters_by_lease ON session_waiters (team_id, session_id, lease_id);
