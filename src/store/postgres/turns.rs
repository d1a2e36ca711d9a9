//! Turns in PostgreSQL: the event's row and the session's decide together.

use std::time::Duration;

use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{
    Link,
    answers::{place, slot},
    events::{event_row, interval},
    sessions,
    timestamp::PgTimestamp,
};
use crate::{
    domain::{
        Acquire, Begin, Begun, Decision, Ending, EventRow, Finish, Kept, LeaseId, Prolong,
        SessionKey, SessionRow, TurnId, limits::CLAIM_MEMORY,
    },
    store::{Finished, Prolonged, Release, SessionStore as _, StoreError, TurnStore, Verdict},
};

mod sql;

pub(super) use sql::{BEGIN, FINISH, PROLONG};

impl TurnStore for Link {
    async fn begin_turns(&mut self, asked: &[&Begin]) -> Result<Vec<Verdict<Begun>>, StoreError> {
        let of = |begin: &'_ Begin| begin.session.clone();
        let sessions: Vec<Option<Acquire>> = asked.iter().map(|begin| of(begin)).collect();
        let session = |read: fn(&Acquire) -> String| -> Vec<Option<String>> {
            sessions.iter().map(|session| session.as_ref().map(read)).collect()
        };
        let teams: Vec<&str> = asked.iter().map(|begin| begin.event.team.as_str()).collect();
        let events: Vec<&str> = asked.iter().map(|begin| begin.event.event.as_str()).collect();
        let requests: Vec<Uuid> = asked.iter().map(|begin| begin.request.as_uuid()).collect();
        let claims: Vec<_> = asked.iter().map(|begin| interval(begin.claim_ttl.span())).collect();
        let holders: Vec<&str> = asked.iter().map(|begin| begin.holder.as_str()).collect();
        let most: Vec<i32> = asked.iter().map(|begin| small(begin.max_attempts)).collect();
        let names = session(|acquire| acquire.key.session.clone());
        let labels = session(|acquire| acquire.labels.to_json());
        let epics: Vec<Option<&str>> =
            sessions.iter().map(|session| session.as_ref()?.epic.as_deref()).collect();
        let locks: Vec<Option<i64>> =
            sessions.iter().map(|session| Some(session.as_ref()?.key.lock_key())).collect();
        let leases: Vec<Option<Uuid>> = sessions
            .iter()
            .map(|session| session.as_ref().map(|_| LeaseId::random().as_uuid()))
            .collect();
        let attempts: Vec<Option<Uuid>> =
            sessions.iter().map(|session| Some(session.as_ref()?.request.as_uuid())).collect();
        let ttls: Vec<Option<i64>> =
            sessions.iter().map(|session| Some(session.as_ref()?.ttl.as_micros())).collect();
        let now = self.now();
        let rows = self
            .fetch(|| {
                sqlx::query(BEGIN)
                    .bind(now)
                    .bind(&teams)
                    .bind(&events)
                    .bind(&requests)
                    .bind(&claims)
                    .bind(&holders)
                    .bind(&most)
                    .bind(&names)
                    .bind(&locks)
                    .bind(&leases)
                    .bind(&attempts)
                    .bind(&epics)
                    .bind(&ttls)
                    .bind(&labels)
                    .bind(interval(CLAIM_MEMORY))
            })
            .await?;

        let mut verdicts = vec![Verdict::Again; asked.len()];
        let mut lost = Vec::new();
        for row in rows {
            let place = place(asked.len(), row.try_get("ord"))?;
            let begin = asked[place];
            match row.try_get("kind").map_err(StoreError::fault)? {
                "granted" => verdicts[place] = Verdict::Decided(granted(begin, &row)?),
                "taken" => {
                    verdicts[place] = taken(begin, &row)?;
                    let granted =
                        matches!(verdicts[place], Verdict::Decided(Begun::Granted { .. }));
                    lost.extend(leftover(begin, &row)?.filter(|_| !granted));
                }
                "busy" => {
                    let session = session_row(&row)?;
                    let decision = begin.session.as_ref().map(|asked| session.decision(asked));
                    // One that is free somebody else takes just now.
                    if decision != Some(Decision::Free) {
                        verdicts[place] = Verdict::Decided(Begun::Busy(session));
                    }
                }
                "lost" => {
                    if let Some(acquire) = &begin.session {
                        let lease = session_row(&row)?.lease.id;
                        let key = acquire.key.clone();
                        lost.push(Release { key, lease, unless_repeated: false });
                    }
                }
                other => return Err(StoreError::fault(format!("a row of kind {other}"))),
            }
        }
        if !lost.is_empty() {
            let lost: Vec<&Release> = lost.iter().collect();
            self.change(&[], &lost).await?;
        }
        Ok(verdicts)
    }

    async fn prolong_turns(
        &mut self,
        asked: &[&Prolong],
        max_hold: Duration,
    ) -> Result<Vec<Verdict<Prolonged>>, StoreError> {
        let turns = Turns::of(asked.iter().map(|prolong| &prolong.turn));
        let claims: Vec<_> = asked.iter().map(|turn| interval(turn.claim_ttl.span())).collect();
        let ttls: Vec<i64> = asked.iter().map(|turn| turn.lease_ttl.as_micros()).collect();
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
            })
            .await?;
        let mut verdicts = vec![Verdict::Again; asked.len()];
        for row in rows {
            let event = any_event(&row)?;
            let verdict = slot(&mut verdicts, row.try_get("ord"))?;
            *verdict = match (told(&row)?, event) {
                (Told { done: true, .. }, Some(EventRow::Claimed(claim))) => {
                    let lease = any_session(&row)?.map(|session| session.lease);
                    Verdict::Decided(Kept::Done((claim, lease)))
                }
                (Told { own: true, held, .. }, Some(EventRow::Claimed(claim)))
                    if !claim.remaining.is_zero() =>
                {
                    if held {
                        Verdict::Again
                    } else {
                        Verdict::Decided(Kept::LeaseLost)
                    }
                }
                _ => Verdict::Decided(Kept::ClaimLost),
            };
        }
        Ok(verdicts)
    }

    async fn finish_turns(&mut self, asked: &[&Finish]) -> Result<Finished, StoreError> {
        let turns = Turns::of(asked.iter().map(|finish| &finish.turn));
        let (mut endings, mut results, mut ttls) = (Vec::new(), Vec::new(), Vec::new());
        for finish in asked {
            let (ending, result, ttl) = match &finish.ending {
                Ending::Succeeded(result, ttl) => (1, Some(result), Some(interval(ttl.span()))),
                Ending::Failed => (0, None, None),
                Ending::Abandoned => (2, None, None),
            };
            endings.push(ending);
            results.push(result);
            ttls.push(ttl);
        }
        let most: Vec<i32> = asked.iter().map(|finish| small(finish.turn.max_attempts)).collect();
        let (now, replica) = (self.now(), self.replica);
        let rows = self
            .fetch(|| {
                turns
                    .bind(sqlx::query(FINISH).bind(now), |query| query.bind(replica))
                    .bind(&endings)
                    .bind(&results)
                    .bind(&ttls)
                    .bind(&most)
                    .bind(interval(CLAIM_MEMORY))
            })
            .await?;
        let mut verdicts = vec![Verdict::Again; asked.len()];
        let (mut handed, mut kept) = (Vec::new(), Vec::new());
        for row in rows {
            let event = any_event(&row)?;
            let Told { done, own, held } = told(&row)?;
            let place = place(asked.len(), row.try_get("ord"))?;
            let finish = asked[place];
            if done {
                handed.extend(any_session(&row)?.filter(|session| session.live));
                let given_back: bool = row.try_get("given_back").map_err(StoreError::fault)?;
                if let Some((key, lease)) = finish.turn.lease.clone().filter(|_| !given_back) {
                    kept.push(Release { key, lease, unless_repeated: false });
                }
                let processed = event.filter(|event| matches!(event, EventRow::Processed(_)));
                verdicts[place] = Verdict::Decided(Kept::Done(processed));
                continue;
            }
            verdicts[place] = match event {
                // It was, before.
                Some(EventRow::Processed(event)) if own => {
                    Verdict::Decided(Kept::Done(Some(EventRow::Processed(event))))
                }
                Some(EventRow::Claimed(claim)) if own && !claim.remaining.is_zero() => {
                    match finish.ending {
                        // It is a repetition's.
                        Ending::Abandoned => Verdict::Decided(Kept::ClaimLost),
                        _ if held => Verdict::Again,
                        _ => Verdict::Decided(Kept::LeaseLost),
                    }
                }
                Some(EventRow::Claimed(_)) if own && finish.ending == Ending::Failed => {
                    Verdict::Decided(Kept::Done(None))
                }
                _ => Verdict::Decided(Kept::ClaimLost),
            };
        }
        if !kept.is_empty() {
            // Another wrote the session's row in between.
            let kept: Vec<&Release> = kept.iter().collect();
            handed.extend(self.change(&[], &kept).await?.handed);
        }
        Ok(Finished { kept: verdicts, handed })
    }
}

/// A small count as the database has it.
fn small(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// What a row tells of a turn.
struct Told {
    done: bool,
    own: bool,
    held: bool,
}

fn told(row: &PgRow) -> Result<Told, StoreError> {
    let read = || {
        let own: Option<bool> = row.try_get("own")?;
        Ok(Told {
            done: row.try_get("done")?,
            own: own.unwrap_or(false),
            held: row.try_get("held")?,
        })
    };
    read().map_err(|error: sqlx::Error| StoreError::fault(error))
}

fn granted(begin: &Begin, row: &PgRow) -> Result<Begun, StoreError> {
    let EventRow::Claimed(claim) = event_row(row)? else {
        return Err(StoreError::fault("a claim that is none"));
    };
    let lease = begin.session.as_ref().map(|_| session_row(row)).transpose()?;
    Ok(Begun::Granted { claim, lease: lease.map(|session| session.lease), fresh: true })
}

/// The event is taken: perhaps by an earlier run of the same request.
fn taken(begin: &Begin, row: &PgRow) -> Result<Verdict<Begun>, StoreError> {
    let event = event_row(row)?;
    let fresh = row.try_get("fresh").map_err(StoreError::fault)?;
    if let EventRow::Claimed(claim) = &event
        && claim.request == begin.request
    {
        let lease = match &begin.session {
            None => Some(None),
            Some(asked) => any_session(row)?.and_then(|session| match session.decision(asked) {
                Decision::Granted(lease) => Some(Some(lease)),
                _ => None,
            }),
        };
        if let Some(lease) = lease {
            return Ok(Verdict::Decided(Begun::Granted { claim: claim.clone(), lease, fresh }));
        }
    }
    let result = row.try_get("result").map_err(StoreError::fault)?;
    Ok(Verdict::Decided(Begun::Taken(event, result)))
}

/// The lease that an earlier run of a request had waited for, whose event is another's
/// by now.
fn leftover(begin: &Begin, row: &PgRow) -> Result<Option<Release>, StoreError> {
    let found = any_session(row)?.zip(begin.session.as_ref());
    Ok(found.and_then(|(session, asked)| match session.decision(asked) {
        Decision::Granted(lease) => {
            Some(Release { key: asked.key.clone(), lease: lease.id, unless_repeated: false })
        }
        _ => None,
    }))
}

/// The event of a row that may have none.
fn any_event(row: &PgRow) -> Result<Option<EventRow>, StoreError> {
    let there: Option<PgTimestamp> = row.try_get("processed_at").map_err(StoreError::fault)?;
    there.map(|_| event_row(row)).transpose()
}

/// The session of a row that may have none.
fn any_session(row: &PgRow) -> Result<Option<SessionRow>, StoreError> {
    let there: Option<Uuid> = row.try_get("lease_id").map_err(StoreError::fault)?;
    there.map(|_| session_row(row)).transpose()
}

fn session_row(row: &PgRow) -> Result<SessionRow, StoreError> {
    sessions::named_session_row(row, ["session_request", "session_holder", "lease_expires_at"])
}

/// Turns as a statement's arrays.
struct Turns<'a> {
    teams: Vec<&'a str>,
    events: Vec<&'a str>,
    requests: Vec<Uuid>,
    sessions: Vec<Option<&'a str>>,
    locks: Vec<Option<i64>>,
    leases: Vec<Option<Uuid>>,
}

impl<'a> Turns<'a> {
    fn of(turns: impl Iterator<Item = &'a TurnId> + Clone) -> Self {
        let sessions = turns.clone().map(|turn| turn.lease.as_ref());
        let key = |lease: Option<&'a (SessionKey, LeaseId)>| lease.map(|(key, _)| key);
        Self {
            teams: turns.clone().map(|turn| turn.event.team.as_str()).collect(),
            events: turns.clone().map(|turn| turn.event.event.as_str()).collect(),
            requests: turns.map(|turn| turn.request.as_uuid()).collect(),
            sessions: sessions.clone().map(|lease| Some(key(lease)?.session.as_str())).collect(),
            locks: sessions.clone().map(|lease| Some(key(lease)?.lock_key())).collect(),
            leases: sessions.map(|lease| Some(lease?.1.as_uuid())).collect(),
        }
    }

    /// Binds all, and what is `seventh`.
    fn bind<'q>(
        &'q self,
        statement: super::link::Statement<'q>,
        seventh: impl FnOnce(super::link::Statement<'q>) -> super::link::Statement<'q>,
    ) -> super::link::Statement<'q> {
        let first = statement
            .bind(&self.teams)
            .bind(&self.sessions)
            .bind(&self.locks)
            .bind(&self.leases)
            .bind(&self.events);
        seventh(first).bind(&self.requests)
    }
}
