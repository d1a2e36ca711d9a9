//! One event, worked on under one session's lease: begun together, finished together.
//!
//! A turn closes what a mark and a lease leave open between them: an event that is
//! marked while its thread is busy is lost; so is one whose run crashes after the mark; one
//! that is marked afterwards may run twice.

use std::{sync::Arc, time::Duration};

use tokio::{runtime::Handle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        Acquire, Begin, Begun, Claim, Decision, Delivered, EventRow, Finish, FinishAs, Held,
        Release, RenewTurn, StoredEvent, StreamId, TurnLost, TurnResult,
    },
    lane::{CallError, Lane, Lanes},
    session::{self, AcquireOutcome, Measured, SessionError, Sessions},
    store::{Store, StoreError, Work},
    telemetry::Metrics,
};

mod grant;
mod lane_ops;
mod run;

pub use grant::{Grant, Turn};
use lane_ops::{BeginCall, RenewTurnCall, TurnCall, TurnLanes, TurnReply};
pub use run::{Closed, RunEnd, RunEvent};

/// The most turns in one batch: each may lock a session, see [`session::BATCH`].
const BATCH: usize = session::BATCH;

/// The answer to a request for a turn.
pub enum TurnOutcome {
    /// The turn is the caller's, once it accepts.
    Granted(Box<Grant>),
    /// The event is handled, with this result of its turn.
    Duplicate(StoredEvent, TurnResult),
    /// Another run works on the event.
    InProgress(Measured<Claim>),
    /// The session is held, and the event still to be handled.
    Busy(Measured<Held>),
}

/// Begins, renews and finishes turns. Cheap to clone.
#[derive(Clone)]
pub struct Turns {
    lanes: Arc<TurnLanes>,
    renews: Lane<RenewTurnCall>,
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
        let lane = metrics.write_lane("turn");
        let calls = Lanes::start(store.writers(writers), runtimes, |runtime| {
            Lane::start(runtime, store.connection(Work::Turns), capacity, BATCH, lane.clone())
        });
        let runtime = &runtimes[runtimes.len() - 1];
        let lane = metrics.lane("renew_turn");
        let renews = Lane::start(runtime, store.connection(Work::Short), capacity, BATCH, lane);
        let of = |(worker, sessions): (usize, &Sessions)| {
            let calls = calls.near(worker, runtimes.len());
            Self {
                lanes: Arc::new(TurnLanes {
                    calls,
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
    /// [`SessionError::Call`], and then the turn may be granted: a repetition with the
    /// same request id finds it.
    pub async fn begin(&self, begin: Begin, wait: Duration) -> Result<TurnOutcome, SessionError> {
        self.begin_announcing(begin, wait, &CancellationToken::new(), |_| ()).await
    }

    /// [`Turns::begin`], which reports the caller's position in the session's queue, from 1, by
    /// `announce` each time that it changes. When `leaving` is cancelled the wait ends, as at a
    /// shutdown.
    async fn begin_announcing(
        &self,
        begin: Begin,
        wait: Duration,
        leaving: &CancellationToken,
        announce: impl Fn(usize),
    ) -> Result<TurnOutcome, SessionError> {
        let until = Instant::now() + wait;
        let outcome = match self.ask(&begin).await? {
            Ok(grant) => TurnOutcome::Granted(Box::new(grant)),
            Err(instead) => match (&instead.value, &begin.session) {
                (Begun::Busy(row), Some(acquire)) => match row.decision(acquire) {
                    Decision::EpicMismatch(bound) => {
                        return Err(SessionError::EpicMismatch { bound });
                    }
                    // Held by nobody, it is about to be handed on.
                    Decision::Held(held) if wait.is_zero() && !held.holder.is_empty() => {
                        TurnOutcome::Busy(Measured::new(held, instead.asked))
                    }
                    _ => self.queue(&begin, acquire, until, leaving, announce).await?,
                },
                _ => self.taken(instead, &begin.event)?,
            },
        };
        let count = match &outcome {
            TurnOutcome::Granted(_) => &self.lanes.metrics.granted,
            TurnOutcome::Duplicate(..) => &self.lanes.metrics.duplicate,
            TurnOutcome::InProgress(_) => &self.lanes.metrics.in_progress,
            TurnOutcome::Busy(_) => &self.lanes.metrics.busy,
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
        leaving: &CancellationToken,
        announce: impl Fn(usize),
    ) -> Result<TurnOutcome, SessionError> {
        let left = until.saturating_duration_since(Instant::now());
        let acquired =
            self.lanes.sessions.acquire_announcing(acquire, left, leaving, announce).await?;
        let lease = match acquired {
            AcquireOutcome::Granted(lease) => lease,
            AcquireOutcome::Held(held) => return Ok(TurnOutcome::Busy(held)),
        };
        let instead = match self.ask(&Begin { session: None, ..begin.clone() }).await? {
            Ok(mut grant) => {
                let held = lease.lease();
                grant.turn.id.lease = Some((acquire.key.clone(), held.value.id));
                grant.turn.lease = Some(held.clone());
                grant.lease = Some(lease);
                return Ok(TurnOutcome::Granted(Box::new(grant)));
            }
            Err(instead) => instead,
        };
        // An earlier run of this request, with another payload, may have the turn.
        let is_own =
            matches!(&instead.value, Begun::NotAvailable(row, _) if row.is_claim_of(begin.request));
        if lease.is_fresh() || !is_own {
            // Before it is answered: a crash in between would leave the session held.
            let id = lease.lease().value.id;
            // No row has this stream, so a repetition that has carried the lease on keeps it.
            let unless_resumed = lease.is_fresh().then(StreamId::random);
            let release = Release::new(acquire.key.clone(), id, unless_resumed);
            self.lanes.sessions.end(release).await?;
        }
        let _ = lease.accept();
        self.taken(instead, &begin.event)
    }

    /// Asks for a turn. The inner error says why there is none.
    async fn ask(&self, begin: &Begin) -> Result<Result<Grant, Measured<Begun>>, CallError> {
        let session = begin.session.as_ref();
        let shard = session.map_or(begin.event.key.shard(), |acquire| acquire.key.shard());
        let mut resumes = None;
        loop {
            let call = TurnCall::Begin(BeginCall::new(begin.anew(resumes), &self.lanes));
            match self.lanes.calls.of(shard).call(call).await? {
                TurnReply::Begun(granted) => return Ok(*granted),
                TurnReply::Found(prior) => resumes = Some(prior),
                TurnReply::Finished(_) => return Err(mixed_up()),
            }
        }
    }

    /// What there is instead of a turn of `event`.
    fn taken(
        &self,
        begun: Measured<Begun>,
        event: &Delivered,
    ) -> Result<TurnOutcome, SessionError> {
        let Measured { value: Begun::NotAvailable(row, result), asked } = begun else {
            return Err(mixed_up().into());
        };
        if event.contradicts(row.digest()) {
            self.lanes.metrics.mismatch.inc();
            return Err(SessionError::PayloadMismatch);
        }
        Ok(match row {
            EventRow::Processed(event) => TurnOutcome::Duplicate(event, result.unwrap_or_default()),
            EventRow::Claimed(claim) => TurnOutcome::InProgress(Measured::new(claim, asked)),
        })
    }

    /// Lets a turn run on: claim and lease together.
    ///
    /// # Errors
    /// [`SessionError::ClaimLost`], [`SessionError::LeaseLost`] or
    /// [`SessionError::HeldTooLong`], and then neither runs
    /// on by this; [`SessionError::StreamReplaced`], and then another stream keeps them;
    /// [`SessionError::Call`], and then it is not known.
    pub async fn renew(&self, renew: RenewTurn) -> Result<Turn, SessionError> {
        let id = renew.turn.clone();
        let renewal = RenewTurnCall { renew, max_hold: self.max_hold };
        let Measured { value, asked } = self.renews.call(renewal).await?;
        let (claim, lease) = or_lost(value, self.max_hold)?;
        let lease = lease.map(|lease| Measured::new(lease, asked));
        Ok(Turn { id, claim: Measured::new(claim, asked), lease })
    }

    /// Ends a turn, and hands its session on. Answers the event, where it is handled.
    ///
    /// # Errors
    /// [`SessionError::ClaimLost`], [`SessionError::LeaseLost`],
    /// [`SessionError::HeldTooLong`], and
    /// [`SessionError::StreamReplaced`] where the turn was carried on by another call, and
    /// then nothing is changed; [`SessionError::Call`], and then it is not known, and may
    /// be asked again.
    pub async fn finish(&self, finish: Finish) -> Result<Option<EventRow>, SessionError> {
        let metrics = &self.lanes.metrics;
        // Counted where the event is handled then.
        let handled = match finish.ending {
            FinishAs::Succeeded(..) => &metrics.succeeded,
            FinishAs::Rejected(..) => &metrics.rejected,
            FinishAs::Failed(_)
            | FinishAs::Broken
            | FinishAs::Abandoned(_)
            | FinishAs::Unanswered => &metrics.gave_up,
        };
        let lane = self.lanes.lane(&finish.turn).clone();
        let reply = lane.call(TurnCall::Finish(finish, Arc::clone(&self.lanes))).await?;
        let TurnReply::Finished(ended) = reply else { return Err(mixed_up().into()) };
        let ended = or_lost(ended, self.max_hold).inspect_err(|error| {
            if !matches!(error, SessionError::StreamReplaced) {
                metrics.lost.inc();
            }
        })?;
        let count = if ended.is_some() { handled } else { &metrics.failed };
        count.inc();
        Ok(ended)
    }
}

fn or_lost<T>(done: Result<T, TurnLost>, max_hold: Duration) -> Result<T, SessionError> {
    match done {
        Ok(done) => Ok(done),
        Err(TurnLost::Claim) => Err(SessionError::ClaimLost),
        Err(TurnLost::Lease(Some(held))) if held >= max_hold => {
            Err(SessionError::HeldTooLong(max_hold))
        }
        Err(TurnLost::Lease(_)) => Err(SessionError::LeaseLost),
        Err(TurnLost::Replaced) => Err(SessionError::StreamReplaced),
    }
}

fn mixed_up() -> CallError {
    StoreError::internal("unexpected kind of answer").into()
}
