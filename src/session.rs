//! May I work on this conversation now?
//!
//! The store's rows say who holds a session, and who is next. What is added here is
//! the care for the callers that wait on this replica, and that a lease never stays
//! with one that has gone.

use std::{sync::Arc, time::Duration};

use tokio::{runtime::Handle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{Acquire, FencingToken, Held, Lease, LeaseId, Release, Renew, SessionKey, SessionRow},
    lane::{CallError, Lane, Lanes, MAX_BATCH},
    store::{Store, StoreError, Work},
    telemetry::Metrics,
};

mod caller;
mod error;
mod events;
mod grant;
mod hold;
mod keeper;
mod lane_ops;
mod measured;
mod queue;
mod streams;
#[cfg(test)]
mod tests;
mod wait;

pub use caller::StreamCaller;
pub use error::SessionError;
pub(crate) use events::EventSender;
pub use events::{Events, StreamEvent};
pub use grant::Grant;
pub(crate) use grant::LatestRun;
use grant::{AcquireCall, Grants};
pub use hold::HoldEvent;
pub(crate) use keeper::{Keeper, Renewable};
use lane_ops::{
    Outcome, ReadSession, RenewCall, Renewal, SessionCall, SessionReply, SessionWorker,
};
pub use measured::Measured;
use queue::{PlaceTaken, Queues};
pub(crate) use streams::{Attendance, Concern, Streams};
use wait::{hear, heartbeat};

/// The most sessions in one batch that locks them. Every advisory lock takes a
/// place in a table that all of the database server's clients share, 6,400 by
/// default: a replica takes at most this for each of its writing lanes.
pub(crate) const BATCH: usize = 256;

/// The answer to a request for a lease.
pub enum AcquireOutcome {
    /// The session is the caller's, once it accepts.
    Granted(Grant),
    /// Another caller holds it.
    Held(Measured<Held>),
}

/// Bounds of leases and of their callers.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The most lanes for acquires and releases.
    pub writers: usize,
    /// The most sessions that queue for one lane.
    pub capacity: usize,
    /// The most callers that wait, for all sessions together.
    pub waiters: usize,
    /// How long a lease may be held, however often it is renewed.
    pub max_hold: Duration,
}

/// Takes, renews, gives back and checks leases. Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    lanes: Lanes<SessionCall>,
    max_hold: Duration,
    reads: Lane<ReadSession>,
    queues: Arc<Queues>,
    grants: Arc<Grants>,
    streams: Streams,
    stop: CancellationToken,
    metrics: Metrics,
}

impl Sessions {
    /// Starts the lanes. Nobody waits after `stop`. There is one answer for each of
    /// `runtimes`: to be used there, where its lanes are near.
    pub fn start(
        store: &impl Store,
        runtimes: &[Handle],
        bounds: Bounds,
        stop: &CancellationToken,
        metrics: &Metrics,
    ) -> Vec<Self> {
        let Bounds { writers, capacity, waiters, max_hold } = bounds;
        let streams = Streams::default();
        let queues = Arc::new(Queues::new(waiters, metrics, streams.clone()));
        let lane = metrics.write_lane("session");
        let lanes = Lanes::start(store.writers(writers), runtimes, |runtime| {
            let (store, queues) = (store.connection(Work::Leases), Arc::downgrade(&queues));
            let worker = SessionWorker { store, queues };
            Lane::start(runtime, worker, capacity, BATCH, lane.clone())
        });
        let runtime = &runtimes[runtimes.len() - 1];
        let look = metrics.lane("look_session");
        let reads = Lane::start(runtime, store.connection(Work::Short), capacity, MAX_BATCH, look);
        let beating = heartbeat(
            store.connection(Work::Short),
            Arc::downgrade(&queues),
            lanes.clone(),
            stop.clone(),
        );
        runtime.spawn(beating);
        runtime.spawn(hear(store.hints(), Arc::downgrade(&queues), stop.clone()));
        let of = |worker| {
            let lanes = lanes.near(worker, runtimes.len());
            let near = lanes.clone();
            let give_back = move |key: &SessionKey, lease, stream| {
                let unless_resumed = Some(stream);
                let release = Release::new(key.clone(), lease, unless_resumed);
                SessionCall::post_release(&near, release);
            };
            Self {
                grants: Arc::new(Grants::new(give_back)),
                lanes,
                max_hold,
                reads: reads.clone(),
                queues: Arc::clone(&queues),
                streams: streams.clone(),
                stop: stop.clone(),
                metrics: metrics.clone(),
            }
        };
        (0..runtimes.len()).map(of).collect()
    }

    /// Takes the lease of a session, queueing for up to `wait` while it is held.
    ///
    /// A lease that is granted to a caller that goes away before it accepts is
    /// given back at once, unless a repetition with the same request id has been answered by then.
    ///
    /// # Errors
    /// [`SessionError::EpicMismatch`] or [`SessionError::QueueFull`], and then
    /// nothing is held; [`SessionError::Call`], and then a lease may be held until its TTL ends: a
    /// repetition with the same request id finds it.
    pub async fn acquire(
        &self,
        acquire: &Acquire,
        wait: Duration,
    ) -> Result<AcquireOutcome, SessionError> {
        self.acquire_announcing(acquire, wait, &CancellationToken::new(), |_| ()).await
    }

    /// [`Sessions::acquire`], which reports the caller's position in the queue, from 1, by `announce`
    /// each time that it changes. When `leaving` is cancelled the wait ends, as at a shutdown.
    pub(crate) async fn acquire_announcing(
        &self,
        acquire: &Acquire,
        wait: Duration,
        leaving: &CancellationToken,
        announce: impl Fn(usize),
    ) -> Result<AcquireOutcome, SessionError> {
        let outcome = if wait.is_zero() {
            self.take_or_hand_on(acquire).await?
        } else {
            self.take_or_wait(acquire, Instant::now() + wait, leaving, announce).await?
        };
        match outcome {
            Outcome::Granted(grant) => {
                self.metrics.granted.inc();
                Ok(AcquireOutcome::Granted(grant))
            }
            Outcome::Held(held) => {
                self.metrics.held.inc();
                Ok(AcquireOutcome::Held(held))
            }
            Outcome::EpicMismatch(bound) => Err(SessionError::EpicMismatch { bound }),
        }
    }

    /// Lets a lease run on for its TTL from now, unless it ends later already, or until it has been
    /// held for as long as any may be.
    ///
    /// # Errors
    /// [`SessionError::HeldTooLong`] when it has been, [`SessionError::StreamReplaced`]
    /// when another stream keeps it, [`SessionError::LeaseLost`] when it has ended
    /// otherwise or is another's.
    pub async fn renew(&self, renew: Renew) -> Result<Measured<Lease>, SessionError> {
        let call = RenewCall { renew, max_hold: self.max_hold };
        let SessionReply::Renewed(renewal) = self.call(SessionCall::Renew(call)).await? else {
            return Err(unexpected().into());
        };
        match renewal {
            Renewal::Renewed(lease) => Ok(lease),
            Renewal::HeldTooLong => Err(SessionError::HeldTooLong(self.max_hold)),
            Renewal::Replaced => Err(SessionError::StreamReplaced),
            Renewal::Lost => Err(SessionError::LeaseLost),
        }
    }

    /// Gives a lease back. Answers whether it is given back, now or before.
    ///
    /// # Errors
    /// [`SessionError::Call`]; then it is not known.
    pub async fn release(&self, key: SessionKey, lease: LeaseId) -> Result<bool, SessionError> {
        self.end(Release::new(key, lease, None)).await
    }

    /// [`Sessions::release`], unless the lease was carried on.
    pub(crate) async fn end(&self, release: Release) -> Result<bool, SessionError> {
        match self.call(SessionCall::Release(release)).await? {
            SessionReply::Released(released) => Ok(released),
            _ => Err(unexpected().into()),
        }
    }

    /// Tells whether `token` is the one of the session's current lease, and the
    /// highest token granted.
    ///
    /// # Errors
    /// [`SessionError::Call`].
    pub async fn check(
        &self,
        key: SessionKey,
        token: FencingToken,
    ) -> Result<(bool, Option<FencingToken>), SessionError> {
        let row = self.look(key).await?;
        let current = row.as_ref().is_some_and(|row| row.live && row.lease.token == token);
        Ok((current, row.map(|row| row.lease.token)))
    }

    /// A session's row; none where it has none.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn look(&self, key: SessionKey) -> Result<Option<SessionRow>, CallError> {
        self.reads.call(ReadSession(key)).await
    }

    /// Gives back a lease whose turn did not begin, without waiting for the answer. A call that has carried it on
    /// meanwhile keeps it: its caller may have been answered an error, and have asked again.
    pub(crate) fn give_back(&self, key: &SessionKey, lease: LeaseId) {
        self.grants.give_back(key, lease);
    }

    /// Counts a call of a team in that holds for as long as it lives.
    ///
    /// # Errors
    /// [`SessionError::TooManyCalls`], [`SessionError::TooManyOfTeam`].
    pub(crate) fn count_in(&self, team: &str) -> Result<PlaceTaken, SessionError> {
        self.queues.hold(team)
    }

    /// Whether the server is about to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Waits until the server is about to end.
    pub(crate) async fn stopping(&self) {
        self.stop.cancelled().await;
    }

    /// The streams of this replica.
    pub(crate) fn streams(&self) -> &Streams {
        &self.streams
    }

    /// A session went to the next waiter, by a statement that began at `asked`: informs the waiter
    /// if it waits here.
    pub(crate) fn deliver(&self, row: SessionRow, asked: Instant) {
        self.queues.deliver(row, asked);
    }

    /// Hands a session on to the next waiter, if it is free. Answers how it stands.
    ///
    /// # Errors
    /// [`CallError`]; then its waiters hand it on within a second.
    pub async fn hand_on(&self, key: SessionKey) -> Result<Option<SessionRow>, CallError> {
        match self.call(SessionCall::HandOn(key)).await? {
            SessionReply::HandedOn(row) => Ok(row),
            _ => Err(unexpected()),
        }
    }

    /// Takes the session, or waits for it.
    async fn take_or_wait(
        &self,
        acquire: &Acquire,
        until: Instant,
        leaving: &CancellationToken,
        announce: impl Fn(usize),
    ) -> Result<Outcome, SessionError> {
        let Some(known) = self.queues.seen(&acquire.key) else {
            return match self.take_or_hand_on(acquire).await? {
                Outcome::Held(known) => self.queue(acquire, until, known, leaving, announce).await,
                outcome => Ok(outcome),
            };
        };
        // Others wait here: so will this one, most likely.
        match self.queue(acquire, until, known, leaving, announce).await {
            // A caller that need not wait needs no place.
            Err(
                refusal @ (SessionError::QueueFull
                | SessionError::TooManyCalls
                | SessionError::TooManyOfTeam),
            ) => match self.take_or_hand_on(acquire).await? {
                Outcome::Held(_) => Err(refusal),
                outcome => Ok(outcome),
            },
            queued => queued,
        }
    }

    /// Takes the session. If it is free and has waiters, it is handed on before.
    async fn take_or_hand_on(&self, acquire: &Acquire) -> Result<Outcome, SessionError> {
        let outcome = self.take(acquire).await?;
        if !matches!(&outcome, Outcome::Held(held) if held.value.holder.is_empty()) {
            return Ok(outcome);
        }
        self.hand_on(acquire.key.clone()).await?;
        // All who waited may have gone.
        Ok(self.take(acquire).await?)
    }

    /// Takes the session, if it is free; or carries on the lease of the same request.
    async fn take(&self, acquire: &Acquire) -> Result<Outcome, CallError> {
        let mut resumes = None;
        loop {
            let call = AcquireCall::new(acquire.anew(resumes), &self.grants);
            match self.call(SessionCall::Acquire(call)).await? {
                SessionReply::Acquired(outcome) => return Ok(outcome),
                SessionReply::Found(prior) => resumes = Some(prior),
                _ => return Err(unexpected()),
            }
        }
    }

    fn call(
        &self,
        call: SessionCall,
    ) -> impl Future<Output = Result<SessionReply, CallError>> + use<> {
        self.lanes.of(call.session().shard()).call(call)
    }
}

/// A lane answered another kind of operation than it was asked.
fn unexpected() -> CallError {
    StoreError::internal("unexpected kind of answer to an operation on a session").into()
}
