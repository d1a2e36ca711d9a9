//! Ending turns, however, and letting them run on.

use std::time::Duration;

use sqlx::{
    Row as _,
    postgres::{PgRow, types::PgInterval},
};
use uuid::Uuid;

use super::{any_event, any_session, small};
use crate::{
    domain::{
        Detail, Ending, EventRow, Finish, Interruption, Kept, LeaseId, Prolong, SessionKey, TurnId,
        limits::CLAIM_MEMORY,
    },
    store::{
        Prolonged, StoreError, Turned, Verdict,
        postgres::{
            Link, Locks,
            answers::{place, slot},
            events::interval,
            fence::{new_token, next_token, token_of},
            link::Statement,
            sessions::sql::hand_on,
            steps::{lease_ttl, run_on},
        },
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

/// Reads what there is to tell of turns that are not in $done: the event, whether the
/// lease runs or how long it was held when it ran out, and by $resumed whether another call has carried them on.
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

/// Ends turns, $10 tells how: see [`code`]. What settles the event has a TTL ($12). $7: the
/// replica that asks. $14: for how long attempts are counted. $15: the streams of those
/// that end only if nobody has carried them on since, by renewing the lease alone or both.
pub(in super::super) const FINISH: &str = concat!(
    hand_on!(concat!(
        turns!(
            ", $10::integer[], $11::bytea[], $12::interval[], $13::integer[], $15::uuid[],
            $16::text[], $17::text[]",
            ", ending, result, ttl, max_attempts, unless_resumed, result_type, detail",
            concat!(" AND ", unless_resumed!("t", "q.unless_resumed"))
        ),
        ", done AS (
    UPDATE processed_events e
    SET claimed_until = CASE
            WHEN q.ttl IS NOT NULL OR q.ending = 0 AND ",
        counted!("e"),
        " >= q.max_attempts
            THEN NULL ELSE q.at END,
        attempt = e.attempt - (q.ending = 2)::integer, interrupted = NULL,
        uncounted = NULLIF(COALESCE(e.uncounted, 0) + (q.ending = 3)::integer, 0),
        processed_at = q.at, expires_at = q.at + COALESCE(q.ttl, $14::interval),
        result = q.result, result_type = q.result_type,
        rejected_at = CASE WHEN q.ending = 4 THEN q.at END,
        detail = CASE WHEN q.ending IN (2, 3) THEN e.detail ELSE q.detail END
    FROM asked q
    WHERE ",
        same_key!("event_id", "e", "q"),
        " AND e.request_id = q.request_id AND e.attempt = q.attempt
        AND ",
        running!("e", "COALESCE($1::timestamptz, clock_timestamp())"),
        " AND ",
        unless_resumed!("e", "q.unless_resumed"),
        " AND (q.ord IN (SELECT ord FROM there)) IS TRUE
        AND (q.session_id IS NULL OR q.ord IN (SELECT ord FROM held))
    RETURNING q.ord, e.*
), ",
        aliases!(
            "done",
            "claimed_until = d.claimed_until, attempt = d.attempt,
        processed_at = d.processed_at, expires_at = d.expires_at, result = d.result,
        result_type = d.result_type, rejected_at = d.rejected_at, detail = d.detail,
        uncounted = d.uncounted, interrupted = d.interrupted"
        ),
        ", mine AS MATERIALIZED (
    SELECT q.team_id, q.session_id, q.lease_id, NULL::uuid AS unless_resumed, q.ord, q.at
    FROM asked q JOIN done USING (ord) WHERE q.session_id IS NOT NULL
)"
    )),
    "
SELECT d.ord, true AS done, true AS held, q.at, ",
    event_columns!("d"),
    ", true AS own, false AS resumed, NULL::bigint AS held_micros, ",
    session_columns!("c", "c.ticket IS NOT NULL", "NULL::uuid[] AS queue"),
    ", c.given_back IS TRUE OR q.session_id IS NULL AS given_back,
    CASE WHEN c.replica <> $7::uuid THEN pg_notify(",
    hint_channel!(),
    ", c.lease_id::text) END AS notified
FROM done d JOIN asked q USING (ord) LEFT JOIN changed c USING (ord)
UNION ALL
SELECT *, NULL FROM (",
    others!(
        "done",
        concat!(
            "NOT (",
            unless_resumed!("e", "q.unless_resumed"),
            " AND ",
            unless_resumed!("t", "q.unless_resumed"),
            ")"
        )
    ),
    ") AS others"
);

/// Lets turns run on, unless another stream than the one in $13 has taken them over. $12: how
/// long a lease may be held in all. $14: why that stream keeps them no longer.
pub(in super::super) const PROLONG: &str = concat!(
    turns!(
        ", $10::interval[], $11::bigint[], $13::uuid[], $14::text[]",
        ", claim_ttl, ttl_micros, stream, interruption",
        ""
    ),
    ", own AS MATERIALIZED (
    SELECT q.ord FROM asked q CROSS JOIN LATERAL (
        SELECT FROM processed_events p
        WHERE p.team_id = q.team_id AND p.event_id = q.event_id AND p.request_id = q.request_id
            AND p.attempt = q.attempt AND ",
    running!("p", "COALESCE($1::timestamptz, clock_timestamp())"),
    " AND NOT ",
    is_replaced!("p", "q.stream"),
    "
        FOR UPDATE) AS e
    WHERE (q.ord IN (SELECT ord FROM there)) IS TRUE
        AND (q.session_id IS NULL OR q.ord IN (SELECT ord FROM held))
), claims AS (
    UPDATE processed_events e
    SET claimed_until = q.at + q.claim_ttl, expires_at = q.at + $7::interval,
        processed_at = LEAST(e.processed_at, q.at),
        interrupted = CASE WHEN q.interruption = 'drained' OR q.interruption = 'broken' AND ",
    unless_resumed!("e", "q.stream"),
    " THEN e.attempt END, ",
    renewed_by!("e", "q.stream"),
    "
    FROM asked q JOIN own USING (ord)
    WHERE ",
    same_key!("event_id", "e", "q"),
    "
    RETURNING q.ord, e.*
), ",
    aliases!(
        "claims",
        "claimed_until = d.claimed_until, expires_at = d.expires_at,
        processed_at = d.processed_at, repeated = d.repeated, resumed_by = d.resumed_by,
        interrupted = d.interrupted"
    ),
    ", leases AS (
    UPDATE oncegate_sessions s
    SET (acquired_at, expires_at, ttl_micros) = (
        SELECT ",
    run_on!("$12"),
    ", m.ttl_micros FROM (SELECT m.at) AS clock)
    FROM asked m JOIN own USING (ord)
    WHERE ",
    same_key!("session_id", "s", "m"),
    "
    RETURNING m.ord, s.*
)
SELECT c.ord, true AS done, true AS held, q.at, ",
    event_columns!("c"),
    ", true AS own, false AS resumed, NULL::bigint AS held_micros, ",
    session_columns!("l", "true", "NULL::uuid[] AS queue"),
    ", false AS given_back
FROM claims c JOIN asked q USING (ord) LEFT JOIN leases l USING (ord)
UNION ALL ",
    others!("own", is_replaced!("e", "q.stream")),
);

impl Link {
    /// Ends turns, however; notes in `turned` what becomes of their sessions.
    pub(super) async fn finish_any(
        &mut self,
        asked: &[&Finish],
        turned: &mut Turned,
    ) -> Result<Vec<Verdict<Kept<Option<EventRow>>>>, StoreError> {
        let turns = Turns::of(self.locks, asked.iter().map(|finish| &finish.turn));
        let ends = Ends::of(asked);
        let most: Vec<i32> = asked.iter().map(|finish| small(finish.turn.max_attempts)).collect();
        let streams: Vec<Option<Uuid>> =
            asked.iter().map(|finish| Some(finish.unless_resumed?.as_uuid())).collect();
        let (now, replica) = (self.now(), self.replica);
        let rows = self
            .fetch(|| {
                turns
                    .bind(sqlx::query(FINISH).bind(now), |query| query.bind(replica))
                    .bind(&ends.codes)
                    .bind(&ends.results)
                    .bind(&ends.ttls)
                    .bind(&most)
                    .bind(interval(CLAIM_MEMORY))
                    .bind(&streams)
                    .bind(&ends.result_types)
                    .bind(&ends.details)
            })
            .await?;
        let mut verdicts = vec![Verdict::Again; asked.len()];
        for row in rows {
            let event = any_event(&row)?;
            let told = told(&row)?;
            let place = place(asked.len(), row.try_get("ord"))?;
            let finish = asked[place];
            if matches!(told, Told::Done) {
                turned.handed.extend(any_session(&row)?.filter(|session| session.live));
                // Another may have written the session's row in between.
                let given_back: bool = row.try_get("given_back").map_err(StoreError::fault)?;
                turned.idle.extend(finish.turn.lease.clone().filter(|_| !given_back));
                let processed = event.filter(|event| matches!(event, EventRow::Processed(_)));
                verdicts[place] = Verdict::Decided(Kept::Done(processed));
                continue;
            }
            let was_done = matches!(told, Told::Own { .. })
                && event.as_ref().is_some_and(|event| finish.was_done(event));
            if was_done {
                // Its answer was lost, and perhaps what was to be given back.
                turned.idle.extend(finish.turn.lease.clone());
            }
            verdicts[place] = match event {
                Some(EventRow::Processed(event)) if was_done => {
                    Verdict::Decided(Kept::Done(Some(EventRow::Processed(event))))
                }
                Some(_) if was_done => Verdict::Decided(Kept::Done(None)),
                Some(EventRow::Claimed(claim)) if !claim.remaining.is_zero() => told.left_alone(),
                _ => Verdict::Decided(Kept::ClaimLost),
            };
        }
        Ok(verdicts)
    }

    /// Lets turns run on.
    pub(super) async fn prolong(
        &mut self,
        asked: &[&Prolong],
        max_hold: Duration,
    ) -> Result<Vec<Verdict<Prolonged>>, StoreError> {
        let turns = Turns::of(self.locks, asked.iter().map(|prolong| &prolong.turn));
        let claims: Vec<_> = asked.iter().map(|turn| interval(turn.claim_ttl.span())).collect();
        let ttls: Vec<i64> = asked.iter().map(|turn| turn.lease_ttl.as_micros()).collect();
        let streams: Vec<Option<Uuid>> =
            asked.iter().map(|turn| Some(turn.stream?.as_uuid())).collect();
        let interruptions: Vec<Option<&str>> =
            asked.iter().map(|turn| turn.interruption.map(why)).collect();
        let now = self.now();
        let rows = self
            .fetch(|| {
                turns
                    .bind(sqlx::query(PROLONG).bind(now), |query| {
                        query.bind(interval(CLAIM_MEMORY))
                    })
                    .bind(&claims)
                    .bind(&ttls)
                    .bind(interval(max_hold))
                    .bind(&streams)
                    .bind(&interruptions)
            })
            .await?;
        let mut verdicts = vec![Verdict::Again; asked.len()];
        for row in rows {
            let event = any_event(&row)?;
            let verdict = slot(&mut verdicts, row.try_get("ord"))?;
            *verdict = match (told(&row)?, event) {
                (Told::Done, Some(EventRow::Claimed(claim))) => {
                    let lease = any_session(&row)?.map(|session| session.lease);
                    Verdict::Decided(Kept::Done((claim, lease)))
                }
                (told, Some(EventRow::Claimed(claim))) if !claim.remaining.is_zero() => {
                    told.left_alone()
                }
                _ => Verdict::Decided(Kept::ClaimLost),
            };
        }
        Ok(verdicts)
    }
}

/// What a row tells of a turn.
#[derive(Clone, Copy)]
enum Told {
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
    /// Why a claim that runs was left alone. Where the row tells of no reason, it was
    /// written in between, and is asked again.
    fn left_alone<T>(self) -> Verdict<Kept<T>> {
        match self {
            Self::Own { resumed: true, .. } => Verdict::Decided(Kept::Resumed),
            Self::Own { held: false, held_for, .. } => Verdict::Decided(Kept::LeaseLost(held_for)),
            Self::Own { .. } => Verdict::Again,
            Self::Done | Self::Other => Verdict::Decided(Kept::ClaimLost),
        }
    }
}

fn told(row: &PgRow) -> Result<Told, StoreError> {
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

/// How turns end, as a statement's arrays.
#[derive(Default)]
struct Ends<'a> {
    codes: Vec<i32>,
    results: Vec<Option<&'a Vec<u8>>>,
    result_types: Vec<Option<&'a str>>,
    ttls: Vec<Option<PgInterval>>,
    details: Vec<Option<&'a str>>,
}

impl<'a> Ends<'a> {
    fn of(asked: &[&'a Finish]) -> Self {
        let mut ends = Self::default();
        for finish in asked {
            let (mut result, mut ttl, mut detail) = (None, None, None);
            match &finish.ending {
                Ending::Succeeded(left, lives) => (result, ttl) = (Some(&**left), Some(lives)),
                Ending::Rejected(why, lives) => (detail, ttl) = (why.as_ref(), Some(lives)),
                Ending::Failed(why) => detail = why.as_ref(),
                Ending::Broken | Ending::Abandoned => {}
            }
            ends.codes.push(code(&finish.ending));
            ends.results.push(result.map(|result| &result.bytes));
            ends.result_types.push(result.and_then(|result| result.type_name.as_deref()));
            ends.ttls.push(ttl.map(|ttl| interval(ttl.span())));
            ends.details.push(detail.map(Detail::as_str));
        }
        ends
    }
}

/// How [`FINISH`] spells an ending.
const fn code(ending: &Ending) -> i32 {
    match ending {
        Ending::Failed(_) => 0,
        Ending::Succeeded(..) => 1,
        Ending::Abandoned => 2,
        Ending::Broken => 3,
        Ending::Rejected(..) => 4,
    }
}

/// How [`PROLONG`] spells an interruption.
const fn why(interruption: Interruption) -> &'static str {
    match interruption {
        Interruption::Broken => "broken",
        Interruption::Drained => "drained",
    }
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
