//! What streams have in common, whether they keep a lease or a turn: the events that they
//! report, and the loop that renews what is kept and looks who waits for its session.

use std::{future::Future, pin::pin, time::Duration};

use tokio::{
    sync::mpsc::{self, OwnedPermit, Receiver, Sender},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

use super::{Attendance, Caller, SessionError, Sessions};
use crate::domain::{LeaseId, SessionKey, limits::MAX_WAITERS_PER_SESSION};

/// How many events a slow reader may leave unread: every position in a queue, and some
/// renewals. Later events are dropped, except for the grant and the last one.
const EVENT_BUFFER: usize = MAX_WAITERS_PER_SESSION + 16;

/// A renewal is due when a third of the remaining time is over, but not sooner than this.
const MIN_PAUSE: Duration = Duration::from_millis(50);

/// Timeout for a renewal that is sent late, for example because the server stalled: by this
/// clock the lease has ended, but its holder may have renewed it by another call.
const LATE_RENEWAL: Duration = Duration::from_secs(1);

/// How often a stream looks at its session, at most, however many hints reach it.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How soon it looks again if the store does not answer.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long a request may look for a grant that has just come, and keep its place otherwise, once
/// the server ends the connection.
const LEAVING_LOOK: Duration = Duration::from_millis(200);

/// What a stream reports while it waits for a grant `K`, keeps it, and ends with `L`.
#[derive(Debug)]
pub enum StreamEvent<K, L> {
    /// The caller's position in the queue, from 1.
    Queued(usize),
    /// It was granted.
    Granted(K),
    /// It was renewed.
    Renewed(K),
    /// So many callers wait for the session behind this holder.
    Waiting(usize),
    /// The last event.
    Last(L),
}

type Event<K, L> = Result<StreamEvent<K, L>, SessionError>;

/// The events of one stream, until an error or the last event ends it.
pub type Events<K, L> = Receiver<Event<K, L>>;

/// Where a stream's events are sent. The grant and the last event always have room.
pub(crate) struct EventSender<K, L> {
    events: Sender<Event<K, L>>,
    grant: Option<OwnedPermit<Event<K, L>>>,
    last: Option<OwnedPermit<Event<K, L>>>,
}

impl<K, L> EventSender<K, L> {
    pub(crate) fn channel() -> (Self, Events<K, L>) {
        let (events, receiver) = mpsc::channel(EVENT_BUFFER + 2);
        let grant = events.clone().try_reserve_owned().ok();
        let last = events.clone().try_reserve_owned().ok();
        (Self { events, grant, last }, receiver)
    }

    /// Sends an event that a reader can do without. Returns whether there was room for it.
    pub(crate) fn send(&self, event: StreamEvent<K, L>) -> bool {
        self.events.try_send(Ok(event)).is_ok()
    }

    pub(crate) fn granted(&mut self, granted: K) {
        if let Some(room) = self.grant.take() {
            room.send(Ok(StreamEvent::Granted(granted)));
        }
    }

    /// Sends the last event, or the error that ends the stream.
    pub(crate) fn end(&mut self, last: Result<L, SessionError>) {
        if let Some(room) = self.last.take() {
            room.send(last.map(StreamEvent::Last));
        }
    }

    /// Waits until the stream has broken: nobody reads its events any more.
    pub(crate) async fn closed(&self) {
        self.events.closed().await;
    }

    /// The answer to `request`, within `limit`; none if the stream has broken. The request is
    /// dropped, which withdraws it, if the stream breaks; or if the server ends the connection,
    /// and it has not ended by itself soon after.
    pub(crate) async fn answer<T>(
        &self,
        caller: &Caller,
        limit: Duration,
        request: impl Future<Output = Result<T, SessionError>>,
    ) -> Option<Result<T, SessionError>> {
        tokio::select! {
            () = self.closed() => None,
            () = async {
                caller.leaving.cancelled().await;
                sleep(LEAVING_LOOK).await;
            } => Some(Err(SessionError::Draining)),
            answer = timeout(limit, request) => {
                Some(answer.unwrap_or(Err(SessionError::Timeout(limit))))
            }
        }
    }
}

/// Something that ends unless it is renewed.
pub(crate) trait Renewable: Clone {
    /// When it ends, at the earliest.
    fn ends(&self) -> Instant;

    /// Why it has ended, if it was not renewed in time and no lease may be held for longer than
    /// `max_hold`.
    fn lost(&self, max_hold: Duration) -> SessionError;
}

/// Renews what a stream keeps.
pub(crate) struct Keeper<'a, K, L> {
    pub(crate) kept: K,
    pub(crate) events: &'a EventSender<K, L>,
    pub(crate) here: Attendance,
    pub(crate) sessions: &'a Sessions,
    /// The session that is kept, and by which lease.
    pub(crate) session: Option<(&'a SessionKey, LeaseId)>,
}

impl<K: Renewable, L> Keeper<'_, K, L> {
    /// Renews by `renew` until `ending` returns, and then returns that.
    ///
    /// # Errors
    /// [`SessionError::Draining`] when the server shuts down; otherwise why it is lost.
    pub(crate) async fn keep<E, R>(
        mut self,
        ending: impl Future<Output = Result<E, SessionError>>,
        mut renew: impl FnMut() -> R,
    ) -> Result<E, SessionError>
    where
        R: Future<Output = Result<K, SessionError>>,
    {
        let mut ending = pin!(ending);
        let (mut sent, mut ends) = (Instant::now(), self.kept.ends());
        let mut waiters = 0;
        let mut next_look = sent;
        loop {
            let pause = (ends.saturating_duration_since(sent) / 3).max(MIN_PAUSE);
            tokio::select! {
                biased;
                ended = &mut ending => return ended,
                () = self.sessions.stopping() => return Err(SessionError::Draining),
                // Whether it is lost, and why, the renewal finds out.
                () = self.here.lost() => {}
                () = sleep_until((sent + pause).min(ends)) => {}
                () = self.session_changed(next_look) => {
                    next_look = Instant::now() + LOOK_INTERVAL;
                    match self.look(ends).await {
                        Look::Kept(now) if now == waiters => continue,
                        Look::Kept(now) => {
                            if self.events.send(StreamEvent::Waiting(now)) {
                                waiters = now;
                            }
                            continue;
                        }
                        Look::Failed => {
                            next_look = Instant::now() + LOOK_AGAIN;
                            self.here.expect_change();
                            continue;
                        }
                        Look::Lost => {}
                    }
                }
            }
            sent = Instant::now();
            match timeout_at(renewed_by(sent, ends), renew()).await {
                Ok(Ok(renewed)) => {
                    ends = renewed.ends();
                    self.kept = renewed.clone();
                    self.events.send(StreamEvent::Renewed(renewed));
                    if waiters > 0 {
                        // Those on a replica that crashed leave without a hint.
                        self.here.expect_change();
                    }
                }
                // Retried when a third of the remaining time is over.
                Ok(Err(SessionError::Call(_))) if Instant::now() < ends => {}
                // By this clock, which counts from before the store's did, it has ended:
                // another may have it.
                Ok(Err(SessionError::Call(_))) | Err(_) => {
                    return Err(self.kept.lost(self.sessions.max_hold));
                }
                Ok(Err(error)) => return Err(error),
            }
        }
    }

    /// Waits for a hint that the session may have changed, and until `not_before`.
    async fn session_changed(&self, not_before: Instant) {
        sleep_until(not_before).await;
        self.here.changed().await;
    }

    /// Reads the session's row, before what is kept `ends`.
    async fn look(&self, ends: Instant) -> Look {
        let Some((key, lease)) = self.session else { return Look::Kept(0) };
        match timeout_at(ends, self.sessions.look(key.clone())).await {
            Ok(Ok(Some(row))) if row.live && row.lease.id == lease => Look::Kept(row.queue.len()),
            Ok(Ok(_)) => Look::Lost,
            Ok(Err(_)) | Err(_) => Look::Failed,
        }
    }
}

/// What a session's row says to the stream that keeps it.
enum Look {
    /// It is kept, and so many callers wait for it.
    Kept(usize),
    /// It is not kept any more.
    Lost,
    /// The store did not answer.
    Failed,
}

/// By when a renewal that is sent at `sent` must be answered, of what ends at `ends`.
fn renewed_by(sent: Instant, ends: Instant) -> Instant {
    if sent > ends + MIN_PAUSE { sent + LATE_RENEWAL } else { ends }
}
