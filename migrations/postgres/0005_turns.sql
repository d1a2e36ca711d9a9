-- A run claims an event before it works on it, and finishes it afterwards.
--
-- A lock that is not to be had soon is asked for again by the next try, so that
-- a long reader does not make everybody else queue behind this.
SET LOCAL lock_timeout = '5s';

ALTER TABLE processed_events
    ADD COLUMN claimed_until timestamptz,
    ADD COLUMN attempt integer,
    ADD COLUMN holder text,
    ADD COLUMN result bytea,
    ADD COLUMN repeated boolean;

COMMENT ON COLUMN processed_events.processed_at IS 'When the event was marked or claimed, or its turn ended';
COMMENT ON COLUMN processed_events.expires_at IS 'From this moment the event is new again, and its attempts are forgotten, whether the row is still here or not';
COMMENT ON COLUMN processed_events.claimed_until IS 'When the claim lapses or ended, so that the event may be claimed again; null once the event is handled';
COMMENT ON COLUMN processed_events.attempt IS 'How many runs have claimed the event; null for a mark';
COMMENT ON COLUMN processed_events.holder IS 'Who claimed it last, as it named itself';
COMMENT ON COLUMN processed_events.result IS 'What the turn that handled the event left; null where it was given up';
COMMENT ON COLUMN processed_events.repeated IS 'The claim was told again, to a repetition of its request: then it stays even if whoever asked first has gone';
