-- One delivery may be known under several names, one row each, and with a payload.
--
-- A lock that is not to be had soon is asked for again by the next try, so that
-- a long reader does not make everybody else queue behind this.
SET LOCAL lock_timeout = '5s';

ALTER TABLE processed_events
    ADD COLUMN names text[],
    ADD COLUMN digest uuid;

COMMENT ON COLUMN processed_events.names IS 'All names of an event that was taken under several, its own first: each has a row like this one; null where it has but one';
COMMENT ON COLUMN processed_events.digest IS 'What tells the payload from another: 128 bits hashed from the caller''s digest; null where none was given, and on the rows of aliases';
