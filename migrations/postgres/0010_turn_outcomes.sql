-- min_reader: 9
--
-- A turn can end with a rejection, a detail and a typed result, and attempts that broke off
-- do not count. Nullable, so no row is rewritten; a binary of the version before leaves the
-- columns alone. It reads a rejected event as one that was given up: neither is retried.
--
-- A lock that is not available soon is requested again by the next try, so that
-- a long reader does not make everybody else queue behind this.
SET LOCAL lock_timeout = '5s';

ALTER TABLE processed_events
    ADD COLUMN rejected_at timestamptz,
    ADD COLUMN detail text,
    ADD COLUMN result_type text,
    ADD COLUMN uncounted integer,
    ADD COLUMN interrupted integer;

COMMENT ON COLUMN processed_events.rejected_at IS 'When the handler rejected the event for good. Counts only if it equals processed_at: a binary of the version before writes that and leaves this alone';
COMMENT ON COLUMN processed_events.detail IS 'Why the event was rejected, or why its latest turn that reported a failure failed, as the handler gave it';
COMMENT ON COLUMN processed_events.result_type IS 'The type of the result, as the turn set it; null if it set none';
COMMENT ON COLUMN processed_events.uncounted IS 'How many of the attempts do not count against max_attempts, because their stream broke or their server drained; null if all count';
COMMENT ON COLUMN processed_events.interrupted IS 'The attempt whose stream broke or whose server drained while it ran, unless its holder has carried it on since: if its claim lapses, it does not count';
