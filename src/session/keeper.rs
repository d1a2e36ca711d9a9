//! What a stream keeps, a lease or a turn, is renewed here for as long as the stream lives; and
//! the stream reports how many callers wait behind it.

use std::{future::Future, pin::pin, time::Duration};

use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Attendance, EventSender, SessionError, Sessions};
use crate::domain::{LeaseId, SessionKey};

/// A renewal is due when a third of the remaining time is over, but not sooner than this.
const MIN_PAUSE: Duration = Duration::from_millis(50);

/// Timeout for a renewal that is sent late, for example because the server stalled: by this
/// clock the lease has ended, but its holder may have renewed it by another call.
const LATE_RENEWAL: Duration = Duration::from_secs(1);

/// How often a stream looks at its session, at most, however many hints reach it.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How soon it looks again if the store does not answer.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

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
                    // No longer than until the renewal is due.
                    let look = tokio::select! {
                        biased;
                        ended = &mut ending => return ended,
                        () = self.sessions.stopping() => return Err(SessionError::Draining),
                        look = self.look((sent + pause).min(ends)) => look,
                    };
                    match look {
                        SessionView::Kept(now) if now == waiters => continue,
                        SessionView::Kept(now) => {
                            waiters = now;
                            self.events.waiting(now);
                            continue;
                        }
                        SessionView::Failed => {
                            next_look = Instant::now() + LOOK_AGAIN;
                            self.here.expect_change();
                            continue;
                        }
                        SessionView::Lost => {}
                    }
                }
            }
            sent = Instant::now();
            match timeout_at(renewed_by(sent, ends), renew()).await {
                Ok(Ok(renewed)) => {
                    ends = renewed.ends();
                    self.kept = renewed.clone();
                    self.events.renewed(renewed);
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

    /// Reads the session's row, until `limit`.
    async fn look(&self, limit: Instant) -> SessionView {
        let Some((key, lease)) = self.session else { return SessionView::Kept(0) };
        match timeout_at(limit, self.sessions.look(key.clone())).await {
            Ok(Ok(Some(row))) if row.live && row.lease.id == lease => {
                SessionView::Kept(row.queue.len())
            }
            Ok(Ok(_)) => SessionView::Lost,
            Ok(Err(_)) | Err(_) => SessionView::Failed,
        }
    }
}

/// What a session's row says to the stream that keeps it.
enum SessionView {
    /// It is kept, and this number of callers wait for it.
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
