//! Records in memory: nothing is kept when the process ends. For tests of bots, and for those of
//! the rules: several replicas may share the records, and the clock may be set.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::{Future, ready},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use tokio::sync::mpsc;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use super::{
    Clock, Connection, Fence, FenceStore, Hint, Invalidations, PRESENCE, Reset, Store, StoreError,
    Work,
    records::{Applied, Decided, Records},
};
use crate::{
    domain::{EventKey, FencingToken, LeaseId, SessionKey, Timestamp},
    rules::{
        Change, Event, Ids, Notice, Plan, Session, SessionWrite, Snapshot, State, Waiter, Wanted,
        Writes,
    },
};

mod admin;
mod maintenance;

/// The most hints that wait for a replica.
const MOST_HINTS: usize = 1_024;

/// One replica's view of records in memory.
pub struct Memory {
    shared: Arc<Shared>,
    replica: u64,
    ids: Mutex<Ids>,
    handles: TaskTracker,
}

/// What all replicas share.
struct Shared {
    clock: Clock,
    records: Mutex<RecordSet>,
    /// Rises when marks that have not expired were taken away.
    epoch: AtomicU64,
}

/// The records, and who is to hear of changes.
#[derive(Default)]
struct RecordSet {
    sessions: BTreeMap<SessionKey, Session>,
    events: BTreeMap<EventKey, Event>,
    floor: FencingToken,
    /// The latest ticket.
    ticket: i64,
    /// Which replica a place waits on, by the lease that it is to end in.
    replicas: BTreeMap<LeaseId, u64>,
    /// Until when each replica counts as there.
    present: BTreeMap<u64, Timestamp>,
    /// How many replicas there were.
    latest_replica: u64,
    hints: BTreeMap<u64, mpsc::Sender<Hint>>,
}

impl Memory {
    /// An empty store, and its first replica.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let shared = Shared { clock, records: Mutex::default(), epoch: AtomicU64::new(0) };
        Self::of(Arc::new(shared), Ids::Random)
    }

    /// A further replica on the same records, with these new ids.
    #[must_use]
    pub fn replica(&self, ids: Ids) -> Self {
        Self::of(Arc::clone(&self.shared), ids)
    }

    fn of(shared: Arc<Shared>, ids: Ids) -> Self {
        let mut records = shared.records();
        records.latest_replica += 1;
        let replica = records.latest_replica;
        drop(records);
        Self { shared, replica, ids: Mutex::new(ids), handles: TaskTracker::new() }
    }
}

impl Shared {
    fn records(&self) -> MutexGuard<'_, RecordSet> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[expect(clippy::disallowed_methods, reason = "in memory the store's clock is this machine's")]
    fn now(&self) -> Timestamp {
        self.clock.now().unwrap_or_else(|| {
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let micros = since.map_or(0, |since| since.as_micros());
            Timestamp::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
        })
    }
}

impl Store for Memory {
    type Connection = Handle;

    fn connection(&self, _work: Work) -> Handle {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        Handle {
            shared: Arc::clone(&self.shared),
            replica: self.replica,
            ids: ids.fork(),
            _open: self.handles.token(),
        }
    }

    fn invalidations(&self) -> Arc<dyn Invalidations> {
        Arc::clone(&self.shared) as _
    }

    fn hints(&self) -> mpsc::Receiver<Hint> {
        let (sender, receiver) = mpsc::channel(MOST_HINTS);
        self.shared.records().hints.insert(self.replica, sender);
        receiver
    }

    fn writers(&self, _wanted: usize) -> usize {
        1
    }

    fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        let handles = self.handles.clone();
        async move {
            handles.close();
            handles.wait().await;
        }
    }
}

impl Invalidations for Shared {
    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    fn now(&self) -> Option<Timestamp> {
        Some(self.now())
    }
}

impl FenceStore for Memory {
    fn fence(&self) -> impl Future<Output = Result<Fence, StoreError>> + Send {
        let (now, records) = (self.shared.now(), self.shared.records());
        ready(Ok(records.fence(now)))
    }

    fn raise_fence(
        &self,
        floor: FencingToken,
    ) -> impl Future<Output = Result<Fence, StoreError>> + Send {
        let (now, mut records) = (self.shared.now(), self.shared.records());
        records.floor = records.floor.max(floor);
        ready(Ok(records.fence(now)))
    }
}

/// A connection to records in memory.
pub struct Handle {
    shared: Arc<Shared>,
    replica: u64,
    ids: Ids,
    _open: TaskTrackerToken,
}

impl Connection for Handle {}

impl Reset for Handle {
    fn reset(&mut self) {}
}

impl Decided for Handle {}

impl Records for Handle {
    fn read(
        &mut self,
        wanted: &Wanted,
    ) -> impl Future<Output = Result<Snapshot, StoreError>> + Send {
        let (now, records) = (self.shared.now(), self.shared.records());
        let mut snapshot = Snapshot { floor: records.floor, ..Snapshot::empty(now) };
        for (key, with_queue) in &wanted.sessions {
            if let Some(session) = records.sessions.get(key) {
                let session = records.seen(session, *with_queue, self.replica, now);
                snapshot.sessions.insert(key.clone(), session);
            }
        }
        for (key, with_result) in &wanted.events {
            if let Some(event) = records.events.get(key) {
                let mut event = event.clone();
                if let State::Handled(_, result) = &mut event.state
                    && !with_result
                {
                    *result = None;
                }
                snapshot.events.insert(key.clone(), event);
            }
        }
        ready(Ok(snapshot))
    }

    fn apply(
        &mut self,
        plans: Vec<Plan>,
    ) -> impl Future<Output = Result<Vec<Applied>, StoreError>> + Send {
        let (now, mut records) = (self.shared.now(), self.shared.records());
        let mut applied = Vec::with_capacity(plans.len());
        for plan in plans {
            if !records.holds(&plan, now) {
                applied.push(Applied::Conflict);
                continue;
            }
            if plan.writes.updates.iter().any(|update| update.event.is_none()) {
                self.shared.epoch.fetch_add(1, Ordering::SeqCst);
            }
            applied.push(Applied::Written(records.write(plan.writes, self.replica, now)));
            for notice in plan.notices {
                records.notify(self.replica, &notice);
            }
        }
        ready(Ok(applied))
    }

    fn known_time(&self) -> Option<Timestamp> {
        Some(self.shared.now())
    }

    fn ids(&mut self) -> &mut Ids {
        &mut self.ids
    }
}

impl RecordSet {
    /// A session as a decision of `own` sees it: that replica is there, whatever its latest
    /// heartbeat says.
    fn seen(&self, session: &Session, with_queue: bool, own: u64, now: Timestamp) -> Session {
        let is_awaited = session.latest.as_ref().is_some_and(|latest| latest.waiting);
        let is_there = |waiter: &Waiter| {
            let Some(replica) = self.replicas.get(&waiter.lease) else { return false };
            *replica == own || self.present.get(replica).is_some_and(|until| *until > now)
        };
        let queue = session.queue.iter().filter(|_| is_awaited || with_queue);
        let queue = queue.map(|waiter| Waiter { is_there: is_there(waiter), ..waiter.clone() });
        Session { latest: session.latest.clone(), queue: queue.collect() }
    }

    /// Whether all that a plan rests on still holds.
    fn holds(&self, plan: &Plan, now: Timestamp) -> bool {
        let session = |key| Some(self.sessions.get(key)?.latest.as_ref()?.version);
        let event = |key| Some(self.events.get(key)?.version);
        (plan.from..plan.until).contains(&now)
            && plan.token.is_none_or(|token| token > self.floor)
            && plan.sessions.iter().all(|(key, version)| session(key) == *version)
            && plan.events.iter().all(|(key, version)| event(key) == *version)
    }

    /// Writes what a plan of `replica` comes to. Answers the tickets of new places.
    fn write(&mut self, writes: Writes, replica: u64, now: Timestamp) -> Vec<(LeaseId, i64)> {
        let Writes { sessions, updates, puts, floor } = writes;
        self.floor = self.floor.max(floor.unwrap_or(self.floor));
        for update in updates {
            for name in &update.names {
                let key = EventKey { team: update.team.clone(), event: name.clone() };
                let Some(row) = self.events.get_mut(&key).filter(|row| update.is_of(row)) else {
                    continue;
                };
                if let Some(event) = update.event_under(row.digest) {
                    *row = event;
                } else {
                    self.events.remove(&key);
                }
            }
        }
        self.events.extend(puts);
        let mut tickets = Vec::new();
        for write in sessions {
            let takes_over = write.change.iter().any(|waiter| waiter.left_at.is_none());
            if !write.add.is_empty() || takes_over {
                self.present.insert(replica, now.plus(PRESENCE));
            }
            self.write_session(write, replica, &mut tickets);
        }
        tickets
    }

    fn write_session(
        &mut self,
        write: SessionWrite,
        replica: u64,
        tickets: &mut Vec<(LeaseId, i64)>,
    ) {
        let SessionWrite { key, latest, add, change, remove } = write;
        let session = self.sessions.entry(key.clone()).or_default();
        match latest {
            Change::Keep => {}
            Change::Put(latest) => session.latest = Some(latest),
            Change::Delete => session.latest = None,
        }
        let remove: BTreeSet<Option<i64>> = remove.into_iter().map(Some).collect();
        let gone = session.queue.extract_if(.., |waiter| remove.contains(&waiter.ticket));
        for waiter in gone {
            self.replicas.remove(&waiter.lease);
        }
        for waiter in change {
            let place = session.queue.iter_mut().find(|place| place.ticket == waiter.ticket);
            if let Some(place) = place {
                self.replicas.remove(&place.lease);
                self.replicas.insert(waiter.lease, replica);
                *place = waiter;
            }
        }
        for waiter in add {
            self.ticket += 1;
            tickets.push((waiter.lease, self.ticket));
            self.replicas.insert(waiter.lease, replica);
            session.queue.push(Waiter { ticket: Some(self.ticket), ..waiter });
        }
        if session.latest.is_none() && session.queue.is_empty() {
            self.sessions.remove(&key);
        }
    }

    /// Notifies all replicas but the one that made the change.
    fn notify(&mut self, replica: u64, notice: &Notice) {
        let hint = match notice {
            Notice::Handed(lease) => Hint::Handed(*lease),
            Notice::TakenOver(lease) => Hint::TakenOver(*lease),
            Notice::Session(key) => Hint::Session(key.lock_key()),
            Notice::Forgotten(request) => Hint::Forgotten(*request),
        };
        // A hint may be lost.
        let others = self.hints.iter().filter(|(other, _)| **other != replica);
        for (_, sender) in others {
            let _ = sender.try_send(hint);
        }
    }

    fn fence(&self, now: Timestamp) -> Fence {
        let tokens = self.sessions.values().filter_map(|session| session.latest.as_ref());
        let highest = tokens.map(|latest| latest.token).max().unwrap_or(FencingToken(0));
        Fence { floor: self.floor, highest, now }
    }
}
