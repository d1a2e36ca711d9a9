//! Ending turns in `SQLite`.

use std::time::Duration;

use sqlx::SqliteConnection;

use super::{Event, Own, find_own, own};
use crate::{
    domain::{
        Attempts, By, Claim, Detail, Ending, EventRow, Finish, Kept, SessionRow, StoredEvent,
        Timestamp, TurnResult, limits::CLAIM_MEMORY,
    },
    store::{
        StoreError,
        sqlite::{
            classify, hex,
            sessions::{pass_on, write},
        },
    },
};

pub(in super::super) const END: &str = "
UPDATE processed_events
SET processed_at = $5, expires_at = $6, claimed_until = $7, attempt = $8, result = $9,
    result_type = $10, rejected_at = $11, detail = $12, uncounted = $13, interrupted = NULL
WHERE team_id = $1 AND event_id IN (SELECT value FROM json_each($2)) AND request_id = $3
    AND claimed_until = $4
";

pub(super) async fn finish_turn(
    batch: &mut SqliteConnection,
    finish: &Finish,
    now: Timestamp,
    handed: &mut Vec<SessionRow>,
) -> Result<Kept<Option<EventRow>>, StoreError> {
    let Finish { turn, ending, unless_resumed } = finish;
    let Own { event, claim, session } = match own(batch, turn, now).await? {
        Kept::Done(own) => own,
        Kept::LeaseLost(held) => return Ok(Kept::LeaseLost(held)),
        Kept::Resumed => return Ok(Kept::Resumed),
        Kept::ClaimLost => {
            let event = find_own(batch, turn, now).await?.map(|event| event.row);
            return Ok(match event.filter(|event| event.is_of(turn.request)) {
                Some(event) if finish.was_done(&event) => Kept::Done(handled(event)),
                _ => Kept::ClaimLost,
            });
        }
    };
    if let Some(stream) = *unless_resumed {
        let of_lease = session.as_ref().map(|(_, session)| session.resumed);
        if ![Some(event.resumed), of_lease].into_iter().flatten().all(|by| by.leaves_to(stream)) {
            return Ok(Kept::Resumed);
        }
    }
    let mut ended = Ended::at(now, event.attempts, claim.detail);
    match ending {
        Ending::Succeeded(result, ttl) => {
            (ended.expires, ended.until) = (now.after(*ttl), None);
            (ended.result, ended.detail) = (Some(&**result), None);
        }
        Ending::Rejected(detail, ttl) => {
            (ended.expires, ended.until) = (now.after(*ttl), None);
            (ended.is_rejected, ended.detail) = (true, detail.clone());
        }
        Ending::Failed(detail) => {
            ended.detail.clone_from(detail);
            if ended.attempts.are_spent(turn.max_attempts) {
                ended.until = None;
            }
        }
        Ending::Broken => ended.attempts.uncounted += 1,
        Ending::Abandoned => ended.attempts.claimed -= 1,
    }
    let row = end(batch, &turn.event.team, &event, ended).await?;
    if let Some((key, mut session)) = session {
        session.release(now);
        if session.row.waiting && pass_on(batch, key, &mut session, now).await? {
            handed.push(session.row.clone());
        }
        write(batch, &[(key, session)]).await?;
    }
    Ok(Kept::Done(handled(row)))
}

/// An event's row, if it is handled.
fn handled(event: EventRow) -> Option<EventRow> {
    Some(event).filter(|event| matches!(event, EventRow::Processed(_)))
}

/// How a claim ended.
pub(super) struct Ended<'a> {
    processed: Timestamp,
    expires: Timestamp,
    /// When it did; none where the event is handled.
    pub(super) until: Option<Timestamp>,
    attempts: Attempts,
    result: Option<&'a TurnResult>,
    is_rejected: bool,
    detail: Option<Detail>,
}

impl Ended<'_> {
    /// One that ends `now`, and leaves the event to another run.
    pub(super) fn at(now: Timestamp, attempts: Attempts, detail: Option<Detail>) -> Self {
        Self {
            processed: now,
            expires: now.plus(CLAIM_MEMORY),
            until: Some(now),
            attempts,
            result: None,
            is_rejected: false,
            detail,
        }
    }
}

/// Writes how a claim ended, under all of its names. Answers what is there then.
pub(super) async fn end(
    batch: &mut SqliteConnection,
    team: &str,
    event: &Event,
    ended: Ended<'_>,
) -> Result<EventRow, StoreError> {
    let EventRow::Claimed(claim) = &event.row else {
        return Err(StoreError::fault("the row is not a claim"));
    };
    let Ended { processed, expires, until, attempts, result, is_rejected, detail } = ended;
    let Attempts { claimed: attempt, uncounted, .. } = attempts;
    sqlx::query(END)
        .bind(team)
        .bind(&event.names)
        .bind(hex(claim.request.as_uuid()))
        .bind(claim.lapse_time.as_micros())
        .bind(processed.as_micros())
        .bind(expires.as_micros())
        .bind(until.map(Timestamp::as_micros))
        .bind(attempt)
        .bind(result.map(|result| &result.bytes))
        .bind(result.and_then(|result| result.type_name.as_deref()))
        .bind(is_rejected.then_some(processed.as_micros()))
        .bind(detail.as_ref().map(Detail::as_str))
        .bind(Some(uncounted).filter(|uncounted| *uncounted > 0))
        .execute(batch)
        .await
        .map_err(classify)?;
    Ok(match until {
        Some(lapse_time) => EventRow::Claimed(Claim {
            attempt,
            claim_time: processed,
            lapse_time,
            remaining: Duration::ZERO,
            detail,
            ..claim.clone()
        }),
        None => EventRow::Processed(StoredEvent {
            process_time: processed,
            expire_time: expires,
            request: Some(claim.request),
            by: By::of_row(Some(attempt), result.is_some(), is_rejected),
            detail,
            digest: claim.digest,
        }),
    })
}
