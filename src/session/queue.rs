//! The waiters of this replica, by session. The store decides who is next over all replicas. The
//! first waiter of a session on this replica polls for all of them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::time::Instant;

use super::{Measured, SessionError, grant::Grants, lane_ops::SessionCall, streams::Streams};
use crate::{
    domain::{Held, LeaseId, SessionKey, SessionRow, limits::MAX_WAITERS_PER_SESSION},
    lane::Lanes,
    store::Hint,
    telemetry::{Metrics, ShedMetrics},
};

mod places;
mod ticket;
mod waiter;

pub(crate) use places::PlaceTaken;
use places::Places;
pub(super) use ticket::QueueTicket;
pub(super) use waiter::WaiterEvent;
use waiter::WaiterSlot;

/// The queues of all sessions; an empty one takes no room.
pub(super) struct Queues {
    by_session: Mutex<BTreeMap<SessionKey, Queue>>,
    waiters: Gauge,
    /// Callers that find no place.
    shed: ShedMetrics,
    /// How many wait, by team.
    waiting: Arc<Places>,
    /// The calls that wait in order to hold, or hold, by team.
    holding: Arc<Places>,
    /// The waiters, by the lease that each is to be given.
    slots: Mutex<HashMap<LeaseId, Arc<WaiterSlot>>>,
    /// Waiters that have left, until the store knows.
    leaving: Mutex<HashSet<LeaseId>>,
    /// The streams of this replica, which report how many wait.
    streams: Streams,
    /// How many tickets there have been.
    joined: AtomicU64,
}

#[derive(Default)]
struct Queue {
    /// The waiters here, by ticket and lease: a call that takes a place over has the ticket of
    /// the earlier one, which may not have left yet.
    tickets: BTreeMap<(i64, LeaseId), Arc<WaiterSlot>>,
    /// How many callers have a place here, or are about to have one.
    places: usize,
    /// All waiters of all replicas, first to last, as far as is known.
    order: Vec<LeaseId>,
    /// A row that was read before then is stale.
    as_of: Option<Instant>,
    /// Who held the session when its row was read last.
    seen: Option<Measured<Held>>,
}

impl Queue {
    /// A waiter has left or come: positions may have changed.
    fn moved(&mut self, now: Instant) {
        self.as_of = Some(now);
        self.tickets.values().for_each(|slot| slot.notify_moved());
    }
}

impl Queues {
    /// Queues of at most `most` callers that wait, and as many that hold by a call, of all sessions
    /// together: they must not use up the calls that marks and releases need.
    pub(super) fn new(most: usize, metrics: &Metrics, streams: Streams) -> Self {
        Self {
            by_session: Mutex::default(),
            waiters: metrics.waiters.clone(),
            shed: metrics.shed.clone(),
            waiting: Arc::new(Places::new(most)),
            holding: Arc::new(Places::new(most)),
            slots: Mutex::default(),
            leaving: Mutex::default(),
            streams,
            joined: AtomicU64::new(0),
        }
    }

    /// Whether no caller waits.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Who held a session when its row was read last, if a caller waits for it here.
    pub(super) fn seen(&self, key: &SessionKey) -> Option<Measured<Held>> {
        self.lock().get(key)?.seen.clone()
    }

    /// A statement that began at `asked` found that a session was handed on: passes its row to the
    /// new holder, if that waits here.
    pub(super) fn deliver(&self, row: SessionRow, asked: Instant) {
        let slot = locked(&self.slots).get(&row.lease.id).map(Arc::clone);
        if let Some(slot) = slot.filter(|_| row.live) {
            slot.notify(WaiterEvent::Given(row, asked));
        }
    }

    /// Follows a hint of another replica.
    pub(super) fn follow(&self, hint: Hint) {
        match hint {
            Hint::Handed(lease) => {
                if let Some(slot) = locked(&self.slots).get(&lease) {
                    slot.notify(WaiterEvent::Heard);
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
            slot.notify(WaiterEvent::Lost);
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
                if slot.was_stored_before(asked) {
                    slot.notify(WaiterEvent::Lost);
                }
            }
        }
        let slots = locked(&self.slots);
        let leaving = locked(&self.leaving);
        let has_no_caller =
            |lease: &LeaseId| !slots.contains_key(lease) && !leaving.contains(lease);
        places.into_iter().filter(|(_, lease)| has_no_caller(lease)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SessionKey, Queue>> {
        locked(&self.by_session)
    }

    /// Whether a caller still waits for a lease.
    pub(super) fn is_wanted(&self, lease: LeaseId) -> bool {
        locked(&self.slots).contains_key(&lease)
    }

    /// Counts a call of a team in that holds a lease for as long as it lives.
    ///
    /// # Errors
    /// [`SessionError::TooManyCalls`], [`SessionError::TooManyOfTeam`].
    pub(super) fn hold(&self, team: &str) -> Result<PlaceTaken, SessionError> {
        self.holding.take(team).inspect_err(|_| {
            self.shed.streams.inc();
        })
    }

    /// The error of a caller that the queue of its session has no place for.
    pub(super) fn refuse_waiter(&self, error: SessionError) -> SessionError {
        self.shed.waiters.inc();
        error
    }

    /// Adds a waiter that is to be given `lease`.
    ///
    /// # Errors
    /// [`SessionError::QueueFull`], [`SessionError::TooManyCalls`],
    /// [`SessionError::TooManyOfTeam`].
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
            return Err(self.refuse_waiter(SessionError::QueueFull));
        }
        let place = self.waiting.take(&key.team).map_err(|error| self.refuse_waiter(error))?;
        let queue = queues.entry(key.clone()).or_default();
        queue.places += 1;
        self.waiters.inc();
        let slot = Arc::<WaiterSlot>::default();
        locked(&self.slots).insert(lease, Arc::clone(&slot));
        Ok(QueueTicket::new(key.clone(), lease, place, slot, self, lanes, grants))
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
