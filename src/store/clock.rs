//! Whose time decides.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::domain::Timestamp;

/// Who asks the time. Production asks the store; a test sets it.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The store's own clock decides.
    #[default]
    Store,
    /// The clock stands where a test puts it.
    Manual(Arc<ManualClock>),
}

/// A clock that a test moves. Like a machine's it shows a time of day, which can be set
/// forward and back, and measures how much time passes, which cannot.
#[derive(Debug, Default)]
pub struct ManualClock {
    shown: AtomicI64,
    passed: AtomicI64,
    /// Since when it also moves by itself.
    runs_since: Option<Instant>,
}

impl ManualClock {
    /// A clock that shows the moment `micros` microseconds after the start of 1970.
    #[must_use]
    pub fn at(micros: i64) -> Self {
        Self { shown: AtomicI64::new(micros), ..Self::default() }
    }

    /// A clock that shows that moment now, and runs.
    #[must_use]
    pub fn running_from(micros: i64) -> Self {
        Self { runs_since: Some(Instant::now()), ..Self::at(micros) }
    }

    /// Lets time pass.
    pub fn advance(&self, span: Duration) {
        let micros = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        self.passed.fetch_add(micros, Ordering::SeqCst);
        self.shown.fetch_add(micros, Ordering::SeqCst);
    }

    /// Sets the time of day, as a step of the clock does: no time passes.
    pub fn set(&self, micros: i64) {
        self.shown.store(micros - self.run(), Ordering::SeqCst);
    }

    /// The time of day.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.shown.load(Ordering::SeqCst) + self.run())
    }

    /// How much time has passed, in microseconds.
    pub(super) fn passed(&self) -> i64 {
        self.passed.load(Ordering::SeqCst) + self.run()
    }

    /// How much time has passed by itself, in microseconds.
    fn run(&self) -> i64 {
        let span = self.runs_since.map_or(Duration::ZERO, |since| since.elapsed());
        i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
    }
}

impl Clock {
    /// The time that a statement is given; none where the store's clock decides.
    #[must_use]
    pub fn now(&self) -> Option<Timestamp> {
        match self {
            Self::Store => None,
            Self::Manual(clock) => Some(clock.now()),
        }
    }
}
