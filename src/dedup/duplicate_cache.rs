//! The duplicate cache: rows of marks that this replica has read, from which it answers
//! duplicates without the store.
//!
//! An entry counts only while the store would answer the same: not past the row's
//! expiry, not once marks were deleted, and not while a deletion may have been
//! missed ([`Invalidations`]). Nothing here waits, and no lock is held for longer
//! than it takes to copy an entry.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use quick_cache::{
    DefaultHashBuilder, OptionsBuilder, UnitWeighter,
    sync::{Cache, DefaultLifecycle},
};

use crate::{
    domain::{EventKey, StoredEvent, Timestamp},
    store::Invalidations,
};

/// What is known of an event.
pub enum Lookup {
    /// Its live row.
    Found(StoredEvent),
    /// Nothing. The store is to be asked; its answer may be remembered with the
    /// question, where there is one.
    NotFound(Option<CacheTicket>),
}

/// A question to the store, noted before it is sent.
#[derive(Clone, Copy)]
pub struct CacheTicket {
    digest: u128,
    epoch: u64,
    at: Timestamp,
}

#[derive(Clone)]
struct Entry {
    event: StoredEvent,
    /// The epoch of the question that this is the answer to.
    epoch: u64,
    /// The row's expiry, or the entry's greatest age where that is earlier.
    until: Timestamp,
}

/// The marks that are remembered. Bounded: the latest stay.
pub struct DuplicateCache {
    entries: Cache<u128, Entry>,
    invalidations: Arc<dyn Invalidations>,
    max_age: Duration,
    /// Makes the digests of one process its own, so that nobody who chooses ids
    /// can have chosen two that collide.
    seed: u64,
    /// The epoch at which the entries were last cleared.
    cleared: AtomicU64,
}

impl DuplicateCache {
    /// Remembers up to `capacity` marks, each for `max_age` at most.
    ///
    /// # Errors
    /// When an option of the cache is missing: a bug.
    pub fn new(
        capacity: usize,
        max_age: Duration,
        invalidations: Arc<dyn Invalidations>,
    ) -> anyhow::Result<Self> {
        // Events are redelivered within minutes, then never again: the latest
        // are worth keeping, not the most asked for. A larger share for those
        // would be filled once and keep what came first.
        let options = OptionsBuilder::new()
            .estimated_items_capacity(capacity)
            .weight_capacity(capacity as u64)
            .hot_allocation(0.0)
            .ghost_allocation(0.0)
            .build()?;
        let hasher = DefaultHashBuilder::default();
        let entries =
            Cache::with_options(options, UnitWeighter, hasher, DefaultLifecycle::default());
        Ok(Self {
            entries,
            max_age,
            seed: rand::random(),
            cleared: AtomicU64::new(invalidations.epoch()),
            invalidations,
        })
    }

    /// What is known of the event `key`.
    #[must_use]
    pub fn recall(&self, key: &EventKey) -> Lookup {
        let Some(at) = self.invalidations.now() else {
            return Lookup::NotFound(None);
        };
        let digest = key.digest(self.seed);
        let entry = self.entries.get(&digest);
        // Read last: an entry of this epoch was true a moment ago.
        let epoch = self.invalidations.epoch();
        match entry {
            Some(entry) if entry.epoch == epoch && at < entry.until => Lookup::Found(entry.event),
            _ => Lookup::NotFound(Some(CacheTicket { digest, epoch, at })),
        }
    }

    /// Remembers a committed row. It never counts if marks were deleted since the ticket was
    /// issued: the row may have been read before that.
    pub fn remember(&self, question: CacheTicket, event: StoredEvent) {
        let CacheTicket { digest, epoch, at } = question;
        if epoch == self.invalidations.epoch() {
            let until = event.expire_time.min(at.plus(self.max_age));
            self.entries.insert(digest, Entry { event, epoch, until });
        }
    }

    /// Lets go of entries that count no more because marks were taken away.
    pub fn tidy(&self) {
        let epoch = self.invalidations.epoch();
        if self.cleared.swap(epoch, Ordering::SeqCst) != epoch {
            self.entries.clear();
        }
    }

    /// How many entries there are, whether they still count or not.
    #[must_use]
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Whether anything is answered from memory now.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.invalidations.now().is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicI64};

    use super::*;
    use crate::domain::ProcessedBy;
    use crate::domain::RequestId;
    use crate::domain::Team;

    const MAX_AGE: Duration = Duration::from_millis(1);

    /// A store whose answers a test sets.
    #[derive(Default)]
    struct Store {
        epoch: AtomicU64,
        now: AtomicI64,
        deaf: AtomicBool,
    }

    impl Invalidations for Store {
        fn epoch(&self) -> u64 {
            self.epoch.load(Ordering::SeqCst)
        }

        fn now(&self) -> Option<Timestamp> {
            let now = Timestamp::from_micros(self.now.load(Ordering::SeqCst));
            (!self.deaf.load(Ordering::SeqCst)).then_some(now)
        }
    }

    fn known(capacity: usize) -> (Arc<Store>, DuplicateCache) {
        let store = Arc::new(Store::default());
        let known = DuplicateCache::new(capacity, MAX_AGE, store.clone()).unwrap();
        (store, known)
    }

    fn key(team: &str, event: &str) -> EventKey {
        EventKey { team: Team::stored(team), event: event.into() }
    }

    fn row(expire_micros: i64) -> StoredEvent {
        StoredEvent {
            process_time: Timestamp::from_micros(0),
            expire_time: Timestamp::from_micros(expire_micros),
            by: ProcessedBy::Mark,
            detail: None,
            digest: None,
            request: Some(RequestId::for_event(&key("T", "e"), None)),
        }
    }

    fn recalled(known: &DuplicateCache, key: &EventKey) -> Option<StoredEvent> {
        match known.recall(key) {
            Lookup::Found(event) => Some(event),
            Lookup::NotFound(_) => None,
        }
    }

    fn question(known: &DuplicateCache, key: &EventKey) -> CacheTicket {
        match known.recall(key) {
            Lookup::NotFound(Some(question)) => question,
            _ => panic!("nothing to ask"),
        }
    }

    #[test]
    fn a_row_is_told_as_it_was_remembered_and_to_its_own_key_only() {
        let (_, known) = known(100);
        let event = row(500);
        known.remember(question(&known, &key("T1", "e")), event.clone());
        assert_eq!(recalled(&known, &key("T1", "e")), Some(event));
        for other in [key("T2", "e"), key("T1", "f"), key("T", "1e"), key("T1e", "")] {
            assert_eq!(recalled(&known, &other), None, "{other:?}");
        }
    }

    #[test]
    fn nothing_counts_from_the_moment_of_its_expiry() {
        let (store, known) = known(100);
        known.remember(question(&known, &key("T", "e")), row(500));
        store.now.store(499, Ordering::SeqCst);
        assert!(recalled(&known, &key("T", "e")).is_some());
        store.now.store(500, Ordering::SeqCst);
        assert!(recalled(&known, &key("T", "e")).is_none());
    }

    #[test]
    fn nothing_grows_older_than_the_greatest_age_counted_from_the_question() {
        let (store, known) = known(100);
        let asked = question(&known, &key("T", "e"));
        store.now.store(700, Ordering::SeqCst);
        known.remember(asked, row(1_000_000));
        store.now.store(999, Ordering::SeqCst);
        assert!(recalled(&known, &key("T", "e")).is_some());
        store.now.store(1_000, Ordering::SeqCst);
        assert!(recalled(&known, &key("T", "e")).is_none());
    }

    #[test]
    fn what_was_asked_before_marks_were_taken_away_never_counts() {
        let (store, known) = known(100);
        let (before, racing) = (key("T", "before"), key("T", "racing"));
        known.remember(question(&known, &before), row(500));
        let asked = question(&known, &racing);
        store.epoch.fetch_add(1, Ordering::SeqCst);
        // The row was read, then deleted; its answer comes last.
        known.remember(asked, row(500));
        assert!(recalled(&known, &before).is_none());
        assert!(recalled(&known, &racing).is_none());
        known.remember(question(&known, &racing), row(500));
        assert!(recalled(&known, &racing).is_some());
    }

    #[test]
    fn an_answer_that_is_remembered_in_the_very_moment_does_not_count_either() {
        // Between the look at the epoch and the entry, as if preempted there.
        let (store, known) = known(100);
        let CacheTicket { digest, epoch, .. } = question(&known, &key("T", "e"));
        store.epoch.fetch_add(1, Ordering::SeqCst);
        known.tidy();
        let until = Timestamp::from_micros(500);
        known.entries.insert(digest, Entry { event: row(500), epoch, until });
        assert!(recalled(&known, &key("T", "e")).is_none());
    }

    #[test]
    fn a_store_that_could_not_tell_is_asked_and_nothing_is_remembered() {
        let (store, known) = known(100);
        known.remember(question(&known, &key("T", "e")), row(500));
        store.deaf.store(true, Ordering::SeqCst);
        assert!(!known.is_in_use());
        assert!(matches!(known.recall(&key("T", "e")), Lookup::NotFound(None)));
        store.deaf.store(false, Ordering::SeqCst);
        assert!(recalled(&known, &key("T", "e")).is_some(), "nothing was missed");
    }

    #[test]
    fn entries_that_no_longer_count_are_let_go() {
        let (store, known) = known(100);
        known.remember(question(&known, &key("T", "e")), row(500));
        known.tidy();
        assert_eq!(known.count(), 1);
        store.epoch.fetch_add(1, Ordering::SeqCst);
        known.tidy();
        assert_eq!(known.count(), 0);
    }

    #[test]
    fn the_latest_are_kept_and_no_more_than_there_is_room_for() {
        let (_, known) = known(1_000);
        for event in 0..10_000 {
            let key = key("T", &event.to_string());
            known.remember(question(&known, &key), row(500));
        }
        assert!(known.count() <= 1_000, "{}", known.count());
        // The shards of the cache are not filled evenly.
        let latest = (9_400..10_000)
            .filter(|event| recalled(&known, &key("T", &event.to_string())).is_some());
        assert_eq!(latest.count(), 600);
    }
}
