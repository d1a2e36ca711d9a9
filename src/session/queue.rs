//! Who waits for which session on this replica, first come first served.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use crate::domain::{SessionKey, limits::MAX_WAITERS_PER_SESSION};

/// The queues of all sessions; an empty one takes no room.
pub(super) struct Queues {
    by_session: Mutex<HashMap<SessionKey, Queue>>,
    /// The most waiters of all sessions together: they must not use up the calls
    /// that marks and releases need.
    most: i64,
    waiters: Gauge,
}

#[derive(Default)]
struct Queue {
    length: usize,
    door: Arc<Door>,
}

/// Where a queue's waiters stand. The semaphore hands its one permit on in the
/// order in which it was asked for; whoever has it is first.
struct Door {
    turn: Semaphore,
    freed: Notify,
}

impl Default for Door {
    fn default() -> Self {
        Self { turn: Semaphore::new(1), freed: Notify::new() }
    }
}

impl Queues {
    pub(super) fn new(most: usize, waiters: Gauge) -> Self {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        Self { by_session: Mutex::default(), most, waiters }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionKey, Queue>> {
        self.by_session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait for a session.
    pub(super) fn length(&self, key: &SessionKey) -> usize {
        self.lock().get(key).map_or(0, |queue| queue.length)
    }

    /// Takes a place at the end of a session's queue; none when it is full.
    pub(super) fn join(self: &Arc<Self>, key: &SessionKey) -> Option<Place> {
        let mut queues = self.lock();
        let length = queues.get(key).map_or(0, |queue| queue.length);
        if length >= MAX_WAITERS_PER_SESSION || self.waiters.get() >= self.most {
            return None;
        }
        let queue = queues.entry(key.clone()).or_default();
        queue.length += 1;
        self.waiters.inc();
        Some(Place { key: key.clone(), door: Arc::clone(&queue.door), queues: Arc::clone(self) })
    }

    /// Wakes the first who waits for a session, which may be free now.
    pub(super) fn freed(&self, key: &SessionKey) {
        if let Some(queue) = self.lock().get(key) {
            // A notice to nobody is kept for the next who listens.
            queue.door.freed.notify_one();
        }
    }
}

/// A place in a queue; dropping it leaves the queue.
pub(super) struct Place {
    key: SessionKey,
    door: Arc<Door>,
    queues: Arc<Queues>,
}

impl Place {
    /// Waits until everybody who came before has left.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.door.turn.acquire().await.ok()
    }

    /// Waits for a notice that the session may be free.
    pub(super) async fn freed(&self) {
        self.door.freed.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut queues = self.queues.lock();
        self.queues.waiters.dec();
        if let Some(queue) = queues.get_mut(&self.key) {
            queue.length -= 1;
            if queue.length == 0 {
                queues.remove(&self.key);
            }
        }
    }
}
