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
        ", e.version AS event_version, e.processed_at, e.expires_at AS kept_until,
    e.request_id AS claimed_by, e.claimed_until, e.attempt, e.holder AS claim_holder, e.names,
    e.digest, e.detail, e.uncounted, e.interrupted, e.repeated AS claim_repeated,
    e.resumed_by AS claim_resumed_by, e.result IS NOT NULL AS has_result,
    e.rejected_at IS NOT DISTINCT FROM e.processed_at AS is_rejected,
    CASE WHEN a.result THEN e.result END AS result,
    CASE WHEN a.result THEN e.result_type END AS result_type"
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
