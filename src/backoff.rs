//! Pauses between tries that fail: each twice as long as the one before, up to a bound.

use std::time::Duration;

/// The pause before the next try.
#[derive(Debug, Clone)]
pub struct Backoff {
    least: Duration,
    most: Duration,
    pause: Duration,
}

impl Backoff {
    /// Pauses from `least` to `most`.
    #[must_use]
    pub const fn new(least: Duration, most: Duration) -> Self {
        Self { least, most, pause: least }
    }

    /// The pause that comes next.
    #[must_use]
    pub const fn pause(&self) -> Duration {
        self.pause
    }

    /// Makes the pause that comes next twice as long.
    pub fn grow(&mut self) {
        self.pause = (self.pause * 2).min(self.most);
    }

    /// The pause that comes next; the one after it is twice as long.
    pub fn take(&mut self) -> Duration {
        let pause = self.pause;
        self.grow();
        pause
    }

    /// Whether no try has failed.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.pause == self.least
    }

    /// A try has succeeded.
    pub const fn reset(&mut self) {
        self.pause = self.least;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_bound_until_a_try_succeeds() {
        let mut backoff = Backoff::new(Duration::from_millis(3), Duration::from_millis(10));
        assert!(backoff.is_new());
        let pauses: Vec<u128> = (0..4).map(|_| backoff.take().as_millis()).collect();
        assert_eq!(pauses, [3, 6, 10, 10]);
        assert!(!backoff.is_new());
        backoff.reset();
        assert_eq!((backoff.is_new(), backoff.pause().as_millis()), (true, 3));
    }
}
