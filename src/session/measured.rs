//! When the store measured the time that a lease or claim has left.

use std::time::Duration;

use tokio::time::Instant;

/// A value whose `remaining` was measured by a statement that began at `asked`, or later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured<T> {
    /// The value.
    pub value: T,
    /// When the statement began.
    pub asked: Instant,
}

impl<T> Measured<T> {
    /// A value that a statement which began at `asked` returned.
    pub const fn new(value: T, asked: Instant) -> Self {
        Self { value, asked }
    }

    /// How long a call that arrived at `arrived` had taken when this was measured, at least.
    #[must_use]
    pub fn elapsed(&self, arrived: Instant) -> Duration {
        self.asked.saturating_duration_since(arrived)
    }
}
