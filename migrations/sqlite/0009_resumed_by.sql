-- min_reader: 8
--
-- Who last carried a turn or a lease on, other than the call that it was granted to: the
-- id of a stream that repeated its request, or the nil UUID for a call that renewed or
-- repeated it and returned; null if nobody has.
ALTER TABLE processed_events ADD COLUMN resumed_by TEXT;
ALTER TABLE oncegate_sessions ADD COLUMN resumed_by TEXT;
