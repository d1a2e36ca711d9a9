//! What a further run of an operation knows of the one before it.

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};

/// Whether an earlier run of an operation, whose answer was lost, may have done what is asked. By then
/// another caller may have what it gave back, so that the records do not show it.
///
/// It is not a part of what is asked: all values are equal, and look alike.
#[derive(Default)]
pub struct Doubt {
    is_decided: AtomicBool,
    is_lost: AtomicBool,
}

impl Doubt {
    /// A run decides: whether its plan does what is asked.
    pub fn decide(&self, is_done: bool) {
        self.is_decided.store(is_done, Ordering::Relaxed);
    }

    /// It is not known whether the plan of that run was written.
    pub fn lose(&self) {
        self.is_lost.fetch_or(self.is_decided.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Whether it may be done.
    #[must_use]
    pub fn may_be_done(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Doubt")
    }
}

impl Clone for Doubt {
    fn clone(&self) -> Self {
        let Self { is_decided, is_lost } = self;
        let copy = |flag: &AtomicBool| AtomicBool::new(flag.load(Ordering::Relaxed));
        Self { is_decided: copy(is_decided), is_lost: copy(is_lost) }
    }
}

impl PartialEq for Doubt {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Doubt {}
