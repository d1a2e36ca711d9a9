-- Who waits for which session, on whichever replica: one row a caller, from when
-- it queues until it has the lease or leaves.
CREATE SEQUENCE session_tickets;
CREATE TABLE session_waiters (
    team_id    text COLLATE "C" NOT NULL,
    session_id text COLLATE "C" NOT NULL,
    ticket     bigint NOT NULL DEFAULT nextval('session_tickets'),
    lease_id   uuid NOT NULL UNIQUE,
    request_id uuid NOT NULL,
    holder     text NOT NULL,
    labels     text NOT NULL,
    epic_id    text,
    ttl_micros bigint NOT NULL,
    replica    uuid NOT NULL,
    PRIMARY KEY (team_id, session_id, ticket)
);

COMMENT ON TABLE session_waiters IS 'Callers that wait for a session, in the order of their tickets';
COMMENT ON COLUMN session_waiters.ticket IS 'Drawn under the session''s lock: the lowest is next';
COMMENT ON COLUMN session_waiters.lease_id IS 'The lease that the caller is given when it is its turn';
COMMENT ON COLUMN session_waiters.replica IS 'Where the caller is connected';

CREATE TABLE replicas (
    replica    uuid PRIMARY KEY,
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 50);

COMMENT ON TABLE replicas IS 'Replicas on which somebody waits; those who wait on one that has gone are passed over';
COMMENT ON COLUMN replicas.expires_at IS 'From when it counts as gone, unless it says again that it is there';

ALTER TABLE sessions ADD COLUMN waiting boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN sessions.waiting IS 'Somebody may wait: whoever gives the lease back looks who is next';
