//! One event, worked on under one session's lease: begun together, finished together.
//!
//! A turn closes what a mark and a lease leave open between them: an event that is
//! marked and whose thread is busy is burnt; one whose run crashes is lost; one that is
//! marked afterwards runs twice.

use std::{
    iter::once,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{runtime::Handle, time::Instant};

use crate::{
    domain::{
        Acquire, Begin, Begun, Claim, Decision, Delivered, Ending, EventKey, EventRow, Finish,
        Held, Kept, Lease, Names, Prolong, RequestId, StoredEvent, TurnId,
    },
    lane::{CallError, Executes, Lane, Lanes, Op},
    session::{self, AcquireOutcome, SessionError, Sessions},
    store::{Connection, Prolonged, Store, StoreError, Verdict},
    telemetry::{Metrics, TurnMetrics},
};

mod run;

pub use run::Running;

/// The most turns in one batch: each may lock a session, see [`session::BATCH`].
const BATCH: usize = session::BATCH;

/// A turn, as its holder knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Names it.
    pub id: TurnId,
    /// The event.
    pub claim: Claim,
    /// The session's lease, where there is one.
    pub lease: Option<Lease>,
}

/// The answer to a request for a turn.
pub enum TurnOutcome {
    /// The turn is the caller's, once it accepts.
    Granted(Box<Grant>),
    /// The event is handled, with this result of its turn.
    Duplicate(StoredEvent, Vec<u8>),
    /// Another run works on the event.
    InProgress(Claim),
    /// The session is held, and the event still to be handled.
    Busy(Held),
}

/// A turn that its caller has yet to accept. Dropped before, it is as if it had never
/// been; unless the caller has asked again by then, with the same request id.
pub struct Grant {
    turn: Turn,
    /// When it was asked for, or later: claim and lease run from then at the earliest.
    asked: Instant,
    /// None where an earlier answer granted it.
    delivery: Option<Arc<Delivery>>,
    /// Of a lease that was waited for.
    lease: Option<session::Grant>,
}

impl Grant {
    /// The turn is on its way to its holder, and no longer given up.
    #[must_use]
    pub fn accept(self) -> Turn {
        if let Some(delivery) = &self.delivery {
            delivery.accepted.store(true, Ordering::Relaxed);
        }
        if let Some(lease) = self.lease {
            let _ = lease.accept();
        }
        self.turn
    }
}

/// A turn that was granted just now, on its way to the callers of one batch whose
/// request it answers. If the last of them has gone and none has accepted it, it is
/// given up.
struct Delivery {
    turn: TurnId,
    lanes: Arc<Turning>,
    accepted: AtomicBool,
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if *self.accepted.get_mut() {
            return;
        }
        let finish = Finish { turn: self.turn.clone(), ending: Ending::Abandoned };
        if self.lanes.finish(finish).is_err() {
            // It ends with its TTL, as a crashed holder's does.
            tracing::warn!("no room to give up the turn of a caller that went away");
        }
    }
}

/// What turns are begun and ended by.
struct Turning {
    changes: Lanes<Change>,
    sessions: Sessions,
    metrics: TurnMetrics,
}

impl Turning {
    fn lane(&self, turn: &TurnId) -> &Lane<Change> {
        let shard = turn.lease.as_ref().map_or(turn.event.shard(), |(key, _)| key.shard());
        self.changes.of(shard)
    }

    /// Leaves it to a lane: nobody waits for the answer.
    fn finish(self: &Arc<Self>, finish: Finish) -> Result<(), CallError> {
        let lane = self.lane(&finish.turn);
        lane.post(Change::Finish(finish, Arc::clone(self)))
    }
}

/// Begins or ends a turn. Both share lanes, so that what one caller asks for is done
/// in that order.
enum Change {
    Begin(Box<Begin>, Arc<Turning>),
    Finish(Finish, Arc<Turning>),
}

/// What a batch answers for one change: to whoever asked for that very one, but for an
/// event that is taken.
enum Became {
    Begun(Delivered, RequestId, Begun, Option<Arc<Delivery>>),
    Finished(Finish, Kept<Option<EventRow>>),
}

enum Told {
    Begun(Box<Result<Grant, Begun>>),
    Finished(Kept<Option<EventRow>>),
}

impl Change {
    fn event(&self) -> &EventKey {
        match self {
            Self::Begin(begin, _) => &begin.event.key,
            Self::Finish(finish, _) => &finish.turn.event,
        }
    }

    /// Takes the names that it is about, unless another of the batch has.
    fn take_names<'a>(&'a self, names: &mut Names<'a>) -> bool {
        match self {
            Self::Begin(begin, _) => names.take_of(&begin.event),
            Self::Finish(finish, _) => {
                let EventKey { team, event } = &finish.turn.event;
                names.take(team, once(event.as_str()))
            }
        }
    }
}

impl Op for Change {
    /// The session, or the event of a turn without one: one change of it at a time.
    type Key<'a> = (&'a str, &'a str, bool);
    type Row = Became;
    type Answer = Told;

    fn key(&self) -> (&str, &str, bool) {
        let session = match self {
            Self::Begin(begin, _) => begin.session.as_ref().map(|acquire| &acquire.key),
            Self::Finish(finish, _) => finish.turn.lease.as_ref().map(|(key, _)| key),
        };
        match session {
            Some(key) => (&key.team, &key.session, true),
            None => (&self.event().team, &self.event().event, false),
        }
    }

    fn answer(&self, became: &Became) -> Verdict<Told> {
        match (self, became) {
            // By whomever, but itself.
            (Self::Begin(begin, _), Became::Begun(event, _, taken @ Begun::Taken(row, _), _))
                if event.is_named_as(&begin.event)
                    && !matches!(row, EventRow::Claimed(claim) if claim.request == begin.request) =>
            {
                Verdict::Decided(Told::Begun(Box::new(Err(taken.clone()))))
            }
            (Self::Begin(begin, _), Became::Begun(_, asker, outcome, delivery))
                if *asker == begin.request =>
            {
                let Begun::Granted { claim, lease, .. } = outcome else {
                    return Verdict::Decided(Told::Begun(Box::new(Err(outcome.clone()))));
                };
                if begin.event.contradicts(claim.digest) {
                    let row = EventRow::Claimed(claim.clone());
                    return Verdict::Decided(Told::Begun(Box::new(Err(Begun::Taken(row, None)))));
                }
                let id = turn_id(begin, claim, lease.as_ref());
                let turn = Turn { id, claim: claim.clone(), lease: lease.clone() };
                let (now, delivery) = (Instant::now(), delivery.clone());
                let grant = Grant { turn, asked: now, delivery, lease: None };
                Verdict::Decided(Told::Begun(Box::new(Ok(grant))))
            }
            (Self::Finish(finish, _), Became::Finished(asked, kept)) if asked == finish => {
                Verdict::Decided(Told::Finished(kept.clone()))
            }
            _ => Verdict::Again,
        }
    }
}

/// What names a turn that was granted.
fn turn_id(begin: &Begin, claim: &Claim, lease: Option<&Lease>) -> TurnId {
    let held = begin.session.as_ref().zip(lease);
    TurnId {
        event: begin.event.key.clone(),
        request: begin.request,
        attempt: claim.attempt,
        lease: held.map(|(acquire, lease)| (acquire.key.clone(), lease.id)),
        max_attempts: begin.max_attempts,
    }
}

impl<S: Connection> Executes<Change> for S {
    async fn execute(&mut self, ops: &[&Change]) -> Result<Vec<Verdict<Became>>, StoreError> {
        let mut names = Names::default();
        let (mut begins, mut finishes) = (Vec::new(), Vec::new());
        for (place, op) in ops.iter().enumerate() {
            if !op.take_names(&mut names) {
                continue;
            }
            match op {
                Change::Begin(begin, lanes) => begins.push((place, &**begin, lanes)),
                Change::Finish(finish, lanes) => finishes.push((place, finish, lanes)),
            }
        }
        let mut verdicts: Vec<_> = ops.iter().map(|_| Verdict::Again).collect();
        let wanted: Vec<&Begin> = begins.iter().map(|(_, begin, _)| *begin).collect();
        let ended: Vec<&Finish> = finishes.iter().map(|(_, finish, _)| *finish).collect();
        let asked = Instant::now();
        let turned = self.change_turns(&wanted, &ended).await?;
        let of_begin = begins.first().map(|(_, _, lanes)| *lanes);
        if let Some(lanes) = of_begin.or(finishes.first().map(|(_, _, lanes)| *lanes)) {
            for row in turned.handed {
                lanes.sessions.deliver(row, asked);
            }
            for (key, lease) in turned.idle {
                lanes.sessions.give_back(key, lease);
            }
            lanes.metrics.lapsed.inc_by(turned.lapsed);
            lanes.metrics.gave_up.inc_by(turned.gave_up);
        }
        for ((place, finish, _), kept) in finishes.iter().zip(turned.kept) {
            verdicts[*place] = kept.map(|kept| Became::Finished((*finish).clone(), kept));
        }
        for ((place, begin, lanes), verdict) in begins.iter().zip(turned.begun) {
            verdicts[*place] = verdict.map(|outcome| {
                let delivery = match &outcome {
                    Begun::Granted { claim, lease, fresh: true } => Some(Arc::new(Delivery {
                        turn: turn_id(begin, claim, lease.as_ref()),
                        lanes: Arc::clone(lanes),
                        accepted: AtomicBool::new(false),
                    })),
                    _ => None,
                };
                Became::Begun(begin.event.clone(), begin.request, outcome, delivery)
            });
        }
        Ok(verdicts)
    }
}

/// Lets a turn run on.
struct RunOn {
    prolong: Prolong,
    /// For so long at most since its lease was granted; the same for all.
    max_hold: Duration,
}

impl Op for RunOn {
    type Key<'a> = (&'a str, &'a str);
    type Row = (TurnId, Prolonged);
    type Answer = Prolonged;

    fn key(&self) -> (&str, &str) {
        let event = &self.prolong.turn.event;
        (&event.team, &event.event)
    }

    fn answer(&self, (turn, kept): &Self::Row) -> Verdict<Self::Answer> {
        if *turn == self.prolong.turn { Verdict::Decided(kept.clone()) } else { Verdict::Again }
    }
}

impl<S: Connection> Executes<RunOn> for S {
    async fn execute(
        &mut self,
        ops: &[&RunOn],
    ) -> Result<Vec<Verdict<<RunOn as Op>::Row>>, StoreError> {
        let max_hold = ops.first().map_or(Duration::ZERO, |op| op.max_hold);
        let asked: Vec<&Prolong> = ops.iter().map(|op| &op.prolong).collect();
        let kept = self.prolong_turns(&asked, max_hold).await?.into_iter().zip(asked);
        Ok(kept.map(|(kept, asked)| kept.map(|kept| (asked.turn.clone(), kept))).collect())
    }
}

/// Begins, renews and finishes turns. Cheap to clone.
#[derive(Clone)]
pub struct Turns {
    turning: Arc<Turning>,
    renews: Lane<RunOn>,
    max_hold: Duration,
}

impl Turns {
    /// Starts the lanes: one answer for each of `runtimes`, to be used there, and
    /// `sessions` likewise.
    pub fn start(
        store: &impl Store,
        runtimes: &[Handle],
        sessions: &[Sessions],
        bounds: session::Bounds,
        metrics: &Metrics,
    ) -> Vec<Self> {
        let session::Bounds { writers, capacity, max_hold, .. } = bounds;
        let lane = metrics.lane("turn");
        let changes = Lanes::start(store.writers(writers), runtimes, |runtime| {
            Lane::start(runtime, store.connection(), capacity, BATCH, lane.clone())
        });
        let runtime = &runtimes[runtimes.len() - 1];
        let lane = metrics.lane("renew_turn");
        let renews = Lane::start(runtime, store.connection(), capacity, BATCH, lane);
        let of = |(worker, sessions): (usize, &Sessions)| {
            let changes = changes.near(worker, runtimes.len());
            Self {
                turning: Arc::new(Turning {
                    changes,
                    sessions: sessions.clone(),
                    metrics: metrics.turns.clone(),
                }),
                renews: renews.clone(),
                max_hold,
            }
        };
        sessions.iter().enumerate().map(of).collect()
    }

    /// Claims an event and takes its session, queueing for that for up to `wait`. When
    /// its turn comes, the event is looked at again. Unless it is granted, nothing is
    /// claimed.
    ///
    /// # Errors
    /// [`SessionError::EpicMismatch`], [`SessionError::PayloadMismatch`] or
    /// [`SessionError::QueueFull`];
    /// [`SessionError::Call`], and then the turn may be granted, which a repetition with
    /// the same request id is told of.
    pub async fn begin(&self, begin: Begin, wait: Duration) -> Result<TurnOutcome, SessionError> {
        self.begin_telling(begin, wait, |_| ()).await
    }

    /// [`Turns::begin`], which tells by `announce` what place in the session's queue the
    /// caller has, from 1, and again whenever that changes.
    async fn begin_telling(
        &self,
        begin: Begin,
        wait: Duration,
        announce: impl Fn(usize),
    ) -> Result<TurnOutcome, SessionError> {
        let until = Instant::now() + wait;
        let outcome = match self.ask(begin.clone()).await? {
            Ok(grant) => TurnOutcome::Granted(Box::new(grant)),
            Err(instead) => match (instead, &begin.session) {
                (Begun::Busy(row), Some(acquire)) => match row.decision(acquire) {
                    Decision::EpicMismatch(bound) => {
                        return Err(SessionError::EpicMismatch { bound });
                    }
                    // Held by nobody, it is about to be handed on.
                    Decision::Held(held) if wait.is_zero() && !held.holder.is_empty() => {
                        TurnOutcome::Busy(held)
                    }
                    _ => self.queue(&begin, acquire, until, announce).await?,
                },
                (instead, _) => self.taken(instead, &begin.event)?,
            },
        };
        let count = match &outcome {
            TurnOutcome::Granted(_) => &self.turning.metrics.granted,
            TurnOutcome::Duplicate(..) => &self.turning.metrics.duplicate,
            TurnOutcome::InProgress(_) => &self.turning.metrics.in_progress,
            TurnOutcome::Busy(_) => &self.turning.metrics.busy,
        };
        count.inc();
        Ok(outcome)
    }

    /// Waits for the session, and claims the event once that is had.
    async fn queue(
        &self,
        begin: &Begin,
        acquire: &Acquire,
        until: Instant,
        announce: impl Fn(usize),
    ) -> Result<TurnOutcome, SessionError> {
        let left = until.saturating_duration_since(Instant::now());
        let lease = match self.turning.sessions.acquire_telling(acquire, left, announce).await? {
            AcquireOutcome::Granted(lease) => lease,
            AcquireOutcome::Held(held) => return Ok(TurnOutcome::Busy(held)),
        };
        let instead = match self.ask(Begin { session: None, ..begin.clone() }).await? {
            Ok(mut grant) => {
                let held = lease.lease();
                grant.turn.id.lease = Some((acquire.key.clone(), held.id));
                grant.turn.lease = Some(held.clone());
                grant.asked = lease.asked;
                grant.lease = Some(lease);
                return Ok(TurnOutcome::Granted(Box::new(grant)));
            }
            Err(instead) => instead,
        };
        // An earlier run of this request, with another payload, may have the turn.
        let is_own = matches!(&instead, Begun::Taken(row, _) if row.is_claim_of(begin.request));
        if lease.is_fresh() || !is_own {
            // Before it is answered: a crash in between would leave the session held.
            let id = lease.lease().id;
            self.turning.sessions.release(acquire.key.clone(), id).await?;
            let _ = lease.accept();
        }
        self.taken(instead, &begin.event)
    }

    /// Asks for a turn. The inner error is what there is instead.
    async fn ask(&self, begin: Begin) -> Result<Result<Grant, Begun>, CallError> {
        let session = begin.session.as_ref();
        let shard = session.map_or(begin.event.key.shard(), |acquire| acquire.key.shard());
        let change = Change::Begin(Box::new(begin), Arc::clone(&self.turning));
        let asked = Instant::now();
        match self.turning.changes.of(shard).call(change).await? {
            Told::Begun(told) => Ok(told.map(|grant| Grant { asked, ..grant })),
            Told::Finished(_) => Err(mixed_up()),
        }
    }

    /// What there is instead of a turn of `event`.
    fn taken(&self, begun: Begun, event: &Delivered) -> Result<TurnOutcome, SessionError> {
        let Begun::Taken(row, result) = begun else { return Err(mixed_up().into()) };
        if event.contradicts(row.digest()) {
            self.turning.metrics.mismatch.inc();
            return Err(SessionError::PayloadMismatch);
        }
        Ok(match row {
            EventRow::Processed(event) => TurnOutcome::Duplicate(event, result.unwrap_or_default()),
            EventRow::Claimed(claim) => TurnOutcome::InProgress(claim),
        })
    }

    /// Lets a turn run on: claim and lease together.
    ///
    /// # Errors
    /// [`SessionError::ClaimLost`] or [`SessionError::LeaseLost`], and then neither runs
    /// on by this; [`SessionError::Call`], and then it is not known.
    pub async fn renew(&self, prolong: Prolong) -> Result<Turn, SessionError> {
        let id = prolong.turn.clone();
        let run_on = RunOn { prolong, max_hold: self.max_hold };
        let (claim, lease) = kept(self.renews.call(run_on).await?)?;
        Ok(Turn { id, claim, lease })
    }

    /// Ends a turn, and hands its session on. Answers the event, where it is handled.
    ///
    /// # Errors
    /// [`SessionError::ClaimLost`] or [`SessionError::LeaseLost`], and then nothing is
    /// changed; [`SessionError::Call`], and then it is not known, and may be asked again.
    pub async fn finish(&self, finish: Finish) -> Result<Option<EventRow>, SessionError> {
        let succeeded = matches!(finish.ending, Ending::Succeeded(..));
        let lane = self.turning.lane(&finish.turn).clone();
        let told = lane.call(Change::Finish(finish, Arc::clone(&self.turning))).await?;
        let Told::Finished(ended) = told else { return Err(mixed_up().into()) };
        let ended = kept(ended).inspect_err(|_| {
            self.turning.metrics.lost.inc();
        })?;
        let count = match (&ended, succeeded) {
            (_, true) => &self.turning.metrics.succeeded,
            (None, false) => &self.turning.metrics.failed,
            (Some(_), false) => &self.turning.metrics.gave_up,
        };
        count.inc();
        Ok(ended)
    }
}

fn kept<T>(kept: Kept<T>) -> Result<T, SessionError> {
    match kept {
        Kept::Done(done) => Ok(done),
        Kept::ClaimLost => Err(SessionError::ClaimLost),
        Kept::LeaseLost => Err(SessionError::LeaseLost),
    }
}

fn mixed_up() -> CallError {
    StoreError::fault("the answer to another question").into()
}
