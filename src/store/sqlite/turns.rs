//! Turns in `SQLite`: read the two rows, decide, write them back, all within the one
//! transaction that may write.

use std::time::Duration;

use sqlx::{Row as _, SqliteConnection};

use super::{
    Handle, begin, classify,
    events::{event_row, turn_result},
    hex, json,
    sessions::{Stored, grant, look, renewed_by, resumed_by, write},
};
use crate::{
    domain::{
        Acquire, Attempts, Begin, Begun, Claim, Decision, Detail, EventRow, Finish, Kept, LeaseId,
        Prolong, RequestId, ResumedBy, SessionKey, Timestamp, TurnId, TurnResult,
        limits::CLAIM_MEMORY,
    },
    store::{Prolonged, StoreError, TurnStore, Turned, Verdict},
};

mod finish;

pub(super) use finish::END;
use finish::{Ended, end, finish_turn};

// $1: team, $2: the event's names, a JSON array. What writes to a claim takes the attempt as
// $3 and the claim's end as $4: another of that attempt may have some of the names.

/// $3: the moment. What counts is a row that is live, this attempt's ($4) before others';
/// without one, the one that was claimed most often. What an alias was taken with is
/// another delivery's payload.
pub(super) const EVENT: &str = "
SELECT request_id, processed_at, expires_at, claimed_until, attempt, holder,
    CASE WHEN n.key = 0 THEN digest END AS digest, detail, result, result_type,
    result IS NOT NULL AS succeeded, rejected_at IS processed_at AS rejected,
    uncounted, interrupted, repeated, resumed_by,
    COALESCE(names, json_array(event_id)) AS names
FROM json_each($2) AS n CROSS JOIN processed_events AS e
    ON e.team_id = $1 AND e.event_id = n.value
WHERE e.expires_at > $3
ORDER BY (claimed_until IS NULL OR claimed_until > $3) DESC,
    ((claimed_until IS NULL OR claimed_until > $3) AND request_id = $4) DESC,
    attempt DESC, n.key LIMIT 1
";

pub(super) const CLAIM: &str = "
REPLACE INTO processed_events (team_id, event_id, processed_at, expires_at, request_id,
    claimed_until, attempt, holder, names, digest, detail, uncounted)
SELECT $1, value, $3, $4, $5, $6, $7, $8, $9, CASE WHEN key = 0 THEN $10 END, $11, $12
FROM json_each($2)
";

pub(super) const REPEAT: &str = "
UPDATE processed_events SET repeated = 1, resumed_by = $5, interrupted = NULL
WHERE team_id = $1 AND event_id IN (SELECT value FROM json_each($2)) AND request_id = $3
    AND claimed_until = $4
";

pub(super) const PROLONG: &str = "
UPDATE processed_events
SET claimed_until = $5, expires_at = max(expires_at, $6), repeated = repeated OR $7 IS NOT NULL,
    resumed_by = COALESCE($7, resumed_by), interrupted = $8
WHERE team_id = $1 AND event_id IN (SELECT value FROM json_each($2)) AND request_id = $3
    AND claimed_until = $4
";

/// An event's row that has not expired.
struct Event {
    row: EventRow,
    attempts: Attempts,
    result: Option<TurnResult>,
    resumed: ResumedBy,
    /// All names that were taken with it, as the statements have them.
    names: String,
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
    async fn change_turns(
        &mut self,
        begins: &[&Begin],
        finishes: &[&Finish],
    ) -> Result<Turned, StoreError> {
        let mut writer = self.writer.lock().await;
        let mut batch = begin(&mut writer).await?;
        let now = self.now();
        let mut turned = Turned::nothing(begins.len(), finishes.len());
        for (place, finish) in finishes.iter().enumerate() {
            let kept = finish_turn(&mut batch, finish, now, &mut turned.handed).await?;
            turned.kept[place] = Verdict::Decided(kept);
        }
        for (place, asked) in begins.iter().enumerate() {
            let begun = begin_turn(&mut batch, asked, now, &mut turned).await?;
            turned.begun[place] = Verdict::Decided(begun);
        }
        batch.commit().await.map_err(classify)?;
        Ok(turned)
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
        for Prolong { turn, claim_ttl, lease_ttl, stream, interruption } in asked {
            let kept = match own(&mut batch, turn, now).await? {
                Kept::Done(own)
                    if stream.is_some_and(|stream| own.event.resumed.replaces(stream)) =>
                {
                    Kept::Resumed
                }
                Kept::Done(Own { event, mut claim, session }) => {
                    let interrupted = interruption
                        .zip(*stream)
                        .is_some_and(|(why, stream)| why.is_noted(stream, event.resumed))
                        .then_some(claim.attempt);
                    let ends = std::mem::replace(&mut claim.lapse_time, now.after(*claim_ttl));
                    claim.remaining = claim_ttl.span();
                    sqlx::query(PROLONG)
                        .bind(&turn.event.team)
                        .bind(event.names)
                        .bind(hex(turn.request.as_uuid()))
                        .bind(ends.as_micros())
                        .bind(claim.lapse_time.as_micros())
                        .bind(now.plus(CLAIM_MEMORY).as_micros())
                        .bind(renewed_by(*stream))
                        .bind(interrupted)
                        .execute(&mut *batch)
                        .await
                        .map_err(classify)?;
                    let mut lease = None;
                    if let Some((key, mut session)) = session {
                        session.run_on(*lease_ttl, max_hold, now);
                        lease = Some(session.row.lease.clone());
                        write(&mut batch, &[(key, session)]).await?;
                    }
                    Kept::Done((claim, lease))
                }
                Kept::ClaimLost => Kept::ClaimLost,
                Kept::LeaseLost(held) => Kept::LeaseLost(held),
                Kept::Resumed => Kept::Resumed,
            };
            verdicts.push(Verdict::Decided(kept));
        }
        batch.commit().await.map_err(classify)?;
        Ok(verdicts)
    }
}

async fn begin_turn(
    batch: &mut SqliteConnection,
    asked: &Begin,
    now: Timestamp,
    turned: &mut Turned,
) -> Result<Begun, StoreError> {
    let Begin { event, request, holder, claim_ttl, max_attempts, session: acquire, .. } = asked;
    let resumed = ResumedBy::of(asked.stream);
    let (team, names) = (&event.key.team, json(&event.names().collect::<Vec<_>>())?);
    let found = find(batch, team, &names, *request, now).await?;
    let mut session = None;
    if let Some(acquire) = acquire {
        session = look(batch, &[&acquire.key], now).await?.pop().flatten();
    }
    let mut attempts = Attempts { claimed: 0, uncounted: 0, interrupted: None };
    let (mut detail, mut lapsed) = (None, 0);
    if let Some(found) = found {
        if let Some(claim) = found.live_claim(*request).cloned() {
            if event.contradicts(claim.digest) {
                return Ok(Begun::Taken(found.row, None));
            }
            let mut lease = None;
            if let Some((session, acquire)) = session.as_ref().zip(acquire.as_ref())
                && let Decision::Granted(held) = session.row.decision(acquire)
            {
                lease = Some(held);
                let told = Stored { resumed, ..session.clone() };
                write(batch, &[(&acquire.key, told)]).await?;
            }
            if lease.is_some() || acquire.is_none() {
                let repeat = sqlx::query(REPEAT).bind(team).bind(&found.names);
                let repeat = repeat.bind(hex(request.as_uuid()));
                let repeat = repeat.bind(claim.lapse_time.as_micros());
                let repeat = repeat.bind(resumed.as_uuid().map(hex));
                repeat.execute(batch).await.map_err(classify)?;
                return Ok(Begun::Granted { claim, lease, fresh: false });
            }
            return Ok(Begun::Taken(EventRow::Claimed(claim), None));
        }
        match &found.row {
            EventRow::Claimed(claim) if !is_live(claim) => {
                // Ended otherwise, it did so when it says that it was made.
                lapsed = u64::from(claim.lapse_time > claim.claim_time);
                attempts = if lapsed > 0 { found.attempts.lapsed() } else { found.attempts };
                detail.clone_from(&claim.detail);
            }
            _ => {
                turned.idle.extend(leftover(session.as_ref(), acquire.as_ref()));
                return Ok(Begun::Taken(found.row, found.result));
            }
        }
        if attempts.are_spent(*max_attempts) {
            (turned.lapsed, turned.gave_up) = (turned.lapsed + lapsed, turned.gave_up + 1);
            turned.idle.extend(leftover(session.as_ref(), acquire.as_ref()));
            let mut given_up = Ended::at(now, attempts, detail);
            given_up.until = None;
            return Ok(Begun::Taken(end(batch, team, &found, given_up).await?, None));
        }
    }
    let attempt = attempts.claimed + 1;
    let mut lease = None;
    if let Some(acquire) = acquire {
        let busy = session.as_ref().filter(|found| found.row.decision(acquire) != Decision::Free);
        if let Some(busy) = busy {
            return Ok(Begun::Busy(busy.row.clone()));
        }
        let granted = grant(&mut *batch, acquire, session, now).await?;
        lease = Some(granted.row.lease.clone());
        write(batch, &[(&acquire.key, granted)]).await?;
    }
    turned.lapsed += lapsed;
    let lapse_time = now.after(*claim_ttl);
    sqlx::query(CLAIM)
        .bind(team)
        .bind(&names)
        .bind(now.as_micros())
        .bind(now.plus(CLAIM_MEMORY).as_micros())
        .bind(hex(request.as_uuid()))
        .bind(lapse_time.as_micros())
        .bind(attempt)
        .bind(holder)
        .bind((!event.aliases.is_empty()).then_some(&names))
        .bind(event.digest.map(|digest| hex(digest.as_uuid())))
        .bind(detail.as_ref().map(Detail::as_str))
        .bind(Some(attempts.uncounted).filter(|uncounted| *uncounted > 0))
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
        digest: event.digest,
        detail,
    };
    Ok(Begun::Granted { claim, lease, fresh: true })
}

/// The lease that an earlier run of a request had waited for, whose event is not to be had.
fn leftover(session: Option<&Stored>, asked: Option<&Acquire>) -> Option<(SessionKey, LeaseId)> {
    let (session, asked) = session.zip(asked)?;
    match session.row.decision(asked) {
        Decision::Granted(lease) => Some((asked.key.clone(), lease.id)),
        _ => None,
    }
}

/// What a turn that runs has.
struct Own<'a> {
    event: Event,
    claim: Claim,
    session: Option<(&'a SessionKey, Stored)>,
}

async fn own<'a>(
    batch: &mut SqliteConnection,
    turn: &'a TurnId,
    now: Timestamp,
) -> Result<Kept<Own<'a>>, StoreError> {
    let Some(event) = find_own(batch, turn, now).await? else { return Ok(Kept::ClaimLost) };
    let claim = event.live_claim(turn.request).filter(|claim| claim.attempt == turn.attempt);
    let Some(claim) = claim.cloned() else { return Ok(Kept::ClaimLost) };
    let mut session = None;
    if let Some((key, lease)) = &turn.lease {
        let found = look(batch, &[key], now).await?.pop().flatten();
        match found.filter(|found| found.row.lease.id == *lease && !found.released) {
            Some(found) if found.row.live => session = Some((key, found)),
            ended => {
                let held = ended.map(|ended| ended.row.lease.held_for());
                return Ok(Kept::LeaseLost(held));
            }
        }
    }
    Ok(Kept::Done(Own { event, claim, session }))
}

/// The row that a turn is about.
async fn find_own(
    batch: &mut SqliteConnection,
    turn: &TurnId,
    now: Timestamp,
) -> Result<Option<Event>, StoreError> {
    let name = json(&[&turn.event.event])?;
    find(batch, &turn.event.team, &name, turn.request, now).await
}

/// The row that counts, of an event with these names.
async fn find(
    batch: &mut SqliteConnection,
    team: &str,
    names: &str,
    request: RequestId,
    now: Timestamp,
) -> Result<Option<Event>, StoreError> {
    let row = sqlx::query(EVENT)
        .bind(team)
        .bind(names)
        .bind(now.as_micros())
        .bind(hex(request.as_uuid()))
        .fetch_optional(batch)
        .await
        .map_err(classify)?;
    let event = row.map(|row| {
        Ok(Event {
            row: event_row(&row, now)?,
            attempts: Attempts {
                claimed: row.try_get::<Option<u32>, _>("attempt")?.unwrap_or_default(),
                uncounted: row.try_get::<Option<u32>, _>("uncounted")?.unwrap_or_default(),
                interrupted: row.try_get("interrupted")?,
            },
            result: turn_result(&row)?,
            resumed: resumed_by(&row)?,
            names: row.try_get("names")?,
        })
    });
    event.transpose().map_err(|error: sqlx::Error| StoreError::fault(error))
}
