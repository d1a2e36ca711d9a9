//! Leases that are kept for their holders: renewed for as long as they listen, and
//! given back when they stop.

use std::time::Duration;

use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::{AcquireOutcome, Caller, SessionError, Sessions, ops::GiveBack};
use crate::{
    domain::{Acquire, Held, Lease, StreamId, limits::MAX_WAITERS_PER_SESSION},
    lane::CallError,
    store::{Release, Renew, StoreError},
};

/// How many events a slow listener may leave unread: every place that there is in
/// a queue, and some renewals. Later renewals are not told to it.
pub(crate) const UNREAD: usize = MAX_WAITERS_PER_SESSION + 16;

/// A lease is renewed when a third of what is left of it is over; and not more often
/// than this.
pub(crate) const LEAST_PAUSE: Duration = Duration::from_millis(50);

/// How long a renewal may take that comes late, as where the server has stalled: by our clock
/// its end is over, but its holder may have carried it on by another call.
const LATE_RENEWAL: Duration = Duration::from_secs(1);

/// By when a renewal that is sent at `sent` must be answered, of what ends at `ends`.
pub(crate) fn renewed_by(sent: Instant, ends: Instant) -> Instant {
    if sent > ends + LEAST_PAUSE { sent + LATE_RENEWAL } else { ends }
}

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
    Held(Held),
}

/// What is told, or why nothing more is.
type Told = Result<Holding, SessionError>;

impl Sessions {
    /// Takes the lease of a session, as [`Sessions::acquire`] does, within `limit`
    /// and the wait; and renews it for as long as the answer is kept. Once that is
    /// dropped, however that comes about, the place in the queue or the lease is given
    /// back: but not a lease that its holder has carried on since by another call.
    ///
    /// The lease outlives this replica and the caller's connection: when either is ended
    /// by the server, the last event is [`SessionError::Draining`] and the lease stays its
    /// holder's.
    #[must_use]
    pub fn hold(
        &self,
        acquire: Acquire,
        wait: Duration,
        limit: Duration,
        caller: Caller,
    ) -> Receiver<Told> {
        let (events, told) = mpsc::channel(UNREAD + 2);
        tokio::spawn(self.clone().keep(acquire, StreamId::random(), wait, limit, caller, events));
        told
    }

    async fn keep(
        self,
        acquire: Acquire,
        stream: StreamId,
        wait: Duration,
        limit: Duration,
        caller: Caller,
        events: Sender<Told>,
    ) {
        let acquire = Acquire { stream: Some(stream), ..acquire };
        // There is room for the grant and the last word, whatever is unread.
        let (Ok(first_word), Ok(last_word)) =
            (events.clone().reserve_owned().await, events.clone().reserve_owned().await)
        else {
            return;
        };
        let Some(_holding) = self.queues.hold() else {
            last_word.send(Err(SessionError::QueueFull));
            return;
        };
        let announce = |place| tell(&events, Holding::Queued(place));
        let asking = timeout(wait + limit, self.acquire_telling(&acquire, wait, announce));
        let outcome = tokio::select! {
            // What was asked for, or granted, goes back as it is dropped.
            () = events.closed() => return,
            () = caller.leaving.cancelled() => Err(SessionError::Draining),
            outcome = asking => outcome.unwrap_or_else(|_| {
                Err(CallError::from(StoreError::unavailable("timed out waiting for the answer")).into())
            }),
        };
        let grant = match outcome {
            Ok(AcquireOutcome::Granted(grant)) => grant,
            Ok(AcquireOutcome::Held(_)) if self.stop.is_cancelled() => {
                last_word.send(Err(SessionError::Draining));
                return;
            }
            Ok(AcquireOutcome::Held(held)) => {
                last_word.send(Ok(Holding::Held(held)));
                return;
            }
            Err(error) => {
                last_word.send(Err(error));
                return;
            }
        };
        let asked = grant.asked;
        let lease = grant.accept();
        first_word.send(Ok(Holding::Granted(lease.clone())));
        let id = lease.id;
        let lost = self.renew_for(&acquire, lease, asked, &caller, &events).await;
        let outlives_us = matches!(lost, Some(SessionError::Draining));
        if let Some(error) = lost {
            last_word.send(Err(error));
        }
        if !outlives_us {
            // Where it is lost, a renewal may yet come through.
            let unless_resumed = Some(stream);
            let release = Release { key: acquire.key, lease: id, unless_resumed };
            GiveBack { release, queues: self.queues }.post(&self.changes);
        }
    }

    /// Renews `lease`, which was asked for at `asked`, until nobody listens any more;
    /// or until it cannot be vouched for, and then tells why.
    async fn renew_for(
        &self,
        acquire: &Acquire,
        mut lease: Lease,
        asked: Instant,
        caller: &Caller,
        events: &Sender<Told>,
    ) -> Option<SessionError> {
        let mut ends = asked + lease.remaining;
        let mut sent = asked;
        let here = self.streams.attend(lease.id);
        loop {
            let pause = (ends.saturating_duration_since(sent) / 3).max(LEAST_PAUSE);
            tokio::select! {
                biased;
                // First: then it is the server that breaks the stream.
                () = caller.leaving.cancelled() => return Some(SessionError::Draining),
                () = events.closed() => return None,
                () = self.stop.cancelled() => return Some(SessionError::Draining),
                // The row says by whom, if at all.
                () = here.replaced() => {}
                () = sleep_until((sent + pause).min(ends)) => {}
            }
            sent = Instant::now();
            let (key, ttl, stream) = (acquire.key.clone(), acquire.ttl, acquire.stream);
            let renewal = self.renew(Renew { key, lease: lease.id, ttl, stream });
            match timeout_at(renewed_by(sent, ends), renewal).await {
                Ok(Ok(renewed)) => {
                    ends = sent + renewed.remaining;
                    lease = renewed.clone();
                    tell(events, Holding::Renewed(renewed));
                }
                // It is tried again, when a third of what is left is over.
                Ok(Err(SessionError::Call(_))) if Instant::now() < ends => {}
                // By our clock, which counts from before the store's did, it has
                // ended: another may have it.
                Ok(Err(SessionError::Call(_))) | Err(_) => {
                    let is_over = lease.expire_time >= lease.acquire_time.plus(self.max_hold);
                    return Some(if is_over {
                        SessionError::HeldTooLong(self.max_hold)
                    } else {
                        SessionError::LeaseLost
                    });
                }
                Ok(Err(error)) => return Some(error),
            }
        }
    }
}

/// Tells a listener what it can do without, if it reads at all.
pub(crate) fn tell<T>(events: &Sender<Result<T, SessionError>>, event: T) {
    let _ = events.try_send(Ok(event));
}
