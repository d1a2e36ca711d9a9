//! The streams of this replica that keep something, so that one that is replaced here
//! learns it at once. That is a hint: who keeps it is for the row to say.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

type Map<K> = Mutex<HashMap<K, Arc<Notify>>>;

/// What is kept by streams, and how the latest of each is reached. Cheap to clone.
pub(crate) struct Streams<K>(Arc<Map<K>>);

impl<K: Copy + Eq + Hash> Streams<K> {
    /// A stream keeps `kept` from now on. The one that did before, if any, is notified.
    pub(crate) fn attend(&self, kept: K) -> Attendance<K> {
        let (streams, notify) = (self.clone(), Arc::<Notify>::default());
        if let Some(before) = self.lock().insert(kept, Arc::clone(&notify)) {
            before.notify_one();
        }
        Attendance { streams, kept, notify }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> Default for Streams<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K> Clone for Streams<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// A stream that keeps something, for as long as this lives.
pub(crate) struct Attendance<K: Copy + Eq + Hash> {
    streams: Streams<K>,
    kept: K,
    notify: Arc<Notify>,
}

impl<K: Copy + Eq + Hash> Attendance<K> {
    /// Waits until another stream of this replica may have taken over.
    pub(crate) async fn replaced(&self) {
        self.notify.notified().await;
    }
}

impl<K: Copy + Eq + Hash> Drop for Attendance<K> {
    fn drop(&mut self) {
        let mut streams = self.streams.lock();
        if streams.get(&self.kept).is_some_and(|latest| Arc::ptr_eq(latest, &self.notify)) {
            streams.remove(&self.kept);
        }
    }
}
