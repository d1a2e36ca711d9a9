-- Fencing tokens are a hybrid logical clock instead of a sequence: a session's next
-- token is above the token of its row and above the floor below, and not below the
-- database's clock in microseconds. A sequence falls behind the rows when a backup is
-- restored, when a standby that lags is promoted, and when rows are moved by logical
-- replication, which does not copy sequences.
--
-- A lock that is not available soon is requested again by the next try, so that
-- a long reader does not make everybody else queue behind this.
SET LOCAL lock_timeout = '5s';

-- First: while this lock is held, no grant is under way.
ALTER TABLE oncegate_sessions
    ADD COLUMN ttl_micros bigint,
    -- Not checked against existing rows: that would read the whole table.
    ADD CONSTRAINT oncegate_sessions_token_check
        CHECK (fencing_token < 9007199254740992) NOT VALID;

CREATE TABLE oncegate_fence (
    id    boolean PRIMARY KEY DEFAULT true CHECK (id),
    floor bigint NOT NULL CHECK (floor >= 0 AND floor < 9007199254740992)
) WITH (fillfactor = 50);

INSERT INTO oncegate_fence (floor)
SELECT GREATEST(last_value, (SELECT max(fencing_token) FROM oncegate_sessions))
FROM oncegate_fencing_tokens;

DROP SEQUENCE oncegate_fencing_tokens;

COMMENT ON TABLE oncegate_fence IS 'One row: the floor of all fencing tokens';
COMMENT ON COLUMN oncegate_fence.floor IS 'The highest token of any session row that was deleted, or what an operator raised it to; the next token of every session is higher';
COMMENT ON COLUMN oncegate_sessions.ttl_micros IS 'How long the lease ran when it was granted or last renewed: it cannot end later than now plus this, unless the clock was stepped back; null on rows from before this column';
COMMENT ON CONSTRAINT oncegate_sessions_token_check ON oncegate_sessions IS 'Tokens stay below 2^53, which JavaScript keeps exactly; the clock reaches it in the year 2255';
