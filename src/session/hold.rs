//! Leases that are kept for their holders: renewed for as long as they listen, and
//! given back when they stop.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout_at},
};

use super::{AcquireOutcome, SessionError, Sessions, ops::GiveBack};
use crate::{
    domain::{Acquire, Held, Lease, limits::MAX_WAITERS_PER_SESSION},
    store::Release,
};

/// How many events a slow listener may leave unread: every place that there is in
/// a queue, and some renewals. Later renewals are not told to it.
const UNREAD: usize = MAX_WAITERS_PER_SESSION + 16;

/// How soon a renewal that failed is tried again, as a share of the TTL.
const RETRIES: u32 = 10;

/// What somebody who holds a lease by listening is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holding {
    /// Their place in the queue, from 1.
    Queued(usize),
    /// The lease is theirs.
    Granted(Lease),
    /// It runs on.
    Renewed(Lease),
    /// Somebody else has it, and the wait has ended. The last that is told.
    Held {
        /// Who, and how long still.
        held: Held,
        /// How many callers wait for it on this replica.
        queue_length: usize,
    },
}

/// What is told, or why nothing more is.
type Told = Result<Holding, SessionError>;

impl Sessions {
    /// Takes the lease of a session, as [`Sessions::acquire`] does, and renews it at
    /// a third of its TTL for as long as the answer is kept. Once that is dropped,
    /// however that comes about, the place in the queue or the lease is given back.
    ///
    /// The lease outlives this replica: when it drains, it tells
    /// [`SessionError::Draining`] and leaves the lease to its holder.
    #[must_use]
    pub fn hold(&self, acquire: Acquire, wait: Duration) -> mpsc::Receiver<Told> {
        let (events, told) = mpsc::channel(UNREAD + 1);
        tokio::spawn(self.clone().keep(acquire, wait, events));
        told
    }

    async fn keep(self, acquire: Acquire, wait: Duration, events: mpsc::Sender<Told>) {
        // There is room for the last word, whatever is unread.
        let Ok(last_word) = events.clone().reserve_owned().await else { return };
        let announce = |place| tell(&events, Holding::Queued(place));
        let outcome = tokio::select! {
            // What was asked for, or granted, goes back as it is dropped.
            () = events.closed() => return,
            outcome = self.acquire_telling(&acquire, wait, announce) => outcome,
        };
        let grant = match outcome {
            Ok(AcquireOutcome::Granted(grant)) => grant,
            Ok(AcquireOutcome::Held { .. }) if self.stop.is_cancelled() => {
                last_word.send(Err(SessionError::Draining));
                return;
            }
            Ok(AcquireOutcome::Held { held, queue_length }) => {
                last_word.send(Ok(Holding::Held { held, queue_length }));
                return;
            }
            Err(error) => {
                last_word.send(Err(error));
                return;
            }
        };
        let asked = grant.asked;
        let lease = grant.accept();
        tell(&events, Holding::Granted(lease.clone()));
        let id = lease.id;
        if let Some(error) = self.renew_for(&acquire, lease, asked, &events).await {
            last_word.send(Err(error));
            return;
        }
        let release = Release { key: acquire.key, lease: id, unless_repeated: false };
        GiveBack { release, queues: self.queues }.post(&self.changes);
    }

    /// Renews `lease`, which was asked for at `asked`, until nobody listens any more;
    /// or until it cannot be vouched for, and then tells why.
    async fn renew_for(
        &self,
        acquire: &Acquire,
        lease: Lease,
        asked: Instant,
        events: &mpsc::Sender<Told>,
    ) -> Option<SessionError> {
        let ttl = acquire.ttl.span();
        let mut ends = asked + lease.remaining;
        let mut next = asked + ttl / 3;
        loop {
            tokio::select! {
                () = events.closed() => return None,
                () = self.stop.cancelled() => return Some(SessionError::Draining),
                () = sleep_until(next.min(ends)) => {}
            }
            let sent = Instant::now();
            let renewal = self.renew(acquire.key.clone(), lease.id, acquire.ttl);
            match timeout_at(ends, renewal).await {
                Ok(Ok(renewed)) => {
                    ends = sent + renewed.remaining;
                    next = sent + ttl / 3;
                    tell(events, Holding::Renewed(renewed));
                }
                Ok(Err(SessionError::Call(_))) if Instant::now() < ends => {
                    next = Instant::now() + ttl / RETRIES;
                }
                // By our clock, which counts from before the store's did, it has
                // ended: another may have it.
                Ok(Err(SessionError::Call(_))) | Err(_) => return Some(SessionError::LeaseLost),
                Ok(Err(error)) => return Some(error),
            }
        }
    }
}

/// Tells a listener what it can do without, if it reads at all.
fn tell(events: &mpsc::Sender<Told>, event: Holding) {
    let _ = events.try_send(Ok(event));
}
