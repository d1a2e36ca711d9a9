//! The streams of this replica, and the hints that reach them: a hint says what may have changed,
//! and the row decides.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::domain::{LeaseId, RequestId, SessionKey};

/// What a stream is concerned with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Concern {
    /// A lease that it keeps.
    Lease(LeaseId),
    /// The turn of a request, which it keeps.
    Turn(RequestId),
    /// A session, by its lock key: it has the session or waits for it.
    Session(i64),
}

/// The hints that one stream has not followed yet.
#[derive(Default)]
struct Hints {
    /// What it keeps may be lost, or may have been taken over.
    renew: Notify,
    /// The session's holder or queue may have changed.
    look: Notify,
}

type Map = HashMap<Concern, Vec<Arc<Hints>>>;

/// The streams of this replica, by their concerns. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Streams(Arc<Mutex<Map>>);

impl Streams {
    /// A further stream, without concerns yet.
    pub(crate) fn attend(&self) -> Attendance {
        Attendance { streams: self.clone(), concerns: Vec::new(), hints: Arc::default() }
    }

    /// The holder or the queue of a session may have changed.
    pub(crate) fn session_changed(&self, key: &SessionKey) {
        self.lock_key_changed(key.lock_key());
    }

    /// The same, for the sessions with this lock key.
    pub(crate) fn lock_key_changed(&self, lock_key: i64) {
        for hints in self.lock().get(&Concern::Session(lock_key)).into_iter().flatten() {
            hints.look.notify_one();
        }
    }

    /// The turn of a request may be lost.
    pub(crate) fn turn_changed(&self, request: RequestId) {
        for hints in self.lock().get(&Concern::Turn(request)).into_iter().flatten() {
            hints.renew.notify_one();
        }
    }

    /// Anything may have changed.
    pub(crate) fn all_changed(&self) {
        for hints in self.lock().values().flatten() {
            hints.look.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Map> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream of this replica, for as long as this lives.
pub(crate) struct Attendance {
    streams: Streams,
    concerns: Vec<Concern>,
    hints: Arc<Hints>,
}

impl Attendance {
    /// Hints about a session reach the stream from now on.
    pub(crate) fn watch(&mut self, key: &SessionKey) {
        self.add(Concern::Session(key.lock_key()));
    }

    /// The stream keeps a lease or a turn from now on. An older stream that keeps it is notified.
    pub(crate) fn keep(&mut self, kept: Concern) {
        for older in self.streams.lock().get(&kept).into_iter().flatten() {
            older.renew.notify_one();
        }
        self.add(kept);
    }

    fn add(&mut self, concern: Concern) {
        self.streams.lock().entry(concern).or_default().push(Arc::clone(&self.hints));
        self.concerns.push(concern);
    }

    /// Waits for a hint that what it keeps may be lost.
    pub(crate) async fn lost(&self) {
        self.hints.renew.notified().await;
    }

    /// Waits for a hint that the session may have changed.
    pub(crate) async fn changed(&self) {
        self.hints.look.notified().await;
    }

    /// Leaves a hint that the session may have changed.
    pub(crate) fn expect_change(&self) {
        self.hints.look.notify_one();
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        let mut streams = self.streams.lock();
        for concern in &self.concerns {
            if let Some(others) = streams.get_mut(concern) {
                others.retain(|hints| !Arc::ptr_eq(hints, &self.hints));
                if others.is_empty() {
                    streams.remove(concern);
                }
            }
        }
    }
}
