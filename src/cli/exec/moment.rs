//! The clock that a lease's end is counted by.

use std::{ops::Add, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::sleep;

/// Goes on while the machine sleeps, as the lease does. The monotonic clock of macOS does
/// so by itself.
#[cfg(target_os = "linux")]
const CLOCK: ClockId = ClockId::Boottime;
#[cfg(not(target_os = "linux"))]
const CLOCK: ClockId = ClockId::Monotonic;

/// How soon a machine that has woken up is noticed: timers stand still while it sleeps.
const TICK: Duration = Duration::from_millis(100);

/// An instant of the clock that counts from boot, never set back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BootInstant(Duration);

impl BootInstant {
    pub(super) fn now() -> Self {
        Self(clock_gettime(CLOCK).try_into().unwrap_or_default())
    }

    /// So much earlier.
    pub(super) fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span))
    }

    /// How long from `earlier` to this one; zero if it is not later.
    pub(super) fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// How long until then; zero if it is over.
    pub(super) fn left(self) -> Duration {
        self.since(Self::now())
    }

    /// Waits until then.
    pub(super) async fn reached(self) {
        loop {
            match self.left() {
                Duration::ZERO => return,
                left => sleep(left.min(TICK)).await,
            }
        }
    }
}

impl Add<Duration> for BootInstant {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }
}
