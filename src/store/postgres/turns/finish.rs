//! Ending turns, however.

use sqlx::{Row as _, postgres::types::PgInterval};
use uuid::Uuid;

use super::{
    any_event, any_session,
    own::{Told, Turns, told},
    small,
};
use crate::{
    domain::{Detail, Ending, EventRow, Finish, Kept, limits::CLAIM_MEMORY},
    store::{
        StoreError, Turned, Verdict,
        postgres::{
            Link,
            answers::place,
            events::interval,
            fence::{new_token, next_token, token_of},
            sessions::sql::hand_on,
        },
    },
};

/// Ends turns. $10 says how: see [`code`]. What settles the event has a TTL ($12). $7: the
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
