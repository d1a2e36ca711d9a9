//! What real writes say about the store, for readiness.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// What the latest writes came to, of all lanes. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct WriteHealth(Arc<LatestWrites>);

#[derive(Debug, Default)]
struct LatestWrites {
    has_failures: AtomicBool,
    /// Those since the latest success.
    failures: Mutex<Failures>,
}

#[derive(Debug, Default)]
struct Failures {
    of_all: Option<Instant>,
    unusable: Spread,
    rejected: Spread,
}

/// Failures that may be about single rows.
#[derive(Debug, Default)]
struct Spread {
    latest: Option<(u64, Instant)>,
    /// When they were last found to be about several.
    several: Option<Instant>,
}

impl Spread {
    fn note(&mut self, subject: u64) {
        let now = Instant::now();
        if self.latest.is_some_and(|(other, at)| other != subject && counts(Some(at), RELATED)) {
            self.several = Some(now);
        }
        self.latest = Some((subject, now));
    }
}

/// Why a write failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteFailure {
    /// For a reason that is true for every write.
    OfAll,
    /// The store cannot do this in its state. It may be about one row: the hash of its key.
    Unusable(u64),
    /// A rule of the database's owner rejects the row. It may be about one tenant: the hash of
    /// the team.
    Rejected(u64),
}

/// How soon failures that are about different rows follow one another to count as one of the store.
const RELATED: Duration = Duration::from_secs(5);

fn counts(failed: Option<Instant>, within: Duration) -> bool {
    failed.is_some_and(|at| at.elapsed() < within)
}

impl WriteHealth {
    /// A batch was written, or a part of it: no earlier failure counts any more.
    pub fn succeeded(&self) {
        if self.0.has_failures.load(Ordering::Relaxed) {
            let mut failures = self.failures();
            *failures = Failures::default();
            self.0.has_failures.store(false, Ordering::Relaxed);
        }
    }

    /// A write failed, in a batch of which nothing was written.
    pub fn failed(&self, failure: WriteFailure) {
        let mut failures = self.failures();
        match failure {
            WriteFailure::OfAll => failures.of_all = Some(Instant::now()),
            WriteFailure::Unusable(key) => failures.unusable.note(key),
            WriteFailure::Rejected(team) => failures.rejected.note(team),
        }
        self.0.has_failures.store(true, Ordering::Relaxed);
    }

    /// The probe, which had failed, has written all tables: the store is usable again.
    pub fn recovered(&self) {
        let mut failures = self.failures();
        (failures.unusable, failures.rejected) = (Spread::default(), Spread::default());
    }

    /// Whether writes failed `within` this time, and none succeeded since, for a reason that is true
    /// for every write; or for the store's state, and those of two different keys.
    #[must_use]
    pub fn fails_for_all(&self, within: Duration) -> bool {
        let failures = self.failures();
        counts(failures.of_all, within) || counts(failures.unusable.several, within)
    }

    /// Whether rows of two different teams were rejected `within` this time, and no write succeeded
    /// since. One team alone may have what the owner's rule is about.
    #[must_use]
    pub fn rejects_several_teams(&self, within: Duration) -> bool {
        counts(self.failures().rejected.several, within)
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        self.0.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
