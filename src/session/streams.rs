//! The streams of this replica, so that one that is replaced here learns it at once. That is a
//! hint: the row decides which stream keeps a lease or turn.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::domain::{LeaseId, RequestId};

/// What a stream keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kept {
    /// A lease.
    Lease(LeaseId),
    /// The turn of a request and its attempt.
    Turn(RequestId, u32),
}

type Map = HashMap<Kept, Arc<Notify>>;

/// The latest stream that keeps each lease and turn. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Streams(Arc<Mutex<Map>>);

impl Streams {
    /// A stream keeps `kept` from now on. The one that did before, if any, is notified.
    pub(crate) fn attend(&self, kept: Kept) -> Attendance {
        let (streams, notify) = (self.clone(), Arc::<Notify>::default());
        if let Some(before) = self.lock().insert(kept, Arc::clone(&notify)) {
            before.notify_one();
        }
        Attendance { streams, kept, notify }
    }

    fn lock(&self) -> MutexGuard<'_, Map> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream that keeps something, for as long as this lives.
pub(crate) struct Attendance {
    streams: Streams,
    kept: Kept,
    notify: Arc<Notify>,
}

impl Attendance {
    /// Waits until another stream of this replica may have taken over.
    pub(crate) async fn replaced(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        let mut streams = self.streams.lock();
        if streams.get(&self.kept).is_some_and(|latest| Arc::ptr_eq(latest, &self.notify)) {
            streams.remove(&self.kept);
        }
    }
}
