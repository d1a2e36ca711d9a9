//! Letting turns run on.

use std::time::Duration;

use sqlx::Row as _;
use uuid::Uuid;

use super::{
    any_event, any_session,
    own::{Told, Turns, told},
};
use crate::{
    domain::{EventRow, Interruption, Kept, Prolong, limits::CLAIM_MEMORY},
    store::{
        Prolonged, StoreError, Verdict,
        postgres::{
            Link,
            answers::slot,
            events::interval,
            steps::{lease_ttl, run_on},
        },
    },
};

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

/// How [`PROLONG`] spells an interruption.
const fn why(interruption: Interruption) -> &'static str {
    match interruption {
        Interruption::Broken => "broken",
        Interruption::Drained => "drained",
    }
}
