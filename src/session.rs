//! May I work on this conversation now?
//!
//! The store's row says who holds a session. What is added here is the queue of
//! the callers that wait on this replica, and the care that a lease never stays
//! with a caller that has gone.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use crate::{
    domain::{Acquire, Decision, FencingToken, Held, Lease, LeaseId, SessionKey, SessionRow, Ttl},
    lane::{CallError, Lane, Lanes, MAX_BATCH},
    store::{Release, Renew, Store},
    telemetry::Metrics,
};

mod grant;
mod ops;
mod queue;

pub use grant::Grant;
use grant::{GiveBack, Grants};
use ops::{Look, Outcome, Take};
use queue::Queues;

/// The longest that the first in a queue waits before it looks again: how late
/// it may learn of a release on another replica.
const POLL: Duration = Duration::from_millis(250);

/// Why a session's lease could not be had, or kept.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SessionError {
    /// The lease has ended, was released, or is another's.
    #[error("the lease has ended or passed to another holder")]
    LeaseLost,
    /// The session is bound to other work.
    #[error("the session is bound to epic {bound:?}")]
    EpicMismatch {
        /// What it is bound to.
        bound: String,
    },
    /// Too many callers wait for this session already.
    #[error("too many callers wait for this session")]
    QueueFull,
    /// The lane or the store failed.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// The answer to a request for a lease.
pub enum AcquireOutcome {
    /// The session is the caller's, once it accepts.
    Granted(Grant),
    /// Somebody else holds it.
    Held {
        /// Who, and how long still.
        held: Held,
        /// How many callers wait for it on this replica.
        queue_length: usize,
    },
}

/// Takes, renews, gives back and checks leases. Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    takes: Lanes<Take>,
    renews: Lane<Renew>,
    releases: Lane<GiveBack>,
    looks: Lane<Look>,
    queues: Arc<Queues>,
    grants: Arc<Grants>,
    metrics: Metrics,
}

impl Sessions {
    /// Starts the lanes: `writers` for acquires, at most, each with a queue of
    /// `capacity` sessions.
    pub fn start(store: &impl Store, writers: usize, capacity: usize, metrics: &Metrics) -> Self {
        let lane = metrics.lane("acquire");
        let takes = Lanes::new(store.writers(writers), || {
            Lane::start(store.connection(), capacity, MAX_BATCH, lane.clone())
        });
        let renews = Lane::start(store.connection(), capacity, MAX_BATCH, metrics.lane("renew"));
        let releases =
            Lane::start(store.connection(), capacity, MAX_BATCH, metrics.lane("release"));
        let looks =
            Lane::start(store.connection(), capacity, MAX_BATCH, metrics.lane("look_session"));
        let queues = Arc::new(Queues::new(metrics.waiters.clone()));
        let grants = Arc::new(Grants::new(releases.clone(), Arc::clone(&queues)));
        Self { takes, renews, releases, looks, queues, grants, metrics: metrics.clone() }
    }

    /// Takes the lease of a session, queueing for up to `wait` while it is held.
    ///
    /// A lease that is granted to a caller that goes away before it accepts is
    /// given back at once; unless the caller has asked again by then, with the
    /// same request id, and was told of it.
    ///
    /// # Errors
    /// [`SessionError::EpicMismatch`], [`SessionError::QueueFull`] or
    /// [`SessionError::Call`]; then nothing is held.
    pub async fn acquire(
        &self,
        acquire: &Acquire,
        wait: Duration,
    ) -> Result<AcquireOutcome, SessionError> {
        let until = Instant::now() + wait;
        // Nobody overtakes the queue.
        let first = if self.queues.length(&acquire.key) == 0 {
            self.take(acquire).await?
        } else {
            self.peek(acquire).await?
        };
        let outcome = match first {
            Outcome::Held(_) if !wait.is_zero() => self.queue(acquire, until).await?,
            outcome => outcome,
        };
        match outcome {
            Outcome::Granted(grant) => {
                self.metrics.granted.inc();
                Ok(AcquireOutcome::Granted(grant))
            }
            Outcome::Held(held) => {
                self.metrics.held.inc();
                let queue_length = self.queues.length(&acquire.key);
                Ok(AcquireOutcome::Held { held, queue_length })
            }
            Outcome::EpicMismatch(bound) => Err(SessionError::EpicMismatch { bound }),
        }
    }

    /// Lets a lease run on for `ttl` from now.
    ///
    /// # Errors
    /// [`SessionError::LeaseLost`] when it has ended or is another's.
    pub async fn renew(
        &self,
        key: SessionKey,
        lease: LeaseId,
        ttl: Ttl,
    ) -> Result<Lease, SessionError> {
        self.renews.call(Renew { key, lease, ttl }).await?.ok_or(SessionError::LeaseLost)
    }

    /// Gives a lease back. Answers whether it is given back, now or before.
    ///
    /// # Errors
    /// [`SessionError::Call`]; then it is not known.
    pub async fn release(&self, key: SessionKey, lease: LeaseId) -> Result<bool, SessionError> {
        Ok(self.releases.call(self.give_back(key, lease)).await?)
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
        let row = self.looks.call(Look(key)).await?;
        let current = row.as_ref().is_some_and(|row| row.live && row.lease.token == token);
        Ok((current, row.map(|row| row.lease.token)))
    }

    async fn take(&self, acquire: &Acquire) -> Result<Outcome, CallError> {
        let lane = self.takes.at(self.takes.index(acquire.key.lock_key().cast_unsigned()));
        lane.call(Take { acquire: acquire.clone(), grants: Arc::clone(&self.grants) }).await
    }

    /// What a request would be told, without taking anything but what it has
    /// been granted before.
    async fn peek(&self, acquire: &Acquire) -> Result<Outcome, CallError> {
        let row: Option<SessionRow> = self.looks.call(Look(acquire.key.clone())).await?;
        Ok(match row.map(|row| row.decision(acquire)) {
            // To be told of it again is for the row to note.
            Some(Decision::Granted(_)) => self.take(acquire).await?,
            Some(Decision::Held(held)) => Outcome::Held(held),
            Some(Decision::EpicMismatch(bound)) => Outcome::EpicMismatch(bound),
            Some(Decision::Free) | None => Outcome::Held(Held::default()),
        })
    }

    /// Waits for the session, behind those who came before.
    async fn queue(&self, acquire: &Acquire, until: Instant) -> Result<Outcome, SessionError> {
        let place = self.queues.join(&acquire.key).ok_or(SessionError::QueueFull)?;
        let Ok(_turn) = timeout_at(until, place.turn()).await else {
            return Ok(self.peek(acquire).await?);
        };
        loop {
            let outcome = self.take(acquire).await?;
            let now = Instant::now();
            let Outcome::Held(held) = &outcome else {
                return Ok(outcome);
            };
            if now >= until {
                return Ok(outcome);
            }
            // The holder's end, another replica's release, or this one's.
            let wake = (now + held.remaining.min(POLL)).min(until);
            let _ = timeout_at(wake, place.freed()).await;
        }
    }

    fn give_back(&self, key: SessionKey, lease: LeaseId) -> GiveBack {
        let release = Release { key, lease, unless_repeated: false };
        GiveBack { release, queues: Arc::clone(&self.queues) }
    }
}
