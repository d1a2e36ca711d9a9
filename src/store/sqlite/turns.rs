//! Turns in `SQLite`: read the two rows, decide, write them back, all within the one
//! transaction that may write.

use std::time::Duration;

use sqlx::{Row as _, SqliteConnection};

use super::{
    Handle, begin, classify,
    events::event_row,
    sessions::{Stored, draw_tokens, grant, look, pass_on, write},
};
use crate::{
    domain::{
        Begin, Begun, Claim, Decision, Ending, EventKey, EventRow, FencingToken, Finish, Kept,
        LeaseId, Prolong, RequestId, SessionKey, SessionRow, Timestamp, TurnId,
        limits::CLAIM_MEMORY,
    },
    store::{Begins, Finished, Prolonged, StoreError, TurnStore, Verdict},
};

// $1: team, $2: event.

/// $3: the moment.
pub(super) const EVENT: &str = "
SELECT request_id, processed_at, expires_at, claimed_until, attempt, holder, result,
    result IS NOT NULL AS succeeded, repeated IS TRUE AS repeated
FROM processed_events WHERE team_id = $1 AND event_id = $2 AND expires_at > $3
";

pub(super) const CLAIM: &str = "
REPLACE INTO processed_events (team_id, event_id, processed_at, expires_at, request_id,
    claimed_until, attempt, holder)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
";

pub(super) const REPEAT: &str = "
UPDATE processed_events SET repeated = 1 WHERE team_id = $1 AND event_id = $2
";

pub(super) const PROLONG: &str = "
UPDATE processed_events SET claimed_until = $3, expires_at = max(expires_at, $4)
WHERE team_id = $1 AND event_id = $2
";

pub(super) const END: &str = "
UPDATE processed_events
SET processed_at = $3, expires_at = $4, claimed_until = $5, attempt = $6, result = $7
WHERE team_id = $1 AND event_id = $2
";

/// An event's row that has not expired.
struct Event {
    row: EventRow,
    result: Option<Vec<u8>>,
    repeated: bool,
}

impl Event {
    /// A claim that runs, of this attempt.
    fn live_claim(&self, request: RequestId) -> Option<&Claim> {
        match &self.row {
            EventRow::Claimed(claim) if claim.request == request && is_live(claim) => Some(claim),
            _ => None,
        }
    }
}

fn is_live(claim: &Claim) -> bool {
    !claim.remaining.is_zero()
}

impl TurnStore for Handle {
    async fn begin_turns(&mut self, asked: &[&Begin]) -> Result<Begins, StoreError> {
        let mut writer = self.writer.lock().await;
        let mut batch = begin(&mut writer).await?;
        let now = self.now();
        let (mut begun, mut idle) = (Vec::with_capacity(asked.len()), Vec::new());
        for asked in asked {
            begun.push(Verdict::Decided(begin_turn(&mut batch, asked, now, &mut idle).await?));
        }
        batch.commit().await.map_err(classify)?;
        Ok(Begins { begun, idle })
    }

    async fn prolong_turns(
        &mut self,
        asked: &[&Prolong],
        max_hold: Duration,
    ) -> Result<Vec<Verdict<Prolonged>>, StoreError> {
        let mut writer = self.writer.lock().await;
        let mut batch = begin(&mut writer).await?;
        let now = self.now();
        let mut verdicts = Vec::with_capacity(asked.len());
        for Prolong { turn, claim_ttl, lease_ttl } in asked {
            let kept = match own(&mut batch, turn, now).await? {
                Kept::Done((event, session)) => {
                    let mut claim = event;
                    claim.lapse_time = now.after(*claim_ttl);
                    claim.remaining = claim_ttl.span();
                    sqlx::query(PROLONG)
                        .bind(&turn.event.team)
                        .bind(&turn.event.event)
                        .bind(claim.lapse_time.as_micros())
                        .bind(now.plus(CLAIM_MEMORY).as_micros())
                        .execute(&mut *batch)
                        .await
                        .map_err(classify)?;
                    let mut lease = None;
                    if let Some((key, mut session)) = session {
                        session.run_on(now.after(*lease_ttl), max_hold, now);
                        lease = Some(session.row.lease.clone());
                        write(&mut batch, &[(key, session)]).await?;
                    }
                    Kept::Done((claim, lease))
                }
                Kept::ClaimLost => Kept::ClaimLost,
                Kept::LeaseLost => Kept::LeaseLost,
            };
            verdicts.push(Verdict::Decided(kept));
        }
        batch.commit().await.map_err(classify)?;
        Ok(verdicts)
    }

    async fn finish_turns(&mut self, asked: &[&Finish]) -> Result<Finished, StoreError> {
        let mut writer = self.writer.lock().await;
        let mut batch = begin(&mut writer).await?;
        let now = self.now();
        let mut verdicts = Vec::with_capacity(asked.len());
        let mut handed = Vec::new();
        for finish in asked {
            let kept = finish_turn(&mut batch, finish, now, &mut handed).await?;
            verdicts.push(Verdict::Decided(kept));
        }
        batch.commit().await.map_err(classify)?;
        Ok(Finished { kept: verdicts, handed, idle: Vec::new() })
    }
}

async fn begin_turn(
    batch: &mut SqliteConnection,
    asked: &Begin,
    now: Timestamp,
    idle: &mut Vec<(SessionKey, LeaseId)>,
) -> Result<Begun, StoreError> {
    let Begin { event: key, request, holder, claim_ttl, max_attempts, session: acquire } = asked;
    let event = find(batch, key, now).await?;
    let mut session = None;
    if let Some(acquire) = acquire {
        session = look(batch, &[&acquire.key], now).await?.pop().flatten();
    }
    let mut attempt = 1;
    if let Some(event) = event {
        if event.live_claim(*request).is_some() {
            let EventRow::Claimed(claim) = event.row else {
                return Err(StoreError::fault("a claim that is none"));
            };
            let found = session.as_ref().zip(acquire.as_ref());
            let mut lease = None;
            if let Some((session, acquire)) = found
                && let Decision::Granted(held) = session.row.decision(acquire)
            {
                lease = Some(held);
                let told = Stored { repeated: true, ..session.clone() };
                write(batch, &[(&acquire.key, told)]).await?;
            }
            if lease.is_some() || acquire.is_none() {
                let repeat = sqlx::query(REPEAT).bind(&key.team).bind(&key.event);
                repeat.execute(batch).await.map_err(classify)?;
                return Ok(Begun::Granted { claim, lease, fresh: false });
            }
            return Ok(Begun::Taken(EventRow::Claimed(claim), None));
        }
        attempt = match &event.row {
            EventRow::Claimed(claim) if !is_live(claim) => claim.attempt + 1,
            _ => {
                if let Some((session, acquire)) = session.zip(acquire.as_ref())
                    && let Decision::Granted(lease) = session.row.decision(acquire)
                {
                    // An earlier run of this request had waited for it.
                    idle.push((acquire.key.clone(), lease.id));
                }
                return Ok(Begun::Taken(event.row, event.result));
            }
        };
        if attempt > *max_attempts {
            end(batch, key, (now, now.plus(CLAIM_MEMORY)), None, attempt - 1, None).await?;
            let spent = find(batch, key, now).await?;
            let spent = spent.ok_or_else(|| StoreError::fault("an event that has gone"))?;
            return Ok(Begun::Taken(spent.row, None));
        }
    }
    let mut lease = None;
    if let Some(acquire) = acquire {
        let busy = session.as_ref().filter(|found| found.row.decision(acquire) != Decision::Free);
        if let Some(busy) = busy {
            return Ok(Begun::Busy(busy.row.clone()));
        }
        let token = FencingToken(draw_tokens(&mut *batch, 1).await?.start);
        let bound = session.and_then(|found| found.row.lease.epic);
        let granted = grant(acquire, token, bound, now);
        lease = Some(granted.row.lease.clone());
        write(batch, &[(&acquire.key, granted)]).await?;
    }
    let lapse_time = now.after(*claim_ttl);
    sqlx::query(CLAIM)
        .bind(&key.team)
        .bind(&key.event)
        .bind(now.as_micros())
        .bind(now.plus(CLAIM_MEMORY).as_micros())
        .bind(request.as_uuid().simple().to_string())
        .bind(lapse_time.as_micros())
        .bind(attempt)
        .bind(holder)
        .execute(batch)
        .await
        .map_err(classify)?;
    let claim = Claim {
        request: *request,
        holder: holder.clone(),
        attempt,
        claim_time: now,
        lapse_time,
        remaining: claim_ttl.span(),
    };
    Ok(Begun::Granted { claim, lease, fresh: true })
}

async fn finish_turn(
    batch: &mut SqliteConnection,
    finish: &Finish,
    now: Timestamp,
    handed: &mut Vec<SessionRow>,
) -> Result<Kept<Option<EventRow>>, StoreError> {
    let Finish { turn, ending } = finish;
    let key = &turn.event;
    let (claim, session) = match own(batch, turn, now).await? {
        Kept::Done(own) => own,
        Kept::LeaseLost => return Ok(Kept::LeaseLost),
        Kept::ClaimLost => {
            let event = find(batch, key, now).await?.map(|event| event.row);
            let own = match &event {
                Some(EventRow::Processed(event)) => event.request == Some(turn.request),
                Some(EventRow::Claimed(claim)) => claim.request == turn.request,
                None => false,
            };
            return Ok(match event {
                Some(event) if own && finish.was_done(&event) => Kept::Done(handled(event)),
                _ => Kept::ClaimLost,
            });
        }
    };
    let memory = now.plus(CLAIM_MEMORY);
    match ending {
        Ending::Succeeded(result, ttl) => {
            end(batch, key, (now, now.after(*ttl)), None, claim.attempt, Some(result)).await?;
        }
        Ending::Failed => {
            let ended = (claim.attempt < turn.max_attempts).then_some(now);
            end(batch, key, (now, memory), ended, claim.attempt, None).await?;
        }
        Ending::Abandoned => {
            let event = find(batch, key, now).await?;
            let held_again = session.as_ref().is_some_and(|(_, session)| session.repeated);
            if held_again || event.is_some_and(|event| event.repeated) {
                return Ok(Kept::ClaimLost);
            }
            end(batch, key, (now, memory), Some(now), claim.attempt - 1, None).await?;
        }
    }
    if let Some((key, mut session)) = session {
        session.release(now);
        if session.row.waiting && pass_on(batch, key, &mut session, now).await? {
            handed.push(session.row.clone());
        }
        write(batch, &[(key, session)]).await?;
    }
    let event = find(batch, key, now).await?;
    Ok(Kept::Done(event.and_then(|event| handled(event.row))))
}

/// An event's row, if it is handled.
fn handled(event: EventRow) -> Option<EventRow> {
    Some(event).filter(|event| matches!(event, EventRow::Processed(_)))
}

/// The claim and the session of a turn that runs.
async fn own<'a>(
    batch: &mut SqliteConnection,
    turn: &'a TurnId,
    now: Timestamp,
) -> Result<Kept<(Claim, Option<(&'a SessionKey, Stored)>)>, StoreError> {
    let event = find(batch, &turn.event, now).await?;
    let claim = event.and_then(|event| event.live_claim(turn.request).cloned());
    let Some(claim) = claim.filter(|claim| claim.attempt == turn.attempt) else {
        return Ok(Kept::ClaimLost);
    };
    let Some((key, lease)) = &turn.lease else { return Ok(Kept::Done((claim, None))) };
    let found = look(batch, &[key], now).await?.pop().flatten();
    let holds = |found: &Stored, lease: LeaseId| found.row.live && found.row.lease.id == lease;
    Ok(match found.filter(|found| holds(found, *lease)) {
        Some(session) => Kept::Done((claim, Some((key, session)))),
        None => Kept::LeaseLost,
    })
}

async fn find(
    batch: &mut SqliteConnection,
    key: &EventKey,
    now: Timestamp,
) -> Result<Option<Event>, StoreError> {
    let row = sqlx::query(EVENT)
        .bind(&key.team)
        .bind(&key.event)
        .bind(now.as_micros())
        .fetch_optional(batch)
        .await
        .map_err(classify)?;
    let event = row.map(|row| {
        let (result, repeated) = (row.try_get("result")?, row.try_get("repeated")?);
        Ok(Event { row: event_row(&row, now)?, result, repeated })
    });
    event.transpose().map_err(|error: sqlx::Error| StoreError::fault(error))
}

/// Writes how a claim ended: none where the event is handled.
async fn end(
    batch: &mut SqliteConnection,
    key: &EventKey,
    (processed, expires): (Timestamp, Timestamp),
    ended: Option<Timestamp>,
    attempt: u32,
    result: Option<&Vec<u8>>,
) -> Result<(), StoreError> {
    sqlx::query(END)
        .bind(&key.team)
        .bind(&key.event)
        .bind(processed.as_micros())
        .bind(expires.as_micros())
        .bind(ended.map(Timestamp::as_micros))
        .bind(attempt)
        .bind(result)
        .execute(batch)
        .await
        .map(drop)
        .map_err(classify)
}
