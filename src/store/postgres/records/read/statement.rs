//! The statements that read records.

use uuid::Uuid;

use super::super::json::micros;
use crate::{
    rules::Wanted,
    store::postgres::{handle::Statement, timestamp::PgTimestamp},
};

/// The clock, and the floor of fencing tokens. $1: the moment, or null for the database's clock.
macro_rules! clock {
    () => {
        "
WITH clock AS MATERIALIZED (
    SELECT COALESCE($1::timestamptz, clock_timestamp()) AS at,
        (SELECT floor FROM oncegate_fence WHERE id) AS floor
)
SELECT clock.at, clock.floor, a.place"
    };
}

/// The columns of a session, and its queue if it has one or it is wanted anyway.
macro_rules! session_columns {
    ($replica:literal) => {
        concat!(
            ", s.version AS session_version, s.fencing_token, s.lease_id, s.request_id, s.holder,
    s.labels, s.epic_id, s.acquired_at, s.expires_at, s.released, s.repeated, s.resumed_by,
    s.waiting, s.ttl_micros,
    CASE WHEN s.waiting OR a.queue THEN (
        SELECT json_agg(json_build_array(w.ticket, w.lease_id, w.request_id, w.holder, w.labels,
            w.epic_id, w.ttl_micros, w.digest, ",
            micros!("w.left_at"),
            ", w.is_there) ORDER BY w.ticket)::text
        FROM (
            SELECT t.*, t.replica = ",
            $replica,
            " OR ((SELECT r.expires_at FROM oncegate_replicas r
                WHERE r.replica = t.replica) > clock.at) IS TRUE AS is_there
            FROM oncegate_waiters t
            WHERE t.team_id = a.team AND t.session_id = a.session OFFSET 0) AS w) END AS queue"
        )
    };
}

macro_rules! event_columns {
    () => {
        concat!(
            ", e.version AS event_version, e.processed_at, e.expires_at AS kept_until,
    e.request_id AS claimed_by, e.claimed_until, e.attempt, e.holder AS claim_holder, e.names,
    e.digest, e.detail, e.uncounted, e.interrupted, e.repeated AS claim_repeated,
    e.resumed_by AS claim_resumed_by, e.result IS NOT NULL AS has_result,
    ",
            rejected!("e"),
            " AS is_rejected,
    CASE WHEN a.result THEN e.result END AS result,
    CASE WHEN a.result THEN e.result_type END AS result_type"
        )
    };
}

/// LATERAL with OFFSET 0 leaves the planner one way, by the key.
macro_rules! session_row {
    () => {
        "
    LEFT JOIN LATERAL (
        SELECT t.xmin::text::bigint AS version, t.* FROM oncegate_sessions t
        WHERE t.team_id = a.team AND t.session_id = a.session OFFSET 0) AS s ON true"
    };
}

macro_rules! event_row {
    () => {
        "
    LEFT JOIN LATERAL (
        SELECT t.xmin::text::bigint AS version, t.* FROM processed_events t
        WHERE t.team_id = a.event_team AND t.event_id = a.event OFFSET 0) AS e ON true"
    };
}

/// Reads sessions. $2 to $4: teams, sessions, and whether the queue is wanted even without waiters.
/// $5: this replica: it is there, whatever its latest heartbeat says.
pub(in super::super::super) const READ_SESSIONS: &str = concat!(
    clock!(),
    session_columns!("$5"),
    "
FROM clock LEFT JOIN unnest($2::text[], $3::text[], $4::boolean[]) WITH ORDINALITY
        AS a (team, session, queue, place) ON true",
    session_row!()
);

/// Reads events by name. $2 to $4: teams, names, and whether the result is wanted.
pub(in super::super::super) const READ_EVENTS: &str = concat!(
    clock!(),
    event_columns!(),
    "
FROM clock LEFT JOIN unnest($2::text[], $3::text[], $4::boolean[]) WITH ORDINALITY
        AS a (event_team, event, result, place) ON true",
    event_row!()
);

/// Reads sessions and events, all as of one snapshot. $2 to $5: as in [`READ_SESSIONS`].
/// $6 to $8: as $2 to $4 in [`READ_EVENTS`]. The first session stands beside the first event.
pub(in super::super::super) const READ: &str = concat!(
    clock!(),
    session_columns!("$5"),
    event_columns!(),
    "
FROM clock LEFT JOIN unnest($2::text[], $3::text[], $4::boolean[],
            $6::text[], $7::text[], $8::boolean[]) WITH ORDINALITY
        AS a (team, session, queue, event_team, event, result, place) ON true",
    session_row!(),
    event_row!()
);

/// Lists sessions. $2 to $5, the page: the team, or null for all; the team and the id that it comes after; the most
/// rows. $6: whether they are held, or null for all. $7: as $5 in [`READ_SESSIONS`].
pub(in super::super::super) const LIST_SESSIONS: &str = concat!(
    clock!(),
    ", a.team, a.session AS id",
    session_columns!("$7"),
    "
FROM clock LEFT JOIN LATERAL (
    SELECT p.xmin::text::bigint AS version, p.* FROM oncegate_sessions p
    WHERE ($2::text IS NULL OR p.team_id = $2)
        AND (p.team_id, p.session_id) > ($3::text, $4::text)
        AND ($6::boolean IS NULL OR (NOT p.released AND p.expires_at > clock.at) = $6)
    ORDER BY p.team_id, p.session_id LIMIT $5::bigint) AS s ON true
CROSS JOIN LATERAL (SELECT s.team_id AS team, s.session_id AS session, false AS queue,
    CASE WHEN s.version IS NOT NULL THEN 1::bigint END AS place) AS a
ORDER BY a.team, a.session"
);

/// Lists events. $2 to $5: as in [`LIST_SESSIONS`]. $6: how they stand, or null for all. $7, $8: less, and at least,
/// how long ago.
///
/// LIMIT within LATERAL: so the planner reads by the key, and stops when it has enough. A claim of attempt 0 was
/// answered to nobody. An event of several names is listed once.
pub(in super::super::super) const LIST_EVENTS: &str = concat!(
    clock!(),
    ", a.event_team AS team, a.event AS id",
    event_columns!(),
    "
FROM clock LEFT JOIN LATERAL (
    SELECT p.xmin::text::bigint AS version, p.* FROM processed_events p
    WHERE ($2::text IS NULL OR p.team_id = $2)
        AND (p.team_id, p.event_id) > ($3::text, $4::text)
        AND p.expires_at > clock.at AND p.attempt IS DISTINCT FROM 0
        AND (p.names IS NULL OR p.names[1] = p.event_id)
        AND CASE $6::text
            WHEN 'claimed' THEN ",
    running!("p", "clock.at"),
    "
            WHEN 'free' THEN NOT ",
    running!("p", "clock.at"),
    "
            WHEN 'processed' THEN p.claimed_until IS NULL
            WHEN 'succeeded' THEN p.claimed_until IS NULL AND p.result IS NOT NULL
            WHEN 'rejected' THEN p.claimed_until IS NULL AND p.result IS NULL AND ",
    rejected!("p"),
    "
            WHEN 'gave_up' THEN p.claimed_until IS NULL AND p.result IS NULL
                AND p.attempt IS NOT NULL AND NOT ",
    rejected!("p"),
    "
            ELSE true END
        AND ($7::interval IS NULL OR p.processed_at > clock.at - $7)
        AND ($8::interval IS NULL OR p.processed_at <= clock.at - $8)
    ORDER BY p.team_id, p.event_id LIMIT $5::bigint) AS e ON true
CROSS JOIN LATERAL (SELECT e.team_id AS event_team, e.event_id AS event, false AS result,
    CASE WHEN e.version IS NOT NULL THEN 1::bigint END AS place) AS a
ORDER BY a.event_team, a.event"
);

/// Records that are read together, as a statement's arrays.
pub(in super::super) struct Asked<'a> {
    sessions: Keys<'a>,
    events: Keys<'a>,
}

/// Keys, and what is wanted of each.
#[derive(Default)]
struct Keys<'a> {
    teams: Vec<&'a str>,
    ids: Vec<&'a str>,
    wants: Vec<bool>,
}

impl<'a> Keys<'a> {
    fn of(keys: impl Iterator<Item = (&'a str, &'a str, bool)>) -> Self {
        let mut all = Self::default();
        for (team, id, wants) in keys {
            all.teams.push(team);
            all.ids.push(id);
            all.wants.push(wants);
        }
        all
    }

    fn bind<'q>(&'q self, statement: Statement<'q>) -> Statement<'q> {
        statement.bind(&self.teams).bind(&self.ids).bind(&self.wants)
    }
}

impl<'a> Asked<'a> {
    pub(in super::super) fn of(wanted: &'a Wanted) -> Self {
        let sessions = wanted.sessions.iter();
        let events = wanted.events.iter();
        Self {
            sessions: Keys::of(
                sessions.map(|(key, queue)| (key.team.as_str(), key.session.as_str(), *queue)),
            ),
            events: Keys::of(
                events.map(|(key, result)| (key.team.as_str(), key.event.as_str(), *result)),
            ),
        }
    }

    /// The statement for what is asked.
    pub(in super::super) fn statement(
        &self,
        now: Option<PgTimestamp>,
        replica: Uuid,
    ) -> Statement<'_> {
        let Self { sessions, events } = self;
        if sessions.ids.is_empty() {
            return events.bind(sqlx::query(READ_EVENTS).bind(now));
        }
        let text = if events.ids.is_empty() { READ_SESSIONS } else { READ };
        let of_sessions = sessions.bind(sqlx::query(text).bind(now)).bind(replica);
        if events.ids.is_empty() { of_sessions } else { events.bind(of_sessions) }
    }
}
