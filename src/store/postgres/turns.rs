//! Turns in PostgreSQL: the event's row and the session's decide together.

use std::{collections::HashMap, time::Duration};

use sqlx::{
    Row as _,
    postgres::{PgRow, types::PgInterval},
};
use uuid::Uuid;

use super::{
    Link,
    answers::{fill, left, place, slot},
    events::{event_row, interval, names},
    link::Statement,
    sessions,
    timestamp::PgTimestamp,
};
use crate::{
    domain::{
        Begin, Begun, Claim, Decision, Ending, EventRow, FencingToken, Finish, Kept, Labels, Lease,
        LeaseId, Prolong, SessionKey, SessionRow, Timestamp, TurnId, limits::CLAIM_MEMORY,
    },
    store::{Begins, Finished, Prolonged, StoreError, TurnStore, Verdict},
};

mod sql;

pub(super) use sql::{BEGIN, BEGIN_NEW, FINISH, PROLONG, SUCCEED};

impl TurnStore for Link {
    async fn begin_turns(&mut self, asked: &[&Begin]) -> Result<Begins, StoreError> {
        // One lease for each, whichever statement takes it: so a run that lost its answer
        // is known by it.
        let asked: Vec<Wish<'_>> =
            asked.iter().map(|&begin| (begin, LeaseId::random().as_uuid())).collect();
        let mut begins = Begins::default();
        begins.begun = self.begin_new(&asked, &mut begins.idle).await?;
        let (places, others) = left(&begins.begun, &asked);
        if !others.is_empty() {
            match self.begin_any(&others, &mut begins).await {
                Ok(verdicts) => fill(&mut begins.begun, places, verdicts),
                // What has begun has been committed: the others are asked again.
                Err(_) if others.len() < asked.len() || !begins.idle.is_empty() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(begins)
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
        let kept = self.succeed(asked).await?;
        let (places, others) = left(&kept, asked);
        let mut finished = Finished { kept, handed: Vec::new(), idle: Vec::new() };
        if !others.is_empty() {
            match self.finish_any(&others, &mut finished).await {
                Ok(verdicts) => fill(&mut finished.kept, places, verdicts),
                // What has ended has been committed: the others are asked again.
                Err(_) if others.len() < asked.len() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(finished)
    }
}

impl Link {
    /// Begins turns of new events, of one name, in free sessions.
    async fn begin_new(
        &mut self,
        asked: &[Wish<'_>],
        idle: &mut Vec<(SessionKey, LeaseId)>,
    ) -> Result<Vec<Verdict<Begun>>, StoreError> {
        let mut verdicts = vec![Verdict::Again; asked.len()];
        let is_plain = |begin: &Begin| begin.session.is_some() && begin.event.aliases.is_empty();
        let plain = asked.iter().copied().enumerate().filter(|(_, (begin, _))| is_plain(begin));
        let (places, begins): (Vec<usize>, Vec<Wish<'_>>) = plain.unzip();
        if places.is_empty() {
            return Ok(verdicts);
        }
        let wishes = Wishes::of(&begins);
        let now = self.now();
        let rows = self.fetch(|| wishes.bind(sqlx::query(BEGIN_NEW).bind(now))).await?;
        let by_lease: HashMap<Uuid, usize> =
            wishes.leases.iter().flatten().copied().zip(places).collect();
        let mut claimed: HashMap<Uuid, Timestamp> = HashMap::new();
        let mut taken = Vec::new();
        for row in rows {
            let time = |column| row.try_get::<PgTimestamp, _>(column).map(|time| time.0);
            let mut read = || {
                if let Some(request) = row.try_get::<Option<Uuid>, _>("claimed")? {
                    claimed.insert(request, time("claimed_at")?);
                    return Ok(());
                }
                let (id, fence) = (row.try_get("lease_id")?, row.try_get("fencing_token")?);
                let (at, expire_time) = (time("at")?, time("expires_at")?);
                let lease = Lease {
                    id: LeaseId::from_uuid(id),
                    token: FencingToken(fence),
                    holder: String::new(),
                    acquire_time: time("acquired_at")?,
                    expire_time,
                    remaining: expire_time.since(at),
                    epic: row.try_get("epic_id")?,
                    labels: Labels::default(),
                };
                taken.push((lease, at));
                Ok(())
            };
            read().map_err(|error: sqlx::Error| StoreError::fault(error))?;
        }
        for (lease, at) in taken {
            let found = by_lease.get(&lease.id.as_uuid()).and_then(|&place| {
                let (begin, _) = asked[place];
                Some((place, begin, begin.session.as_ref()?))
            });
            let (place, begin, acquire) =
                found.ok_or_else(|| StoreError::fault("a row nobody asked for"))?;
            let Some(&claim_time) = claimed.get(&begin.request.as_uuid()) else {
                idle.push((acquire.key.clone(), lease.id));
                continue;
            };
            let (holder, labels) = (acquire.holder.clone(), acquire.labels.clone());
            let lease = Some(Lease { holder, labels, ..lease });
            let lapse_time = claim_time.after(begin.claim_ttl);
            let claim = Claim {
                request: begin.request,
                holder: begin.holder.clone(),
                attempt: 1,
                claim_time,
                lapse_time,
                remaining: lapse_time.since(at),
                digest: begin.event.digest,
            };
            verdicts[place] = Verdict::Decided(Begun::Granted { claim, lease, fresh: true });
        }
        Ok(verdicts)
    }

    /// Begins turns, whatever there is of their events and sessions; notes in `begins`
    /// what was found beside.
    async fn begin_any(
        &mut self,
        asked: &[Wish<'_>],
        begins: &mut Begins,
    ) -> Result<Vec<Verdict<Begun>>, StoreError> {
        let wishes = Wishes::of(asked);
        let now = self.now();
        let names: Vec<Option<String>> =
            asked.iter().map(|(begin, _)| names(&begin.event)).collect();
        let rows = self.fetch(|| wishes.bind(sqlx::query(BEGIN).bind(now)).bind(&names)).await?;

        let mut verdicts = vec![Verdict::Again; asked.len()];
        for row in rows {
            let place = place(asked.len(), row.try_get("ord"))?;
            let (begin, _) = asked[place];
            // An event has a row for each of its names: all tell the same.
            let is_new = verdicts[place] == Verdict::Again;
            let lapsed: Option<bool> = row.try_get("lapsed").map_err(StoreError::fault)?;
            begins.lapsed += u64::from(is_new && lapsed == Some(true));
            match row.try_get("kind").map_err(StoreError::fault)? {
                "granted" => verdicts[place] = Verdict::Decided(granted(begin, &row)?),
                "spent" => {
                    verdicts[place] = taken(begin, &row)?;
                    begins.gave_up += u64::from(is_new);
                }
                "taken" => {
                    verdicts[place] = taken(begin, &row)?;
                    let granted =
                        matches!(verdicts[place], Verdict::Decided(Begun::Granted { .. }));
                    begins.idle.extend(leftover(begin, &row)?.filter(|_| !granted));
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
                        begins.idle.push((acquire.key.clone(), session_row(&row)?.lease.id));
                    }
                }
                other => return Err(StoreError::fault(format!("a row of kind {other}"))),
            }
        }
        Ok(verdicts)
    }

    /// Ends turns with success, where nothing stands in the way.
    async fn succeed(
        &mut self,
        asked: &[&Finish],
    ) -> Result<Vec<Verdict<Kept<Option<EventRow>>>>, StoreError> {
        let mut verdicts = vec![Verdict::Again; asked.len()];
        let (mut places, mut turns) = (Vec::new(), Vec::new());
        let (mut results, mut ttls) = (Vec::new(), Vec::new());
        for (place, finish) in asked.iter().enumerate() {
            if let (Ending::Succeeded(result, ttl), Some(_)) = (&finish.ending, &finish.turn.lease)
            {
                places.push(place);
                turns.push(&finish.turn);
                results.push(result);
                ttls.push(interval(ttl.span()));
            }
        }
        if places.is_empty() {
            return Ok(verdicts);
        }
        let turns = Turns::of(turns.into_iter());
        let now = self.now();
        let rows = self
            .fetch(|| {
                turns.bind(sqlx::query(SUCCEED).bind(now), |query| query.bind(&ttls)).bind(&results)
            })
            .await?;
        for row in rows {
            let place = places[place(places.len(), row.try_get("ord"))?];
            verdicts[place] = Verdict::Decided(Kept::Done(Some(event_row(&row)?)));
        }
        Ok(verdicts)
    }

    /// Ends turns, however; notes in `finished` what becomes of their sessions.
    async fn finish_any(
        &mut self,
        asked: &[&Finish],
        finished: &mut Finished,
    ) -> Result<Vec<Verdict<Kept<Option<EventRow>>>>, StoreError> {
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
        for row in rows {
            let event = any_event(&row)?;
            let Told { done, own, held } = told(&row)?;
            let place = place(asked.len(), row.try_get("ord"))?;
            let finish = asked[place];
            if done {
                finished.handed.extend(any_session(&row)?.filter(|session| session.live));
                // Another may have written the session's row in between.
                let given_back: bool = row.try_get("given_back").map_err(StoreError::fault)?;
                finished.idle.extend(finish.turn.lease.clone().filter(|_| !given_back));
                let processed = event.filter(|event| matches!(event, EventRow::Processed(_)));
                verdicts[place] = Verdict::Decided(Kept::Done(processed));
                continue;
            }
            let was_done = own && event.as_ref().is_some_and(|event| finish.was_done(event));
            if was_done {
                // Its answer was lost, and perhaps what was to be given back.
                finished.idle.extend(finish.turn.lease.clone());
            }
            verdicts[place] = match event {
                Some(EventRow::Processed(event)) if was_done => {
                    Verdict::Decided(Kept::Done(Some(EventRow::Processed(event))))
                }
                Some(_) if was_done => Verdict::Decided(Kept::Done(None)),
                Some(EventRow::Claimed(claim)) if own && !claim.remaining.is_zero() => {
                    match finish.ending {
                        // It is a repetition's.
                        Ending::Abandoned => Verdict::Decided(Kept::ClaimLost),
                        _ if held => Verdict::Again,
                        _ => Verdict::Decided(Kept::LeaseLost),
                    }
                }
                _ => Verdict::Decided(Kept::ClaimLost),
            };
        }
        Ok(verdicts)
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
    let is_told: bool = row.try_get("told").map_err(StoreError::fault)?;
    if let EventRow::Claimed(claim) = &event
        && claim.request == begin.request
        && is_told
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
fn leftover(begin: &Begin, row: &PgRow) -> Result<Option<(SessionKey, LeaseId)>, StoreError> {
    let found = any_session(row)?.zip(begin.session.as_ref());
    Ok(found.and_then(|(session, asked)| match session.decision(asked) {
        Decision::Granted(lease) => Some((asked.key.clone(), lease.id)),
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

/// Requests for turns as a statement's arrays, $2 to $14 and $16, and how long attempts
/// are counted.
struct Wishes<'a> {
    teams: Vec<&'a str>,
    events: Vec<&'a str>,
    requests: Vec<Uuid>,
    claims: Vec<PgInterval>,
    holders: Vec<&'a str>,
    most: Vec<i32>,
    sessions: Vec<Option<&'a str>>,
    locks: Vec<Option<i64>>,
    leases: Vec<Option<Uuid>>,
    attempts: Vec<Option<Uuid>>,
    epics: Vec<Option<&'a str>>,
    ttls: Vec<Option<i64>>,
    labels: Vec<Option<String>>,
    digests: Vec<Option<Uuid>>,
}

/// A request for a turn, with the id that its lease has if one is granted.
type Wish<'a> = (&'a Begin, Uuid);

impl<'a> Wishes<'a> {
    fn of(asked: &[Wish<'a>]) -> Self {
        let in_session = |&(begin, lease): &Wish<'a>| begin.session.as_ref().map(|_| lease);
        let leases = asked.iter().map(in_session).collect();
        let asked = asked.iter().map(|(begin, _)| *begin);
        let sessions = || asked.clone().map(|begin| begin.session.as_ref());
        Self {
            teams: asked.clone().map(|begin| begin.event.key.team.as_str()).collect(),
            events: asked.clone().map(|begin| begin.event.key.event.as_str()).collect(),
            requests: asked.clone().map(|begin| begin.request.as_uuid()).collect(),
            claims: asked.clone().map(|begin| interval(begin.claim_ttl.span())).collect(),
            holders: asked.clone().map(|begin| begin.holder.as_str()).collect(),
            most: asked.clone().map(|begin| small(begin.max_attempts)).collect(),
            sessions: sessions().map(|asked| Some(asked?.key.session.as_str())).collect(),
            locks: sessions().map(|asked| Some(asked?.key.lock_key())).collect(),
            leases,
            attempts: sessions().map(|asked| Some(asked?.request.as_uuid())).collect(),
            epics: sessions().map(|asked| asked?.epic.as_deref()).collect(),
            ttls: sessions().map(|asked| Some(asked?.ttl.as_micros())).collect(),
            labels: sessions().map(|asked| Some(asked?.labels.to_json())).collect(),
            digests: asked.map(|begin| Some(begin.event.digest?.as_uuid())).collect(),
        }
    }

    fn bind<'q>(&'q self, statement: Statement<'q>) -> Statement<'q> {
        statement
            .bind(&self.teams)
            .bind(&self.events)
            .bind(&self.requests)
            .bind(&self.claims)
            .bind(&self.holders)
            .bind(&self.most)
            .bind(&self.sessions)
            .bind(&self.locks)
            .bind(&self.leases)
            .bind(&self.attempts)
            .bind(&self.epics)
            .bind(&self.ttls)
            .bind(&self.labels)
            .bind(interval(CLAIM_MEMORY))
            .bind(&self.digests)
    }
}

/// Turns as a statement's arrays.
struct Turns<'a> {
    teams: Vec<&'a str>,
    events: Vec<&'a str>,
    requests: Vec<Uuid>,
    attempts: Vec<i32>,
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
            requests: turns.clone().map(|turn| turn.request.as_uuid()).collect(),
            attempts: turns.map(|turn| small(turn.attempt)).collect(),
            sessions: sessions.clone().map(|lease| Some(key(lease)?.session.as_str())).collect(),
            locks: sessions.clone().map(|lease| Some(key(lease)?.lock_key())).collect(),
            leases: sessions.map(|lease| Some(lease?.1.as_uuid())).collect(),
        }
    }

    /// Binds all, and what is `seventh`.
    fn bind<'q>(
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
