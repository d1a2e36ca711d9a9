-- min_reader: 9
--
-- A turn can end with a rejection, a detail and a typed result, and attempts that broke off
-- do not count. A binary of the version before reads a rejected event as one that was given
-- up: neither is retried.
ALTER TABLE processed_events ADD COLUMN rejected_at INTEGER; -- when the handler rejected the event for good; counts only if it equals processed_at
ALTER TABLE processed_events ADD COLUMN detail TEXT;         -- why the event was rejected, or why its latest turn that reported a failure failed
ALTER TABLE processed_events ADD COLUMN result_type TEXT;    -- the type of the result, as the turn set it
ALTER TABLE processed_events ADD COLUMN uncounted INTEGER;   -- how many of the attempts do not count, because their stream broke or their server drained
ALTER TABLE processed_events ADD COLUMN interrupted INTEGER; -- the attempt whose stream broke or whose server drained, unless its holder has carried it on since
