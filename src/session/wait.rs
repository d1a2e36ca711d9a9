//! Waiting for a session: what a caller does in its place, and what its replica does
//! for all that wait there.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    Measured, SessionError, Sessions,
    lane_ops::{EnqueueCall, LeaveCall, Outcome, SessionCall, SessionReply},
    queue::{QueueTicket, Queues, WaiterEvent},
    unexpected,
};
use crate::{
    domain::{Acquire, Decision, Enqueue, Enqueued, Held},
    lane::Lanes,
    store::{Connection, Hint},
    telemetry::call::WaitTimer,
};

/// How often the first in a queue polls: the longest delay if a notification is lost.
const POLL: Duration = Duration::from_millis(500);
/// How soon it looks again where the session is about to change hands.
const LEAST_POLL: Duration = Duration::from_millis(10);
/// Interval of a replica's heartbeats while callers wait on it.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How many more follow: a place may reach the store after its caller got an error.
const MAX_BEATS: u32 = 10;

/// How long a caller whose wait has ended waits for news of the session: less
/// than a deadline leaves it.
const LAST_LOOK: Duration = Duration::from_millis(100);

impl Sessions {
    /// Waits for the session, behind callers that came before, on any replica.
    /// `known` is who held it at first.
    pub(super) async fn queue(
        &self,
        acquire: &Acquire,
        until: Instant,
        mut known: Measured<Held>,
        leaving: &CancellationToken,
        announce: impl Fn(usize),
    ) -> Result<Outcome, SessionError> {
        // A call that has lost its request's place was replaced: a newer call has it.
        let mut is_newest = true;
        let mut timer = WaitTimer::of_current();
        loop {
            let (wanted, grants) = (acquire.anew(None), &self.grants);
            let mut place =
                self.queues.join(&acquire.key, wanted.lease.id(), &self.lanes, grants)?;
            place.is_newest = is_newest;
            let mut takes_over = None;
            let enqueued = loop {
                let call = EnqueueCall {
                    enqueue: Enqueue { acquire: wanted.clone(), takes_over },
                    number: place.number(),
                    queues: Arc::clone(&self.queues),
                    lanes: self.lanes.clone(),
                    grants: Arc::clone(grants),
                };
                match self.call(SessionCall::Enqueue(call)).await? {
                    // Each time that another has been faster. It has not spent its lease.
                    SessionReply::Enqueued(Enqueued::Taken(by)) if is_newest => {
                        takes_over = Some(by);
                    }
                    SessionReply::Enqueued(enqueued) => break enqueued,
                    _ => return Err(unexpected().into()),
                }
            };
            let (ticket, is_last) = match enqueued {
                Enqueued::Waits(ticket) => (ticket, true),
                Enqueued::TookOver(ticket, _) => (ticket, false),
                // It looks before all others.
                Enqueued::Given => (i64::MIN, true),
                Enqueued::Taken(_) => {
                    place.forget();
                    return Err(SessionError::StreamReplaced);
                }
                // The place is given up, if it is there after all.
                Enqueued::Spent => continue,
                Enqueued::Full => {
                    place.forget();
                    return Err(self.queues.refuse_waiter(SessionError::QueueFull));
                }
                Enqueued::Free => {
                    place.forget();
                    match self.take(acquire).await? {
                        Outcome::Held(held) => known = held,
                        outcome => return Ok(outcome),
                    }
                    continue;
                }
            };
            place.stand(ticket, is_last);
            timer.resume();
            let outcome =
                self.wait_in(place, acquire, until, &mut known, leaving, &announce).await?;
            timer.pause();
            if let Some(outcome) = outcome {
                return Ok(outcome);
            }
            is_newest = false;
        }
    }

    /// Waits in a place. None when the store has lost it.
    async fn wait_in(
        &self,
        mut place: QueueTicket,
        acquire: &Acquire,
        until: Instant,
        known: &mut Measured<Held>,
        leaving: &CancellationToken,
        announce: &impl Fn(usize),
    ) -> Result<Option<Outcome>, SessionError> {
        let (key, lease) = (&acquire.key, place.lease());
        let mut announced = 0;
        // The first waiter of a replica polls the session for all. One that finds no other polls at
        // once: it does not know who waits on other replicas.
        let mut due = Instant::now();
        let mut was_first = place.is_first();
        let mut has_looked = !was_first;
        loop {
            let (is_first, position) = (place.is_first(), place.position());
            if is_first && !was_first {
                let seen = position.and_then(|_| self.queues.seen(key));
                due = next_poll(seen, Instant::now());
            }
            was_first = is_first;
            if let Some(position) = position.filter(|now| has_looked && *now != announced) {
                announce(position);
                announced = position;
            }
            let why = tokio::select! {
                biased;
                news = place.event() => match news {
                    WaiterEvent::Given(row, asked) => {
                        return Ok(Some(Outcome::Granted(place.redeem(row.lease, asked))));
                    }
                    WaiterEvent::Heard => Why::Heard,
                    WaiterEvent::Lost => Why::Lost,
                },
                () = sleep_until(due), if is_first && due < until => Why::Due,
                () = sleep_until(until) => Why::End,
                () = until_either(&self.stop, leaving) => {
                    place.keep();
                    Why::End
                }
                () = place.moved() => continue,
            };
            let asked = Instant::now();
            let looking = async {
                match why {
                    Why::Due => self.hand_on(key.clone()).await,
                    Why::Heard | Why::Lost | Why::End => self.look(key.clone()).await,
                }
            };
            let limit = if why == Why::End { asked + LAST_LOOK } else { until };
            let mut row = match timeout_at(limit, looking).await {
                Ok(Ok(row)) => row,
                // The last known holder is better than none.
                _ if why == Why::End => {
                    return Ok(Some(Outcome::Held(known.clone())));
                }
                // The store is away: the place is kept.
                _ => {
                    due = Instant::now() + POLL;
                    continue;
                }
            };
            has_looked = true;
            let mut stands = false;
            if let Some(row) = &mut row {
                self.queues.saw(key, row, asked);
                stands = place.is_newest && row.queue.contains(&lease);
                row.queue.retain(|waiter| *waiter != lease);
            }
            let decision = row.as_ref().map(|row| row.decision(acquire));
            match (row, decision) {
                (Some(row), _) if row.live && row.lease.id == lease => {
                    return Ok(Some(Outcome::Granted(place.redeem(row.lease, asked))));
                }
                (_, Some(Decision::EpicMismatch(bound))) => {
                    return Ok(Some(Outcome::EpicMismatch(bound)));
                }
                (_, Some(Decision::Held(held))) if why == Why::End => {
                    return Ok(Some(Outcome::Held(Measured::new(held, asked))));
                }
                // A newer call took the place over, and was granted the lease.
                (_, Some(Decision::Granted(_))) if !stands => {
                    return Err(SessionError::StreamReplaced);
                }
                _ if why == Why::Lost => return Ok(None),
                (_, Some(Decision::Held(held))) => {
                    // The holder's end, or news that was lost.
                    due = Instant::now() + held.remaining.clamp(LEAST_POLL, POLL);
                    *known = Measured::new(held, asked);
                }
                // What a repetition was given, which is for the row to note.
                (_, Some(Decision::Granted(_))) => return Ok(Some(self.take(acquire).await?)),
                (_, Some(Decision::Free) | None) if why == Why::End => {
                    return Ok(Some(Outcome::Held(Measured::new(Held::default(), asked))));
                }
                // A place in the store's queue prevents that.
                (_, Some(Decision::Free) | None) => return Ok(None),
            }
        }
    }
}

/// When a waiter polls that becomes the first of its replica: at the end of the lease that its
/// predecessor saw, or at once if that is not known.
fn next_poll(seen: Option<Measured<Held>>, now: Instant) -> Instant {
    seen.map_or(now, |seen| (seen.asked + seen.value.remaining).clamp(now, now + POLL))
}

/// Waits until one of two is cancelled.
async fn until_either(one: &CancellationToken, other: &CancellationToken) {
    tokio::select! {
        biased;
        () = one.cancelled() => {}
        () = other.cancelled() => {}
    }
}

/// Why a waiter reads the session's row.
#[derive(Clone, Copy, PartialEq)]
enum Why {
    /// It is time to, as the first.
    Due,
    /// Another replica says that the lease has come.
    Heard,
    /// The store has lost the place.
    Lost,
    /// The wait has ended.
    End,
}

/// Sends heartbeats while callers wait on this replica, and corrects where the replica and the
/// store differ about its waiters.
pub(super) async fn heartbeat(
    mut store: impl Connection,
    queues: Weak<Queues>,
    lanes: Lanes<SessionCall>,
    stop: CancellationToken,
) {
    let mut idle = MAX_BEATS;
    while stop.run_until_cancelled(sleep(HEARTBEAT)).await.is_some() {
        let Some(queues) = queues.upgrade() else { return };
        idle = if queues.is_empty() { idle.saturating_add(1) } else { 0 };
        if idle >= MAX_BEATS {
            continue;
        }
        let asked = Instant::now();
        match store.heartbeat().await {
            Ok(places) => {
                for (key, lease) in queues.compare(places, asked) {
                    let (lane, queues) = (lanes.of(key.shard()), Arc::clone(&queues));
                    let leave = LeaveCall { key, lease, keep: false, queues, grants: None };
                    // If the lane is full, the next heartbeat tries again.
                    let _ = lane.post(SessionCall::Leave(leave));
                }
            }
            Err(error) => tracing::debug!(%error, "replica heartbeat failed; retrying"),
        }
    }
}

/// Follows the hints of other replicas.
pub(super) async fn hear(
    mut hints: mpsc::Receiver<Hint>,
    queues: Weak<Queues>,
    stop: CancellationToken,
) {
    while let Some(Some(hint)) = stop.run_until_cancelled(hints.recv()).await {
        let Some(queues) = queues.upgrade() else { return };
        queues.follow(hint);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{POLL, next_poll};
    use crate::{domain::Held, session::Measured};

    #[test]
    fn a_waiter_that_becomes_first_polls_when_the_lease_ends_that_was_seen() {
        let now = Instant::now();
        let seen = |millis, ago| {
            let remaining = Duration::from_millis(millis);
            let held = Held { remaining, ..Held::default() };
            Some(Measured::new(held, now - Duration::from_millis(ago)))
        };
        assert_eq!(next_poll(seen(450, 440), now), now + Duration::from_millis(10));
        assert_eq!(next_poll(seen(450, 460), now), now);
        assert_eq!(next_poll(seen(60_000, 0), now), now + POLL);
        assert_eq!(next_poll(None, now), now);
    }
}
