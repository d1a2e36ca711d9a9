-- min_reader: 8
--
-- A place in a queue is kept for a while when its caller loses the connection because the
-- replica shuts down: a call that repeats the request, with the same payload, takes it up again.
-- Such a place is on no replica (the nil UUID), so that replicas of the version before pass it
-- over as well.
--
-- A lock that is not available soon is requested again by the next try, so that
-- a long reader does not make everybody else queue behind this.
SET LOCAL lock_timeout = '5s';

ALTER TABLE oncegate_waiters ADD COLUMN left_at timestamptz, ADD COLUMN digest uuid;

COMMENT ON COLUMN oncegate_waiters.left_at IS 'When the replica left the place behind as it shut down; null while the caller waits';
COMMENT ON COLUMN oncegate_waiters.digest IS 'Of the payload of the event that the session is wanted for; null if it is not given';
