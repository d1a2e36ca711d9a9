-- min_reader: 8
--
-- A place in a queue is kept for a while when its caller loses the connection because the
-- replica shuts down: a call that repeats the request takes it up again. No column is needed:
-- the place moves to a replica in oncegate_replicas that has left at that moment.
COMMENT ON COLUMN oncegate_waiters.replica IS 'Where the caller is connected; or, once that replica shuts down, one that left at that moment, for which the place is kept for 10 s';
