-- The same table names as in PostgreSQL, where they must not clash with an application's.
ALTER TABLE sessions RENAME TO oncegate_sessions;
ALTER TABLE session_waiters RENAME TO oncegate_waiters;
DROP INDEX session_waiters_by_session;
DROP INDEX session_waiters_by_lease;
CREATE INDEX oncegate_waiters_by_session ON oncegate_waiters (team_id, session_id, ticket);
CREATE UNIQUE INDEX oncegate_waiters_by_lease ON oncegate_waiters (team_id, session_id, lease_id);
ALTER TABLE session_fencing_tokens RENAME TO oncegate_fencing_tokens;
