-- min_reader: 8
--
-- A stream that breaks ends the lease or the turn that it kept only if its holder has
-- not carried it on since. Nullable, so no row is rewritten; a binary of the version
-- before leaves the columns alone.
--
-- A lock that is not available soon is requested again by the next try, so that
-- a long reader does not make everybody else queue behind this.
SET LOCAL lock_timeout = '5s';

ALTER TABLE processed_events ADD COLUMN resumed_by uuid;
ALTER TABLE oncegate_sessions ADD COLUMN resumed_by uuid;

COMMENT ON COLUMN processed_events.resumed_by IS 'Who last carried the turn on, other than the call that it was granted to: the id of a stream that repeated its request, or the nil UUID for a call that renewed or repeated it and returned; null if nobody has';
COMMENT ON COLUMN oncegate_sessions.resumed_by IS 'The same for the lease';
