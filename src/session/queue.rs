//! Who waits for which session on this replica, first come first served.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, watch};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use crate::domain::{SessionKey, limits::MAX_WAITERS_PER_SESSION};

/// The queues of all sessions; an empty one takes no room.
pub(super) struct Queues {
    by_session: Mutex<HashMap<SessionKey, Queue>>,
    /// The most that wait, or hold by a call, of all sessions together: they must not
    /// use up the calls that marks and releases need.
    most: i64,
    waiters: Gauge,
    /// The calls that wait in order to hold, or hold.
    holders: TaskTracker,
}

#[derive(Default)]
struct Queue {
    /// Those who wait, in the order in which they came.
    tickets: BTreeSet<u64>,
    /// The next who comes has this.
    next: u64,
    door: Arc<Door>,
}

/// Where a queue's waiters stand.
#[derive(Default)]
struct Door {
    /// Somebody has left, and those behind have moved up.
    moved: watch::Sender<()>,
    /// The session may be free: for the first alone.
    freed: Notify,
}

impl Queues {
    pub(super) fn new(most: usize, waiters: Gauge) -> Self {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        Self { by_session: Mutex::default(), most, waiters, holders: TaskTracker::new() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionKey, Queue>> {
        self.by_session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait for a session.
    pub(super) fn length(&self, key: &SessionKey) -> usize {
        self.lock().get(key).map_or(0, |queue| queue.tickets.len())
    }

    /// Counts a call in that holds a lease for as long as it lives; none when there
    /// are too many.
    pub(super) fn hold(&self) -> Option<TaskTrackerToken> {
        let count = i64::try_from(self.holders.len()).unwrap_or(i64::MAX);
        (count < self.most).then(|| self.holders.token())
    }

    /// Takes a place at the end of a session's queue; none when it is full.
    pub(super) fn join(self: &Arc<Self>, key: &SessionKey) -> Option<Place> {
        let mut queues = self.lock();
        let length = queues.get(key).map_or(0, |queue| queue.tickets.len());
        if length >= MAX_WAITERS_PER_SESSION || self.waiters.get() >= self.most {
            return None;
        }
        let queue = queues.entry(key.clone()).or_default();
        let ticket = queue.next;
        queue.next += 1;
        queue.tickets.insert(ticket);
        self.waiters.inc();
        let door = Arc::clone(&queue.door);
        let moved = door.moved.subscribe();
        Some(Place { key: key.clone(), ticket, door, moved, queues: Arc::clone(self) })
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
    ticket: u64,
    door: Arc<Door>,
    moved: watch::Receiver<()>,
    queues: Arc<Queues>,
}

impl Place {
    /// How many stand before this one.
    pub(super) fn ahead(&self) -> usize {
        let queues = self.queues.lock();
        let before = |queue: &Queue| queue.tickets.range(..self.ticket).count();
        queues.get(&self.key).map_or(0, before)
    }

    /// Waits until somebody has left the queue.
    pub(super) async fn moved(&mut self) {
        // The door stays for as long as this place does.
        let _ = self.moved.changed().await;
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
            queue.tickets.remove(&self.ticket);
            if queue.tickets.is_empty() {
                queues.remove(&self.key);
            } else {
                self.door.moved.send_replace(());
            }
        }
    }
}
