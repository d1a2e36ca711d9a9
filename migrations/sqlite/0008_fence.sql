-- Fencing tokens are a hybrid logical clock instead of a counter: a session's next
-- token is above the token of its row and above the floor below, and not below the
-- clock in microseconds.
CREATE TABLE oncegate_fence (
    id    INTEGER PRIMARY KEY CHECK (id = 1),
    floor INTEGER NOT NULL CHECK (floor >= 0 AND floor < 9007199254740992) -- the highest token of any session row that was deleted, or what an operator raised it to
) STRICT;
INSERT INTO oncegate_fence (id, floor)
SELECT 1, max(last, (SELECT COALESCE(max(fencing_token), 0) FROM oncegate_sessions))
FROM oncegate_fencing_tokens;
DROP TABLE oncegate_fencing_tokens;

ALTER TABLE oncegate_sessions ADD COLUMN ttl_micros INTEGER; -- how long the lease ran when it was granted or last renewed; null on rows from before this column
