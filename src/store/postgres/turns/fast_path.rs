//! The short statements on turns: they begin and end most of them, and leave the others to the
//! rules.

use std::collections::HashMap;

use sqlx::{
    Row as _,
    postgres::{PgRow, types::PgInterval},
};
use uuid::Uuid;

use super::{
    Unanswered,
    arrays::{BeginRow, Begins, TurnRow, Turns},
};
use crate::{
    domain::{
        Begin, Begun, Claim, EventRow, FencingToken, Finish, FinishAs, Labels, Lease, LeaseId,
        Obtained, ProcessedBy, StoredEvent, Timestamp, Ttl, TurnId,
    },
    rules::Operation as _,
    store::{
        StoreError, TurnBatch, Verdict,
        postgres::{
            Handle, Locks,
            events::interval,
            fence::{new_token, next_token, token_of},
            handle::Statement,
            line::{Fetched, Repeat},
            ordinality::place,
            sessions::sql::or_take_over,
            timestamp::PgTimestamp,
        },
    },
};

/// Takes the sessions and claims the events of turns whose event has no row and whose session is
/// free: the usual case. Its parameters are those of [`Begins`].
///
/// `IS TRUE` keeps the planner from a join. It expects one row, and would compare each row with
/// each.
macro_rules! begin_new {
    () => {
        concat!(
            "new AS MATERIALIZED (
    SELECT a.*, COALESCE($1::timestamptz, clock_timestamp()) AS at
    FROM unnest($2::text[], $3::text[], $4::uuid[], $5::interval[], $6::text[],
            $7::text[], $8::bigint[], $9::uuid[], $10::uuid[], $11::text[], $12::bigint[],
            $13::text[], $15::uuid[])
        AS a (team_id, event_id, request_id, claim_ttl, holder,
            session_id, lock_key, lease_id, session_request, epic_id, ttl_micros, labels, digest)
    WHERE (SELECT true FROM processed_events p
            WHERE p.team_id = a.team_id AND p.event_id = a.event_id) IS NULL
        AND pg_try_advisory_xact_lock(a.lock_key)
), taken AS (
    INSERT INTO oncegate_sessions AS s (team_id, session_id, fencing_token, lease_id, request_id,
        holder, labels, epic_id, acquired_at, expires_at, ttl_micros)
    SELECT m.team_id, m.session_id, ",
            new_token!("m.at"),
            ", m.lease_id, m.session_request, m.holder, m.labels, m.epic_id, m.at,
        m.at + m.ttl_micros * interval '1 microsecond', m.ttl_micros
    FROM new m ",
            or_take_over!(),
            " RETURNING lease_id, fencing_token, epic_id, acquired_at, expires_at
), claimed AS (
    INSERT INTO processed_events (team_id, event_id, processed_at, expires_at, request_id,
        claimed_until, attempt, holder, digest, sweep_after)
    SELECT m.team_id, m.event_id, m.at, m.at + $14::interval, m.request_id,
        m.at + m.claim_ttl, 1, m.holder, m.digest, ",
            sweep_after!("m.at + $14::interval", "$14::interval < interval '24 hours'"),
            "
    FROM new m WHERE (m.lease_id IN (SELECT lease_id FROM taken)) IS TRUE
    ORDER BY m.team_id COLLATE \"C\", m.event_id COLLATE \"C\"
    ON CONFLICT DO NOTHING
    RETURNING request_id, processed_at
)"
        )
    };
}

/// Returns which leases `begin_new` took, and which events it claimed. There may be a lease without
/// its event.
macro_rules! begun {
    () => {
        "
SELECT NULL::bigint AS ord, lease_id, fencing_token, epic_id, acquired_at, expires_at,
    COALESCE($1::timestamptz, clock_timestamp()) AS at,
    NULL::uuid AS claimed, NULL::timestamptz AS claimed_at
FROM taken
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, request_id, processed_at FROM claimed
"
    };
}

/// Ends turns with success whose event has one name, whose claim and lease run, and for whose
/// session no caller waits. The parameters of its arrays are given by name, because a `begin_new`
/// beside it has others.
macro_rules! succeed {
    ($teams:literal, $sessions:literal, $locks:literal, $leases:literal, $events:literal,
        $ttls:literal, $requests:literal, $attempts:literal, $results:literal, $types:literal) => {
        concat!(
            "mine AS MATERIALIZED (
    SELECT a.*, p.claimed_until
    FROM unnest(",
            $teams,
            "::text[], ",
            $sessions,
            "::text[], ",
            $locks,
            "::bigint[], ",
            $leases,
            "::uuid[], ",
            $events,
            "::text[], ",
            $ttls,
            "::interval[], ",
            $requests,
            "::uuid[], ",
            $attempts,
            "::integer[], ",
            $results,
            "::bytea[], ",
            $types,
            "::text[]) WITH ORDINALITY
        AS a (team_id, session_id, lock_key, lease_id, event_id, ttl, request_id, attempt,
            result, result_type, ord)
    CROSS JOIN LATERAL (
        SELECT * FROM processed_events e
        WHERE e.team_id = a.team_id AND e.event_id = a.event_id OFFSET 0) AS p
    WHERE p.request_id = a.request_id AND p.attempt = a.attempt AND p.names IS NULL
        AND ",
            running!("p", "COALESCE($1::timestamptz, clock_timestamp())"),
            "
        AND pg_try_advisory_xact_lock(a.lock_key)
), ended AS (
    UPDATE oncegate_sessions s
    SET released = true, expires_at = COALESCE($1::timestamptz, clock_timestamp())
    FROM mine m
    WHERE ",
            same_key!("session_id", "s", "m"),
            " AND s.lease_id = m.lease_id AND NOT s.released AND NOT s.waiting
        AND s.expires_at > COALESCE($1::timestamptz, clock_timestamp())
    RETURNING m.*, s.expires_at AS at
), done AS (
    UPDATE processed_events e
    SET claimed_until = NULL, processed_at = m.at, expires_at = m.at + m.ttl, result = m.result,
        result_type = m.result_type, detail = NULL, interrupted = NULL, sweep_after = ",
            sweep_after!("m.at + m.ttl", "m.ttl < interval '24 hours'"),
            "
    FROM (SELECT * FROM ended ORDER BY team_id COLLATE \"C\", event_id COLLATE \"C\") AS m
    WHERE ",
            same_key!("event_id", "e", "m"),
            " AND e.request_id = m.request_id AND e.attempt = m.attempt
        AND e.claimed_until = m.claimed_until
    RETURNING m.ord, m.at, m.claimed_until
)"
        )
    };
}

/// Returns which turns `succeed` ended. If a claim has lapsed meanwhile, because the statement
/// waited for a row, or if the event is another's, the statement fails, and the lease does not end
/// either. $before and $after are the columns before and after the moment.
macro_rules! succeeded {
    ($before:literal, $after:literal) => {
        concat!(
            "
SELECT ord, ",
            $before,
            "at",
            $after,
            " FROM done
WHERE 1 / (claimed_until > COALESCE($1::timestamptz, clock_timestamp()))::integer = 1
UNION ALL
SELECT NULL, ",
            $before,
            "NULL",
            $after,
            " WHERE 1 / ((SELECT count(*) FROM ended) = (SELECT count(*) FROM done))::integer = 0
"
        )
    };
}

pub(in super::super) const BEGIN_NEW: &str = concat!("WITH ", begin_new!(), begun!());

pub(in super::super) const SUCCEED: &str = concat!(
    "WITH ",
    succeed!("$2", "$3", "$4", "$5", "$6", "$7", "$8", "$9", "$10", "$11"),
    succeeded!("", "")
);

/// [`BEGIN_NEW`] and [`SUCCEED`] in one statement, and so one commit. They are never about
/// the same event or session.
pub(in super::super) const BEGIN_AND_SUCCEED: &str = concat!(
    "WITH ",
    begin_new!(),
    ", ",
    succeed!("$16", "$17", "$18", "$19", "$20", "$21", "$22", "$23", "$24", "$25"),
    begun!(),
    "UNION ALL",
    succeeded!("NULL, NULL, NULL, NULL, NULL, ", ", NULL, NULL")
);

impl Handle {
    /// Begins turns of new events of one name in free sessions, and ends turns with success, by
    /// one short statement. Notes in `batch` which it decided. If the statement's answer was lost,
    /// answers all that it may have done.
    pub(super) async fn begin_and_succeed(
        &mut self,
        begins: &[&Begin],
        finishes: &[&Finish],
        batch: &mut TurnBatch,
    ) -> Result<Unanswered, StoreError> {
        let (beginning, succeeding) =
            (Beginning::of(self.locks, begins), Succeeding::of(self.locks, finishes));
        let now = self.now();
        if beginning.places.is_empty() && succeeding.places.is_empty() {
            return Ok(Unanswered::default());
        }
        let statement = || match (&*beginning.places, &*succeeding.places) {
            (_, []) => beginning.bind(sqlx::query(BEGIN_NEW).bind(now)),
            ([], _) => succeeding.bind(sqlx::query(SUCCEED).bind(now)),
            _ => succeeding.bind(beginning.bind(sqlx::query(BEGIN_AND_SUCCEED).bind(now))),
        };
        let Fetched { rows, is_after_loss, .. } = self.run(Repeat::NotIfLost, statement).await?;
        if is_after_loss {
            for row in &beginning.rows {
                row.begin.spend();
            }
            return Ok(Unanswered { begins: beginning.places, finishes: succeeding.places });
        }
        let (mut taken, mut claimed) = (Vec::new(), HashMap::new());
        for row in &rows {
            match row.try_get::<Option<i64>, _>("ord").map_err(StoreError::internal)? {
                Some(ord) => {
                    let at: PgTimestamp = row.try_get("at").map_err(StoreError::internal)?;
                    succeeding.done(ord, at.0, batch)?;
                }
                None => read(row, &mut taken, &mut claimed).map_err(StoreError::internal)?,
            }
        }
        beginning.done(taken, &claimed, batch)?;
        Ok(Unanswered::default())
    }
}

/// Leases that were taken, with the columns that the caller does not know, and the time of the
/// answer.
type Taken = Vec<(Lease, Timestamp)>;
/// When events were claimed, by attempt.
type Claimed = HashMap<Uuid, Timestamp>;

/// Reads a row about turns that were to begin.
fn read(row: &PgRow, taken: &mut Taken, claimed: &mut Claimed) -> Result<(), sqlx::Error> {
    let time = |column| row.try_get::<PgTimestamp, _>(column).map(|time| time.0);
    if let Some(request) = row.try_get::<Option<Uuid>, _>("claimed")? {
        claimed.insert(request, time("claimed_at")?);
        return Ok(());
    }
    let (at, expire_time) = (time("at")?, time("expires_at")?);
    let lease = Lease {
        id: LeaseId::from_uuid(row.try_get("lease_id")?),
        token: FencingToken(row.try_get("fencing_token")?),
        holder: String::new(),
        acquire_time: time("acquired_at")?,
        expire_time,
        remaining: expire_time.since(at),
        epic: row.try_get("epic_id")?,
        labels: Labels::default(),
    };
    taken.push((lease, at));
    Ok(())
}

/// Turns that are to begin, in a session and of an event of one name, and their places in the batch.
struct Beginning<'a> {
    places: Vec<usize>,
    rows: Vec<BeginRow<'a>>,
    arrays: Begins<'a>,
}

impl<'a> Beginning<'a> {
    fn of(locks: Locks, begins: &[&'a Begin]) -> Self {
        let row = |(place, &begin): (usize, &&'a Begin)| {
            let acquire = begin.session.as_ref().filter(|_| begin.event.aliases.is_empty())?;
            (!acquire.lease.is_spent()).then_some((place, BeginRow { begin, acquire }))
        };
        let (places, rows): (Vec<usize>, Vec<BeginRow<'a>>) =
            begins.iter().enumerate().filter_map(row).unzip();
        let arrays = Begins::of(locks, &rows);
        Self { places, rows, arrays }
    }

    fn bind<'q>(&'q self, statement: Statement<'q>) -> Statement<'q> {
        self.arrays.bind(statement)
    }

    /// Notes which of them were granted. One that took its session without its event goes on with
    /// the lease by the rules, or gives it back.
    fn done(
        &self,
        taken: Taken,
        claimed: &Claimed,
        batch: &mut TurnBatch,
    ) -> Result<(), StoreError> {
        let own: HashMap<LeaseId, (&BeginRow<'_>, usize)> = self
            .rows
            .iter()
            .zip(&self.places)
            .map(|(row, place)| (row.acquire.lease.id(), (row, *place)))
            .collect();
        for (lease, at) in taken {
            let found = own.get(&lease.id);
            let &(&BeginRow { begin, acquire }, place) =
                found.ok_or_else(|| StoreError::internal("unexpected row in the answer"))?;
            let Some(&claim_time) = claimed.get(&begin.request.as_uuid()) else {
                begin.spend();
                continue;
            };
            let (holder, labels) = (acquire.holder.clone(), acquire.labels.clone());
            let lapse_time = claim_time.after(begin.claim_ttl);
            let claim = Claim {
                request: begin.request,
                holder: begin.holder.clone(),
                attempt: 1,
                claim_time,
                lapse_time,
                remaining: lapse_time.since(at),
                digest: begin.event.digest,
                detail: None,
            };
            let lease = Some(Lease { holder, labels, ..lease });
            batch.begins[place] =
                Verdict::Decided(Begun::Granted { claim, lease, obtained: Obtained::Granted });
        }
        Ok(())
    }
}

/// Turns in a session that are to end with success, and their places in the batch.
struct Succeeding<'a> {
    places: Vec<usize>,
    ended: Vec<(&'a TurnId, Ttl)>,
    turns: Turns<'a>,
    results: Vec<&'a Vec<u8>>,
    result_types: Vec<Option<&'a str>>,
    ttls: Vec<PgInterval>,
}

impl<'a> Succeeding<'a> {
    fn of(locks: Locks, finishes: &[&'a Finish]) -> Self {
        let (mut places, mut ended, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        let (mut results, mut result_types, mut ttls) = (Vec::new(), Vec::new(), Vec::new());
        for (place, Finish { turn, ending, unless_resumed, .. }) in finishes.iter().enumerate() {
            if let (FinishAs::Succeeded(result, ttl), Some((key, lease)), None) =
                (ending, &turn.lease, unless_resumed)
            {
                places.push(place);
                ended.push((turn, *ttl));
                rows.push(TurnRow { turn, key, lease: *lease });
                results.push(&result.bytes);
                result_types.push(result.type_name.as_deref());
                ttls.push(interval(ttl.span()));
            }
        }
        let turns = Turns::of(locks, &rows);
        Self { places, ended, turns, results, result_types, ttls }
    }

    fn bind<'q>(&'q self, statement: Statement<'q>) -> Statement<'q> {
        self.turns
            .bind(statement, |query| query.bind(&self.ttls))
            .bind(&self.results)
            .bind(&self.result_types)
    }

    /// Notes that the one at `ord` has ended at `at`.
    fn done(&self, ord: i64, at: Timestamp, batch: &mut TurnBatch) -> Result<(), StoreError> {
        let place = place(self.places.len(), Ok(ord))?;
        let (turn, ttl) = self.ended[place];
        let event = StoredEvent {
            process_time: at,
            expire_time: at.after(ttl),
            request: Some(turn.request),
            by: ProcessedBy::Turn(turn.attempt),
            detail: None,
            // A finish answers without it.
            digest: None,
        };
        batch.finishes[self.places[place]] = Verdict::Decided(Ok(Some(EventRow::Processed(event))));
        Ok(())
    }
}
