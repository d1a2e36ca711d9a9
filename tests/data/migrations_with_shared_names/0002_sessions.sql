-- Fencing tokens of all sessions come from one sequence, so that a session's
-- tokens keep rising after its row has been swept away.
CREATE SEQUENCE session_fencing_tokens AS bigint;

-- One row a session: its current or latest lease, and what it is bound to. No
-- index beyond the key: a renewal then stays a heap-only update, for which the
-- fill factor leaves room.
CREATE TABLE sessions (
    team_id       text COLLATE "C" NOT NULL,
    session_id    text COLLATE "C" NOT NULL,
    fencing_token bigint NOT NULL,
    lease_id      uuid NOT NULL,
    request_id    uuid NOT NULL,
    holder        text NOT NULL,
    labels        text NOT NULL,
    epic_id       text,
    acquired_at   timestamptz NOT NULL,
    expires_at    timestamptz NOT NULL,
    released      boolean NOT NULL DEFAULT false,
    repeated      boolean NOT NULL DEFAULT false,
    PRIMARY KEY (team_id, session_id)
) WITH (fillfactor = 70);

COMMENT ON TABLE sessions IS 'Conversations, each with its current or latest lease; the row decides who holds it';
COMMENT ON COLUMN sessions.team_id IS 'The tenant; nothing crosses teams';
COMMENT ON COLUMN sessions.session_id IS 'The canonical id team:channel:thread, or an opaque one as given';
COMMENT ON COLUMN sessions.fencing_token IS 'The token of the current or latest lease; rises with every grant';
COMMENT ON COLUMN sessions.lease_id IS 'The current or latest lease';
COMMENT ON COLUMN sessions.request_id IS 'The attempt that was granted this lease: 128 bits hashed from the caller''s request id and the session''s key, or random';
COMMENT ON COLUMN sessions.holder IS 'Who holds or held the lease, as it named itself';
COMMENT ON COLUMN sessions.labels IS 'The labels given with the lease, a JSON object of strings';
COMMENT ON COLUMN sessions.epic_id IS 'The work the session is bound to; null while unbound. A bound row outlives its lease';
COMMENT ON COLUMN sessions.acquired_at IS 'When the lease was granted';
COMMENT ON COLUMN sessions.expires_at IS 'When the lease ends, or ended';
COMMENT ON COLUMN sessions.released IS 'Whether the lease was given back before its end';
COMMENT ON COLUMN sessions.repeated IS 'Whether the grant was told again, to a repetition of its request: then the lease stays even if whoever asked first has gone';
