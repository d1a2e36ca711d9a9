//! The log of slow calls.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use super::{call::CallTrace, window::Window};

/// At most this number of calls are logged in one window.
const MAX_LINES: u32 = 10;
const WINDOW: Duration = Duration::from_secs(10);

/// Logs calls that take longer than a limit, and few of many.
#[derive(Debug)]
pub struct SlowCalls {
    /// In nanoseconds.
    limit: AtomicU64,
    lines: Window,
}

/// One call that has ended.
pub struct Ended<'a> {
    /// The call.
    pub call: &'a CallTrace,
    /// The name of its status code.
    pub code: &'static str,
    /// From its first byte until its answer was ready: what the caller takes to read it is the
    /// caller's.
    pub elapsed: Duration,
    /// How much of that it waited for a session.
    pub wait: Duration,
    /// Who made it, if that is known.
    pub principal: Option<&'a str>,
}

impl Default for SlowCalls {
    /// Logs none.
    fn default() -> Self {
        Self { limit: AtomicU64::new(u64::MAX), lines: Window::new(WINDOW, MAX_LINES) }
    }
}

impl SlowCalls {
    /// Logs calls from now on that take `limit` or longer without their wait; none if that is zero.
    pub fn log_from(&self, limit: Duration) {
        let nanos = if limit.is_zero() { u64::MAX } else { nanos(limit) };
        self.limit.store(nanos, Ordering::Relaxed);
    }

    /// Whether a call that took this long, without its wait, is slow.
    #[must_use]
    pub fn includes(&self, took: Duration) -> bool {
        nanos(took) >= self.limit.load(Ordering::Relaxed)
    }

    /// Logs a slow call, unless too many others were logged just before.
    pub fn log(&self, ended: &Ended<'_>) {
        let Some(left_out) = self.lines.admit(Instant::now()) else { return };
        let Ended { call, code, elapsed, wait, principal } = ended;
        call.log(|| {
            tracing::warn!(
                code,
                elapsed_ms = millis(*elapsed),
                wait_ms = millis(*wait),
                principal,
                team = call.team(),
                left_out,
                "slow call"
            );
        });
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX - 1)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_slow_from_the_limit_on_and_never_without_one() {
        let slow = SlowCalls::default();
        assert!(!slow.includes(Duration::MAX));
        slow.log_from(Duration::from_millis(250));
        assert!(!slow.includes(Duration::from_micros(249_999)));
        assert!(slow.includes(Duration::from_millis(250)));
        slow.log_from(Duration::ZERO);
        assert!(!slow.includes(Duration::MAX));
    }
}
