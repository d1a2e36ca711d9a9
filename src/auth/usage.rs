//! What one principal uses of its limits.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::Rate;

/// How far the times of two concurrent calls may differ without effect on the rate, in
/// nanoseconds: a second.
const SLACK: u64 = 1_000_000_000;

/// A limit that a call would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OverLimit {
    /// The rate of calls.
    #[error("the principal exceeds its rate of calls")]
    Rate {
        /// When a call is next admitted.
        retry_after: Duration,
    },
    /// The calls in flight.
    #[error("the principal has too many calls in flight")]
    InFlight,
    /// The callers that wait.
    #[error("the principal has too many waiters")]
    Waiters,
}

/// The rate, the calls in flight and the waiters of one principal, over all connections.
#[derive(Debug)]
pub struct Usage {
    origin: Instant,
    /// The theoretical arrival time of GCRA: when the next call would arrive at the exact
    /// rate, in nanoseconds since `origin`.
    next: AtomicU64,
    in_flight: Arc<Count>,
    waiting: Arc<Count>,
}

impl Default for Usage {
    fn default() -> Self {
        let (in_flight, waiting) = Default::default();
        Self { origin: Instant::now(), next: AtomicU64::new(0), in_flight, waiting }
    }
}

impl Usage {
    /// Admits one call, or returns after which time one is.
    ///
    /// # Errors
    /// The pause until a call is admitted, if no other takes its place.
    pub fn admit(&self, rate: Rate, now: Instant) -> Result<(), Duration> {
        let now = nanos(now.saturating_duration_since(self.origin));
        let interval = nanos(rate.interval());
        // A call is early by up to the intervals of the burst's other calls.
        let tolerance = interval.saturating_mul(u64::from(rate.burst.saturating_sub(1)));
        let mut next = self.next.load(Ordering::Relaxed);
        loop {
            // After a reload with other limits, `next` may lie further ahead than they allow.
            let latest = now.saturating_add(tolerance).saturating_add(interval);
            let arrival = next.max(now).min(latest.saturating_add(SLACK));
            let early = arrival.saturating_sub(now).saturating_sub(tolerance);
            let (answer, after) = if early == 0 {
                (Ok(()), arrival.saturating_add(interval))
            } else {
                (Err(Duration::from_nanos(early)), arrival)
            };
            if after == next {
                return answer;
            }
            if let Err(changed) =
                self.next.compare_exchange_weak(next, after, Ordering::Relaxed, Ordering::Relaxed)
            {
                next = changed;
                continue;
            }
            return answer;
        }
    }

    /// One more call in flight, unless there are `most`.
    #[must_use]
    pub fn in_flight(&self, most: Option<u32>) -> Option<UsageGuard> {
        UsageGuard::taken(&self.in_flight, most)
    }

    /// One more waiter, unless there are `most`.
    #[must_use]
    pub fn waiting(&self, most: Option<u32>) -> Option<UsageGuard> {
        UsageGuard::taken(&self.waiting, most)
    }

    /// Calls in flight, and waiters, now.
    #[must_use]
    pub fn counts(&self) -> (u32, u32) {
        (self.in_flight.0.load(Ordering::Relaxed), self.waiting.0.load(Ordering::Relaxed))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[derive(Debug, Default)]
struct Count(AtomicU32);

/// One call in flight, or one waiter, until it is dropped.
#[derive(Debug)]
pub struct UsageGuard(Arc<Count>);

impl UsageGuard {
    fn taken(count: &Arc<Count>, most: Option<u32>) -> Option<Self> {
        let most = most.unwrap_or(u32::MAX);
        let more = |now: u32| now.checked_add(1).filter(|more| *more <= most);
        count.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self(Arc::clone(count)))
    }
}

impl Drop for UsageGuard {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
