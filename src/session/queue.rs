//! The waiters of this replica, by session. The store decides who is next over all replicas. The
//! first waiter of a session on this replica polls for all of them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::{sync::Notify, time::Instant};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use super::{
    Measured, SessionError,
    grant::{Grant, Grants},
    lane_ops::{LeaveCall, SessionCall},
    streams::Streams,
};
use crate::{
    domain::{Held, Lease, LeaseId, SessionKey, SessionRow, limits::MAX_WAITERS_PER_SESSION},
    lane::Lanes,
    store::Hint,
};

/// The queues of all sessions; an empty one takes no room.
pub(super) struct Queues {
    by_session: Mutex<BTreeMap<SessionKey, Queue>>,
    /// The most that wait, or hold by a call, of all sessions together: they must not
    /// use up the calls that marks and releases need.
    most: i64,
    waiters: Gauge,
    /// The calls that wait in order to hold, or hold.
    holders: TaskTracker,
    /// Those who wait, by the lease that each is to be given.
    slots: Mutex<HashMap<LeaseId, Arc<WaiterSlot>>>,
    /// Those who have left, until the store knows.
    leaving: Mutex<HashSet<LeaseId>>,
    /// The streams of this replica, which report how many wait.
    streams: Streams,
    /// How many places there have been.
    joined: AtomicU64,
}

/// Passes events to one waiter.
#[derive(Default)]
struct WaiterSlot {
    state: Mutex<State>,
    news: Notify,
    /// Positions may have changed.
    moved: Notify,
}

#[derive(Default)]
struct State {
    /// When the store had the place in its queue; none before.
    since: Option<Instant>,
    news: Option<WaiterEvent>,
}

/// An event for a waiter.
pub(super) enum WaiterEvent {
    /// The lease has come: its row, read by a statement that began then.
    Given(SessionRow, Instant),
    /// Another replica says that the lease has come.
    Heard,
    /// The store has the place no more.
    Lost,
}

impl WaiterSlot {
    fn tell(&self, news: WaiterEvent) {
        let mut state = locked(&self.state);
        // What is known is not given up for a hint.
        if !matches!(state.news, Some(WaiterEvent::Given(..))) {
            state.news = Some(news);
            self.news.notify_one();
        }
    }
}

#[derive(Default)]
struct Queue {
    /// Those who wait here, by ticket and lease: a call that takes a place over has the ticket of
    /// the earlier one, which may not have left yet.
    tickets: BTreeMap<(i64, LeaseId), Arc<WaiterSlot>>,
    /// Those who have a place here, or are about to have one.
    places: usize,
    /// All who wait, first to last, as far as is known.
    order: Vec<LeaseId>,
    /// What was read before is not news.
    as_of: Option<Instant>,
    /// Who held the session when its row was read last.
    seen: Option<Measured<Held>>,
}

impl Queue {
    /// Somebody has left, or come: positions may have changed.
    fn moved(&mut self, now: Instant) {
        self.as_of = Some(now);
        self.tickets.values().for_each(|slot| slot.moved.notify_one());
    }
}

impl Queues {
    pub(super) fn new(most: usize, waiters: Gauge, streams: Streams) -> Self {
        Self {
            by_session: Mutex::default(),
            most: i64::try_from(most).unwrap_or(i64::MAX),
            waiters,
            holders: TaskTracker::new(),
            slots: Mutex::default(),
            leaving: Mutex::default(),
            streams,
            joined: AtomicU64::new(0),
        }
    }

    /// Whether anybody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Who held a session when its row was read last, if anybody waits for it here.
    pub(super) fn seen(&self, key: &SessionKey) -> Option<Measured<Held>> {
        self.lock().get(key)?.seen.clone()
    }

    /// A session went to somebody, as a statement found that began at `asked`: gives
    /// them its row, if they wait here.
    pub(super) fn deliver(&self, row: SessionRow, asked: Instant) {
        let slot = locked(&self.slots).get(&row.lease.id).map(Arc::clone);
        if let Some(slot) = slot.filter(|_| row.live) {
            slot.tell(WaiterEvent::Given(row, asked));
        }
    }

    /// Follows a hint of another replica.
    pub(super) fn follow(&self, hint: Hint) {
        match hint {
            Hint::Handed(lease) => {
                if let Some(slot) = locked(&self.slots).get(&lease) {
                    slot.tell(WaiterEvent::Heard);
                }
            }
            Hint::TakenOver(lease) => self.taken_over(lease),
            Hint::Session(lock_key) => self.streams.lock_key_changed(lock_key),
            Hint::Forgotten(request) => self.streams.turn_changed(request),
            Hint::Any => self.streams.all_changed(),
        }
    }

    /// A newer call may have taken over the place that was to end in `lease`.
    pub(super) fn taken_over(&self, lease: LeaseId) {
        if let Some(slot) = locked(&self.slots).get(&lease) {
            slot.tell(WaiterEvent::Lost);
        }
    }

    /// A session's row was read by a statement that began at `asked`: informs the waiters that it
    /// concerns.
    pub(super) fn saw(&self, key: &SessionKey, row: &SessionRow, asked: Instant) {
        self.deliver(row.clone(), asked);
        let mut queues = self.lock();
        let Some(queue) = queues.get_mut(key) else { return };
        if queue.seen.as_ref().is_none_or(|seen| seen.asked < asked) {
            queue.seen = Some(Measured::new(row.held(), asked));
        }
        let leaving = locked(&self.leaving);
        let order: Vec<_> =
            row.queue.iter().copied().filter(|lease| !leaving.contains(lease)).collect();
        if queue.as_of.is_none_or(|as_of| as_of < asked) && queue.order != order {
            queue.order = order;
            queue.moved(asked);
        }
    }

    /// Whether the store has the place is for a heartbeat to find out.
    pub(super) fn forget_leaving(&self, lease: LeaseId) {
        locked(&self.leaving).remove(&lease);
    }

    /// The store does not have the place any more.
    pub(super) fn left(&self, key: &SessionKey, lease: LeaseId) {
        if locked(&self.leaving).remove(&lease)
            && let Some(queue) = self.lock().get_mut(key)
        {
            queue.as_of = Some(Instant::now());
        }
        self.streams.session_changed(key);
    }

    /// The store had these places of this replica's waiters, by a statement that began at `asked`.
    /// Informs waiters whose place is missing, and returns the places whose callers have gone.
    pub(super) fn compare(
        &self,
        places: Vec<(SessionKey, LeaseId)>,
        asked: Instant,
    ) -> Vec<(SessionKey, LeaseId)> {
        let kept: HashSet<LeaseId> = places.iter().map(|&(_, lease)| lease).collect();
        for queue in self.lock().values() {
            let lost = queue.tickets.iter().filter(|((_, lease), _)| !kept.contains(lease));
            for (_, slot) in lost {
                let since = locked(&slot.state).since;
                if since.is_some_and(|since| since < asked) {
                    slot.tell(WaiterEvent::Lost);
                }
            }
        }
        let slots = locked(&self.slots);
        let leaving = locked(&self.leaving);
        let is_nobodys = |lease: &LeaseId| !slots.contains_key(lease) && !leaving.contains(lease);
        places.into_iter().filter(|(_, lease)| is_nobodys(lease)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SessionKey, Queue>> {
        locked(&self.by_session)
    }

    /// Whether somebody still waits for a lease.
    pub(super) fn is_wanted(&self, lease: LeaseId) -> bool {
        locked(&self.slots).contains_key(&lease)
    }

    /// Counts a call in that holds a lease for as long as it lives; none when there
    /// are too many.
    pub(super) fn hold(&self) -> Option<TaskTrackerToken> {
        let count = i64::try_from(self.holders.len()).unwrap_or(i64::MAX);
        (count < self.most).then(|| self.holders.token())
    }

    /// Makes room for somebody who is to be given `lease`; none where there is none.
    pub(super) fn join(
        self: &Arc<Self>,
        key: &SessionKey,
        lease: LeaseId,
        lanes: &Lanes<SessionCall>,
        grants: &Arc<Grants>,
    ) -> Result<QueueTicket, SessionError> {
        let mut queues = self.lock();
        let length = queues.get(key).map_or(0, |queue| queue.places);
        if length >= MAX_WAITERS_PER_SESSION {
            return Err(SessionError::QueueFull);
        }
        if self.waiters.get() >= self.most {
            return Err(SessionError::TooManyCalls);
        }
        let queue = queues.entry(key.clone()).or_default();
        queue.places += 1;
        self.waiters.inc();
        let slot = Arc::<WaiterSlot>::default();
        locked(&self.slots).insert(lease, Arc::clone(&slot));
        Ok(QueueTicket {
            key: key.clone(),
            lease,
            number: self.joined.fetch_add(1, Ordering::Relaxed),
            ticket: None,
            may_be_stored: true,
            takes_over: true,
            is_kept: false,
            slot,
            queues: Arc::clone(self),
            lanes: lanes.clone(),
            grants: Arc::clone(grants),
        })
    }
}

/// A place in a queue. Dropping it leaves the queue, and gives back the lease, if it
/// has been given by then.
pub(super) struct QueueTicket {
    key: SessionKey,
    lease: LeaseId,
    /// Rises with each place.
    number: u64,
    ticket: Option<i64>,
    /// Whether the store may have it in its queue, or have given the lease.
    may_be_stored: bool,
    /// Whether it may be that of an earlier call. Otherwise a newer one has that.
    pub(super) takes_over: bool,
    /// Whether it is kept, once it is left, for a call that repeats the request.
    is_kept: bool,
    slot: Arc<WaiterSlot>,
    queues: Arc<Queues>,
    lanes: Lanes<SessionCall>,
    grants: Arc<Grants>,
}

impl QueueTicket {
    /// The store has it in its queue: at the end, or where an earlier call was.
    pub(super) fn stand(&mut self, ticket: i64, is_last: bool) {
        self.ticket = Some(ticket);
        locked(&self.slot.state).since = Some(Instant::now());
        if let Some(queue) = self.queues.lock().get_mut(&self.key) {
            queue.tickets.insert((ticket, self.lease), Arc::clone(&self.slot));
            if is_last && !queue.order.contains(&self.lease) {
                queue.order.push(self.lease);
            }
            queue.moved(Instant::now());
        }
        self.queues.streams.session_changed(&self.key);
    }

    /// The lease that it is to end in.
    pub(super) const fn lease(&self) -> LeaseId {
        self.lease
    }

    /// Rises with each place that was joined.
    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    /// The server ends the wait: it is kept for a call that repeats the request.
    pub(super) fn keep(&mut self) {
        self.is_kept = true;
    }

    /// The store does not have it.
    pub(super) fn forget(mut self) {
        self.may_be_stored = false;
    }

    /// The lease has come: it is on its way to the one who waited.
    pub(super) fn redeem(mut self, lease: Lease, asked: Instant) -> Grant {
        self.may_be_stored = false;
        let delivery = self.grants.deliver(&self.key, self.lease);
        Grant::new(Measured::new(lease, asked), true, Some(delivery))
    }

    /// Whether it is the first on this replica.
    pub(super) fn is_first(&self) -> bool {
        let own = self.ticket.map(|ticket| (ticket, self.lease));
        let queues = self.queues.lock();
        let first = queues.get(&self.key).map(|queue| queue.tickets.first_key_value());
        first.is_none_or(|first| first.map(|(place, _)| place) == own.as_ref())
    }

    /// Which it is among those of all replicas, from 1, as far as is known.
    pub(super) fn position(&self) -> Option<usize> {
        let queues = self.queues.lock();
        let order = &queues.get(&self.key)?.order;
        order.iter().position(|lease| *lease == self.lease).map(|before| before + 1)
    }

    /// Waits until positions may have changed.
    pub(super) async fn moved(&self) {
        self.slot.moved.notified().await;
    }

    /// Waits for news.
    pub(super) async fn news(&self) -> WaiterEvent {
        loop {
            if let Some(news) = locked(&self.slot.state).news.take() {
                return news;
            }
            self.slot.news.notified().await;
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for QueueTicket {
    fn drop(&mut self) {
        if self.may_be_stored {
            locked(&self.queues.leaving).insert(self.lease);
        }
        locked(&self.queues.slots).remove(&self.lease);
        let mut queues = self.queues.lock();
        self.queues.waiters.dec();
        if let Some(queue) = queues.get_mut(&self.key) {
            if let Some(ticket) = self.ticket {
                queue.tickets.remove(&(ticket, self.lease));
            }
            queue.order.retain(|lease| *lease != self.lease);
            queue.places -= 1;
            if queue.places == 0 {
                queues.remove(&self.key);
            } else {
                queue.moved(Instant::now());
            }
        }
        drop(queues);
        if self.may_be_stored {
            let (key, lease, queues) = (self.key.clone(), self.lease, Arc::clone(&self.queues));
            let (keep, grants) = (self.is_kept, Some(Arc::clone(&self.grants)));
            let lane = self.lanes.of(key.shard());
            let call = LeaveCall { key, lease, keep, queues, grants };
            if lane.post(SessionCall::Leave(call)).is_err() {
                self.queues.left(&self.key, lease);
                tracing::warn!(
                    "lane is full; the next heartbeat removes a departed waiter from its queue"
                );
            }
        }
    }
}
