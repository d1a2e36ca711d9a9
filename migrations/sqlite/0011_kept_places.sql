-- min_reader: 8
--
-- A place in a queue is kept for a while when its caller loses the connection because the
-- server shuts down: a call that repeats the request, with the same payload, takes it up again.
ALTER TABLE oncegate_waiters ADD COLUMN left_at INTEGER; -- when the server left the place behind; null while the caller waits
ALTER TABLE oncegate_waiters ADD COLUMN digest TEXT; -- of the payload of the event that the session is wanted for: 128 bits, hex; null if it is not given
CREATE INDEX oncegate_waiters_left ON oncegate_waiters (left_at) WHERE left_at IS NOT NULL;
