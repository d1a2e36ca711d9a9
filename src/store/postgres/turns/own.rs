//! Turns that a statement ends or renews: how it finds them, and what it reports about those
//! that it leaves alone.

use std::time::Duration;

use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use super::small;
use crate::{
    domain::{Kept, LeaseId, SessionKey, TurnId},
    store::{
        StoreError, Verdict,
        postgres::{Locks, link::Statement},
    },
};

/// The turns that are asked about, whose session's lock was had; of those the ones whose
/// lease runs, their rows locked: what is written to the event because of that is true
/// when it is committed; and the ones whose event is `there`, its rows locked under all of
/// its names, in the order in which all that take events do. Who asks for those has to do
/// so by `IS TRUE`: else the planner makes a join of it, and may look at a row, and at the
/// clock, before it has waited for the lock.
macro_rules! turns {
    ($further:literal, $names:literal, $unless:expr) => {
        concat!(
            "
WITH asked AS MATERIALIZED (
    SELECT a.*, COALESCE($1::timestamptz, clock_timestamp()) AS at
    FROM unnest($2::text[], $3::text[], $4::bigint[], $5::uuid[], $6::text[], $8::uuid[],
            $9::integer[]",
            $further,
            ") WITH ORDINALITY
        AS a (team_id, session_id, lock_key, lease_id, event_id, request_id, attempt",
            $names,
            ", ord)
    WHERE a.session_id IS NULL OR pg_try_advisory_xact_lock(a.lock_key)
), held AS MATERIALIZED (
    SELECT q.ord FROM asked q CROSS JOIN LATERAL (
        SELECT FROM oncegate_sessions t
        WHERE t.team_id = q.team_id AND t.session_id = q.session_id
            AND t.lease_id = q.lease_id AND NOT t.released
            AND t.expires_at > COALESCE($1::timestamptz, clock_timestamp())",
            $unless,
            "
        FOR UPDATE) AS s
), there AS MATERIALIZED (
    SELECT n.ord FROM (
        SELECT q.ord, q.team_id, q.request_id, u.name, cardinality(p.names) AS names
        FROM asked q CROSS JOIN LATERAL (
            SELECT COALESCE(names, ARRAY[p.event_id]) AS names FROM processed_events p
            WHERE p.team_id = q.team_id AND p.event_id = q.event_id
                AND p.request_id = q.request_id OFFSET 0) AS p
        CROSS JOIN LATERAL unnest(p.names) AS u (name)
        ORDER BY q.team_id COLLATE \"C\", u.name COLLATE \"C\") AS n
    CROSS JOIN LATERAL (
        SELECT FROM processed_events p
        WHERE p.team_id = n.team_id AND p.event_id = n.name AND p.request_id = n.request_id
        FOR UPDATE) AS e
    GROUP BY n.ord, n.names HAVING count(*) = n.names
)"
        )
    };
}

/// Writes $set to the rows of the aliases of the events in $done, from those.
macro_rules! aliases {
    ($done:literal, $set:literal) => {
        concat!(
            "aliases AS (
    UPDATE processed_events e SET ",
            $set,
            "
    FROM (
        SELECT d.*, u.name FROM ",
            $done,
            " d CROSS JOIN LATERAL unnest(d.names) AS u (name) OFFSET 0) AS d
    WHERE e.team_id = ANY (ARRAY[d.team_id]) AND e.event_id = d.name
        AND d.name <> d.event_id AND e.request_id = d.request_id
)"
        )
    };
}

/// Reads the state of turns that are not in $done: the event, whether the
/// lease runs or how long it was held when it ran out, and by $resumed whether another call
/// has carried them on.
macro_rules! others {
    ($done:literal, $resumed:expr) => {
        concat!(
            "
SELECT q.ord, false AS done, q.session_id IS NULL OR t.lease_id IS NOT NULL AS held, q.at, ",
            event_columns!("e"),
            ", e.request_id = q.request_id AND e.attempt = q.attempt AS own, ",
            $resumed,
            " AS resumed, (
        SELECT (EXTRACT(EPOCH FROM o.expires_at - o.acquired_at) * 1000000)::bigint
        FROM oncegate_sessions o
        WHERE o.team_id = q.team_id AND o.session_id = q.session_id
            AND o.lease_id = q.lease_id AND NOT o.released AND o.expires_at <= q.at)
    AS held_micros, ",
            session_columns!("s", "false", "NULL::uuid[] AS queue"),
            ", false AS given_back
FROM asked q LEFT JOIN LATERAL (
    SELECT * FROM processed_events p
    WHERE p.team_id = q.team_id AND p.event_id = q.event_id OFFSET 0)
    AS e ON e.expires_at > q.at
LEFT JOIN LATERAL (
    SELECT * FROM oncegate_sessions p
    WHERE p.team_id = q.team_id AND p.session_id = q.session_id OFFSET 0)
    AS t ON t.lease_id = q.lease_id AND NOT t.released AND t.expires_at > q.at
LEFT JOIN oncegate_sessions s ON false
WHERE q.ord NOT IN (SELECT ord FROM ",
            $done,
            ")
"
        )
    };
}

/// What a row says about a turn.
#[derive(Clone, Copy)]
pub(super) enum Told {
    /// It was done.
    Done,
    /// The statement has left alone what is, or was, this turn's claim.
    Own {
        /// Whether its lease runs.
        held: bool,
        /// If the lease has run out, how long it was held.
        held_for: Option<Duration>,
        /// Whether another call has carried it on.
        resumed: bool,
    },
    /// The event is not this turn's.
    Other,
}

impl Told {
    /// Why a claim that runs was left alone. If the row has no reason, it was
    /// written in between, and is asked again.
    pub(super) fn left_alone<T>(self) -> Verdict<Kept<T>> {
        match self {
            Self::Own { resumed: true, .. } => Verdict::Decided(Kept::Resumed),
            Self::Own { held: false, held_for, .. } => Verdict::Decided(Kept::LeaseLost(held_for)),
            Self::Own { .. } => Verdict::Again,
            Self::Done | Self::Other => Verdict::Decided(Kept::ClaimLost),
        }
    }
}

pub(super) fn told(row: &PgRow) -> Result<Told, StoreError> {
    let read = || {
        let (done, own): (bool, Option<bool>) = (row.try_get("done")?, row.try_get("own")?);
        Ok(match (done, own) {
            (true, _) => Told::Done,
            (false, Some(true)) => {
                let held_micros: Option<i64> = row.try_get("held_micros")?;
                Told::Own {
                    held: row.try_get("held")?,
                    held_for: held_micros.map(|held| Duration::from_micros(held.unsigned_abs())),
                    resumed: row.try_get("resumed")?,
                }
            }
            (false, _) => Told::Other,
        })
    };
    read().map_err(|error: sqlx::Error| StoreError::fault(error))
}

/// Turns as a statement's arrays.
pub(super) struct Turns<'a> {
    teams: Vec<&'a str>,
    events: Vec<&'a str>,
    requests: Vec<Uuid>,
    attempts: Vec<i32>,
    sessions: Vec<Option<&'a str>>,
    locks: Vec<Option<i64>>,
    leases: Vec<Option<Uuid>>,
}

impl<'a> Turns<'a> {
    pub(super) fn of(locks: Locks, turns: impl Iterator<Item = &'a TurnId> + Clone) -> Self {
        let sessions = turns.clone().map(|turn| turn.lease.as_ref());
        let key = |lease: Option<&'a (SessionKey, LeaseId)>| lease.map(|(key, _)| key);
        Self {
            teams: turns.clone().map(|turn| turn.event.team.as_str()).collect(),
            events: turns.clone().map(|turn| turn.event.event.as_str()).collect(),
            requests: turns.clone().map(|turn| turn.request.as_uuid()).collect(),
            attempts: turns.map(|turn| small(turn.attempt)).collect(),
            sessions: sessions.clone().map(|lease| Some(key(lease)?.session.as_str())).collect(),
            locks: sessions.clone().map(|lease| Some(locks.session(key(lease)?))).collect(),
            leases: sessions.map(|lease| Some(lease?.1.as_uuid())).collect(),
        }
    }

    /// Binds all, and what is `seventh`.
    pub(super) fn bind<'q>(
        &'q self,
        statement: Statement<'q>,
        seventh: impl FnOnce(Statement<'q>) -> Statement<'q>,
    ) -> Statement<'q> {
        let first = statement
            .bind(&self.teams)
            .bind(&self.sessions)
            .bind(&self.locks)
            .bind(&self.leases)
            .bind(&self.events);
        seventh(first).bind(&self.requests).bind(&self.attempts)
    }
}
