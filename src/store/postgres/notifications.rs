//! Hears when another replica takes marks away.
//!
//! One connection LISTENs, and hears within milliseconds; once a second it proves
//! that it still does. What is remembered counts for [`MAX_STALENESS`] from when the last proof was
//! *sent*. That bound needs nobody to notice a loss, or to be awake in time.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::task_tracker::TaskTrackerToken,
};

use super::{connect::Connector, namespace, notify_channel::Channel};
use crate::{
    backoff::Backoff,
    domain::Timestamp,
    store::{Clock, Invalidations, StoreError},
};

/// How long a mark that another replica took away may still be answered from
/// memory, counted from that replica's answer, when its notification is lost.
pub const MAX_STALENESS: Duration = Duration::from_secs(3);
/// How often the connection proves that it hears.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a proof may take.
const PATIENCE: Duration = MAX_STALENESS.saturating_sub(HEARTBEAT);
/// The database's clock is taken to gain a quarter on ours: either may be slewed
/// by a twelfth, <https://chrony-project.org/doc/4.6/chrony.conf.html#maxslewrate>.
const DRIFT_DIVISOR: i64 = 4;

/// Pause after a failure; it doubles while it fails.
const MIN_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// What is known of marks that were taken away. Times are in microseconds.
pub(super) struct CacheValidity {
    clock: Clock,
    epoch: AtomicU64,
    /// What the two below count from, on the monotonic clock.
    start: Instant,
    /// How long after `start` the last proof ends: [`MAX_STALENESS`] after it was
    /// sent.
    until: AtomicI64,
    /// What the database's clock showed after that was sent.
    shown: AtomicI64,
}

impl CacheValidity {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            epoch: AtomicU64::new(0),
            start: Instant::now(),
            until: AtomicI64::new(0),
            shown: AtomicI64::new(0),
        }
    }

    /// Marks were taken away, or may have been. Whatever deletes rows of marks
    /// that have not expired calls this before it answers, whether it succeeded
    /// or not, and notifies the other replicas in the deleting statement.
    pub(super) fn invalidate(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Everything that was notified before `sent` has been heard; after that,
    /// the database's clock showed `at`.
    fn prove(&self, sent: Instant, at: Timestamp) {
        let until = sent.duration_since(self.start) + MAX_STALENESS;
        // In this order: who sees the later end sees the later clock.
        self.shown.store(at.as_micros(), Ordering::SeqCst);
        self.until.store(micros(until), Ordering::SeqCst);
    }

    fn lose(&self) {
        self.until.store(0, Ordering::SeqCst);
    }
}

impl Invalidations for CacheValidity {
    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    fn now(&self) -> Option<Timestamp> {
        let left = self.until.load(Ordering::SeqCst) - micros(self.start.elapsed());
        if left <= 0 {
            return None;
        }
        let latest = || {
            let since = micros(MAX_STALENESS) - left;
            let shown = self.shown.load(Ordering::SeqCst);
            Timestamp::from_micros(shown + since + since / DRIFT_DIVISOR)
        };
        Some(self.clock.now().unwrap_or_else(latest))
    }
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

/// Listens for as long as it is held.
struct Listening {
    heard: Arc<CacheValidity>,
    _stop: DropGuard,
}

impl Invalidations for Listening {
    fn epoch(&self) -> u64 {
        self.heard.epoch()
    }

    fn now(&self) -> Option<Timestamp> {
        self.heard.now()
    }
}

/// Starts to listen. Gives up a connection that takes longer than `timeout`.
pub(super) fn listen(
    connector: Connector,
    timeout: Duration,
    heard: Arc<CacheValidity>,
    begins: Arc<Mutex<()>>,
    open: TaskTrackerToken,
) -> Arc<dyn Invalidations> {
    let stop = CancellationToken::new();
    let backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
    let own = Arc::clone(&heard);
    let listener = Listener { connector, timeout, heard: own, begins, backoff, _open: open };
    tokio::spawn(listener.run(stop.clone()));
    Arc::new(Listening { heard, _stop: stop.drop_guard() })
}

struct Listener {
    connector: Connector,
    timeout: Duration,
    heard: Arc<CacheValidity>,
    /// Held while it begins.
    begins: Arc<Mutex<()>>,
    backoff: Backoff,
    _open: TaskTrackerToken,
}

impl Listener {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            let ended = stop.run_until_cancelled(self.follow()).await;
            self.heard.lose();
            let Some(Err(error)) = ended else { return };
            // Once an outage: behind some proxies it never works.
            if self.backoff.is_new() {
                tracing::warn!(%error, "invalidation listener down; duplicate cache disabled");
            }
            if stop.run_until_cancelled(sleep(self.backoff.take())).await.is_none() {
                return;
            }
        }
    }

    async fn follow(&mut self) -> Result<Infallible, StoreError> {
        let begins = self.begins.lock().await;
        let mut channel =
            Channel::open(&self.connector, "listener", namespace::INVALIDATIONS, self.timeout)
                .await?;
        drop(begins);
        // What was taken away before was not heard of.
        self.heard.invalidate();
        loop {
            let sent = Instant::now();
            let at = channel.prove(PATIENCE).await?;
            while channel.buffered().is_some() {
                self.heard.invalidate();
            }
            self.heard.prove(sent, at);
            if !self.backoff.is_new() {
                tracing::info!("invalidation listener connected; duplicate cache enabled");
            }
            self.backoff.reset();

            while let Ok(notified) = timeout_at(sent + HEARTBEAT, channel.hear()).await {
                notified?;
                self.heard.invalidate();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ManualClock;

    const READING: Timestamp = Timestamp::from_micros(1_790_000_000_000_000);

    /// One that has been there for a while.
    fn heard(clock: Clock) -> Option<CacheValidity> {
        let start = Instant::now().checked_sub(MAX_STALENESS * 2)?;
        Some(CacheValidity { start, ..CacheValidity::new(clock) })
    }

    #[test]
    fn the_clock_is_never_behind_what_the_database_can_show() {
        let heard = heard(Clock::Store).unwrap();
        let age = Duration::from_millis(700);
        let sent = Instant::now().checked_sub(age).unwrap();
        // The clock was read at once: as long ago as can be.
        heard.prove(sent, READING);
        let (before, now, after) = (sent.elapsed(), heard.now().unwrap(), sent.elapsed());
        assert!(now >= READING.plus(before));
        // Each step of it is counted in whole microseconds.
        assert!(now <= READING.plus(after + after / 4 + Duration::from_micros(10)));
    }

    #[test]
    fn a_proof_counts_from_when_it_was_sent_and_until_it_is_lost() {
        let heard = heard(Clock::Store).unwrap();
        assert_eq!(heard.now(), None);
        heard.prove(Instant::now().checked_sub(MAX_STALENESS).unwrap(), READING);
        assert_eq!(heard.now(), None);
        heard.prove(Instant::now(), READING);
        assert!(heard.now().is_some());
        heard.lose();
        assert_eq!(heard.now(), None);
    }

    #[test]
    fn a_clock_that_is_set_counts_as_it_stands_while_notifications_are_heard() {
        let clock = Arc::new(ManualClock::at(5));
        let heard = heard(Clock::Manual(clock)).unwrap();
        assert_eq!(heard.now(), None);
        heard.prove(Instant::now(), READING);
        assert_eq!(heard.now(), Some(Timestamp::from_micros(5)));
    }
}
