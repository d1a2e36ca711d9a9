//! The embedded store's clock: this machine's, but one that never runs backwards.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{Instant, SystemTime},
};

use crate::{domain::Timestamp, store::Clock};

/// When the file was last written to, as far as its rows show: a lease or a claim that was
/// renewed was written a TTL before it ends. $1: for how long a claim is remembered from
/// then on, in microseconds. Reads the whole of both tables, once, as the file is opened:
/// so no write has to keep the time beside its rows.
pub(super) const SEEN: &str = "
SELECT max(
    COALESCE((SELECT max(max(acquired_at, CASE WHEN released THEN expires_at
        ELSE expires_at - COALESCE(ttl_micros, expires_at - acquired_at) END))
        FROM oncegate_sessions), 0),
    COALESCE((SELECT max(CASE WHEN claimed_until IS NULL THEN processed_at
        ELSE max(processed_at, expires_at - $1) END) FROM processed_events), 0),
    COALESCE((SELECT max(left_at) FROM oncegate_waiters), 0))
";

/// Shows the machine's time of day; but it goes on by the machine's monotonic clock from the
/// latest that it has shown, for as long as the time of day is behind that, because it was
/// stepped back. So no record that was made with a TTL can be seen to end later than now + TTL,
/// and the embedded store need not guard against that as PostgreSQL's does.
pub(super) struct StoreClock {
    source: Clock,
    start: Instant,
    /// The most that the time of day was ever ahead of the monotonic clock.
    ahead: AtomicI64,
}

impl StoreClock {
    pub(super) fn new(source: Clock) -> Self {
        Self { source, start: Instant::now(), ahead: AtomicI64::new(i64::MIN / 2) }
    }

    /// From here on it shows no time before `seen`.
    pub(super) fn begin_at(&self, seen: Timestamp) {
        let (_, passed) = self.read();
        self.ahead.fetch_max(seen.as_micros() - passed, Ordering::SeqCst);
    }

    pub(super) fn now(&self) -> Timestamp {
        let (shown, passed) = self.read();
        let mut ahead = self.ahead.load(Ordering::SeqCst);
        if shown - passed > ahead {
            ahead = self.ahead.fetch_max(shown - passed, Ordering::SeqCst).max(shown - passed);
        }
        Timestamp::from_micros(ahead + passed)
    }

    /// The time of day, and then the monotonic clock, in microseconds. In this order a pause in
    /// between cannot put the first ahead.
    #[expect(clippy::disallowed_methods, reason = "the embedded store's clock is this machine's")]
    fn read(&self) -> (i64, i64) {
        if let Clock::Manual(clock) = &self.source {
            return (clock.now().as_micros(), clock.passed());
        }
        let shown = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let [shown, passed] = [shown.unwrap_or_default(), self.start.elapsed()]
            .map(|span| i64::try_from(span.as_micros()).unwrap_or(i64::MAX / 2));
        (shown, passed)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::store::ManualClock;

    #[test]
    fn it_goes_on_from_the_latest_it_has_shown_while_the_time_of_day_is_behind() {
        const SECOND: i64 = 1_000_000;
        let day = Arc::new(ManualClock::at(100 * SECOND));
        let clock = StoreClock::new(Clock::Manual(Arc::clone(&day)));
        let shows = || clock.now().as_micros() / SECOND;
        assert_eq!(shows(), 100);
        day.set(40 * SECOND);
        assert_eq!(shows(), 100, "stepped back");
        day.advance(Duration::from_secs(5));
        assert_eq!(shows(), 105, "it goes on");
        day.set(103 * SECOND);
        assert_eq!(shows(), 105, "still behind");
        day.set(200 * SECOND);
        assert_eq!(shows(), 200, "set right, or woken from sleep");
        day.advance(Duration::from_secs(5));
        assert_eq!(shows(), 205);
        clock.begin_at(Timestamp::from_micros(300 * SECOND));
        assert_eq!(shows(), 300, "what the file has seen");
        day.advance(Duration::from_secs(5));
        assert_eq!(shows(), 305);
        clock.begin_at(Timestamp::from_micros(SECOND));
        assert_eq!(shows(), 305);
    }
}
