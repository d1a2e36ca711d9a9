//! Who waits for which session on this replica. Who is next, over all replicas, is
//! the store's to say; of those who wait here, the first looks after it for all.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, watch};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use uuid::Uuid;

use crate::domain::{LeaseId, SessionKey, SessionRow, limits::MAX_WAITERS_PER_SESSION};

/// The queues of all sessions; an empty one takes no room.
pub(super) struct Queues {
    by_session: Mutex<HashMap<SessionKey, Queue>>,
    /// The most that wait, or hold by a call, of all sessions together: they must not
    /// use up the calls that marks and releases need.
    most: i64,
    waiters: Gauge,
    /// The calls that wait in order to hold, or hold.
    holders: TaskTracker,
    /// Those who wait, by the lease that each is to be given.
    slots: Mutex<HashMap<LeaseId, Arc<Slot>>>,
    /// This replica, as the store knows it.
    replica: Uuid,
}

/// Where somebody who waits is given their lease.
#[derive(Default)]
struct Slot {
    row: Mutex<Option<SessionRow>>,
    woken: Notify,
}

#[derive(Default)]
struct Queue {
    /// Those whom the store has in its queue, in the order in which they came.
    tickets: BTreeSet<u64>,
    /// The next who comes has this.
    next: u64,
    /// They, and those who are about to be.
    places: usize,
    door: Arc<Door>,
}

/// Where a queue's waiters stand.
#[derive(Default)]
struct Door {
    /// Somebody has left, and those behind have moved up; or the session may be free,
    /// and the first is to look.
    moved: watch::Sender<()>,
}

impl Queues {
    pub(super) fn new(most: usize, waiters: Gauge) -> Self {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        Self {
            by_session: Mutex::default(),
            most,
            waiters,
            holders: TaskTracker::new(),
            slots: Mutex::default(),
            replica: Uuid::new_v4(),
        }
    }

    /// This replica, as the store knows it.
    pub(super) fn replica(&self) -> Uuid {
        self.replica
    }

    /// Whether anybody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// A session went to somebody: gives them its row, if they wait here.
    pub(super) fn deliver(&self, row: SessionRow) {
        if let Some(slot) = locked(&self.slots).get(&row.lease.id) {
            *locked(&slot.row) = Some(row);
            slot.woken.notify_one();
        }
    }

    /// Another replica says that it has handed a lease on: whoever waits for it here
    /// is to look.
    pub(super) fn heard(&self, lease: LeaseId) {
        if let Some(slot) = locked(&self.slots).get(&lease) {
            slot.woken.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionKey, Queue>> {
        locked(&self.by_session)
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

    /// Takes a place at the end of a session's queue, for somebody who is to be given
    /// `lease`; none when it is full.
    pub(super) fn join(self: &Arc<Self>, key: &SessionKey, lease: LeaseId) -> Option<Place> {
        let mut queues = self.lock();
        let length = queues.get(key).map_or(0, |queue| queue.places);
        if length >= MAX_WAITERS_PER_SESSION || self.waiters.get() >= self.most {
            return None;
        }
        let queue = queues.entry(key.clone()).or_default();
        queue.places += 1;
        self.waiters.inc();
        let door = Arc::clone(&queue.door);
        let slot = Arc::<Slot>::default();
        locked(&self.slots).insert(lease, Arc::clone(&slot));
        let queues = Arc::clone(self);
        Some(Place { key: key.clone(), lease, ticket: u64::MAX, door, slot, queues })
    }

    /// Wakes the first who waits for a session, which may be free now.
    pub(super) fn freed(&self, key: &SessionKey) {
        if let Some(queue) = self.lock().get(key) {
            queue.door.moved.send_replace(());
        }
    }
}

/// A place in a queue; dropping it leaves the queue.
pub(super) struct Place {
    key: SessionKey,
    lease: LeaseId,
    /// The greatest there is, until the store has it in its queue.
    ticket: u64,
    door: Arc<Door>,
    slot: Arc<Slot>,
    queues: Arc<Queues>,
}

impl Place {
    /// The store has it in its queue: it stands behind those who were there.
    pub(super) fn stand(&mut self) {
        let mut queues = self.queues.lock();
        if let Some(queue) = queues.get_mut(&self.key) {
            self.ticket = queue.next;
            queue.next += 1;
            queue.tickets.insert(self.ticket);
        }
    }

    /// How many stand before this one.
    pub(super) fn ahead(&self) -> usize {
        let queues = self.queues.lock();
        let before = |queue: &Queue| queue.tickets.range(..self.ticket).count();
        queues.get(&self.key).map_or(0, before)
    }

    /// Tells when somebody has left the queue, or the session may be free.
    pub(super) fn moved(&self) -> watch::Receiver<()> {
        self.door.moved.subscribe()
    }

    /// Waits for a notice that the lease has come.
    pub(super) async fn woken(&self) {
        self.slot.woken.notified().await;
    }

    /// The session's row, if the lease has come.
    pub(super) fn row(&self) -> Option<SessionRow> {
        locked(&self.slot.row).take()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Place {
    fn drop(&mut self) {
        locked(&self.queues.slots).remove(&self.lease);
        let mut queues = self.queues.lock();
        self.queues.waiters.dec();
        if let Some(queue) = queues.get_mut(&self.key) {
            queue.tickets.remove(&self.ticket);
            queue.places -= 1;
            if queue.places == 0 {
                queues.remove(&self.key);
            } else {
                self.door.moved.send_replace(());
            }
        }
    }
}
