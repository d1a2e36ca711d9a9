//! The clock that ends are counted on.

use std::{
    ops::{Add, Sub},
    time::Duration,
};

use rand::RngExt as _;
use tokio::time::sleep;

/// A timer that is late by more than this was held up: the process stood still, or had no
/// processor. What came meanwhile is read first, for [`CATCH_UP`].
const LATE: Duration = Duration::from_millis(200);
const CATCH_UP: Duration = Duration::from_millis(300);

/// A time on the clock that ends are counted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Moment(Duration);

/// Timers do not count the time for which the machine was suspended: so the clock is looked at so often.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) fn now() -> Moment {
    let time = elapsed();
    #[cfg(test)]
    let time = time + tests::SUSPENDED.get();
    Moment(time)
}

/// Also counts while the machine is suspended, as the server does.
#[cfg(target_os = "linux")]
fn elapsed() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(not(target_os = "linux"))]
fn elapsed() -> Duration {
    static BEGAN: std::sync::LazyLock<std::time::Instant> =
        std::sync::LazyLock::new(std::time::Instant::now);
    BEGAN.elapsed()
}

impl Moment {
    /// How long it is until this moment; zero once it has passed.
    pub(crate) fn left(self) -> Duration {
        self - now()
    }

    pub(crate) fn is_over(self) -> bool {
        self <= now()
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span))
    }
}

impl Sub for Moment {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Waits until a moment, also over a suspension of the machine.
pub(crate) async fn sleep_until(at: Moment) {
    while !at.is_over() {
        sleep(at.left().min(LOOK)).await;
    }
}

/// Waits until a moment, and a little longer after the process stood still.
pub(crate) async fn ring_at(at: Moment) {
    sleep_until(at).await;
    if now() - at > LATE {
        sleep(CATCH_UP).await;
    }
}

/// Pauses between attempts: from 50 ms, doubling to 1 s, with jitter.
#[derive(Debug, Default)]
pub(crate) struct Pauses(Duration);

impl Pauses {
    pub(crate) fn next(&mut self) -> Duration {
        let longest = Duration::from_secs(1);
        self.0 = (2 * self.0).min(longest).max(Duration::from_millis(50));
        self.0.mul_f64(rand::rng().random_range(0.75..1.25))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// For how long the machine of this thread's test was suspended.
        pub(crate) static SUSPENDED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }
}
