-- min_reader: 8
--
-- A place in a queue is kept for a while when its caller loses the connection because the
-- server shuts down: a call that repeats the request takes it up again.
ALTER TABLE oncegate_waiters ADD COLUMN left_at INTEGER; -- when the caller was disconnected; null while it waits
CREATE INDEX oncegate_waiters_left ON oncegate_waiters (left_at) WHERE left_at IS NOT NULL;
