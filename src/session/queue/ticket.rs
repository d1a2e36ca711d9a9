//! A place in a queue, as the call that waits has it.

use std::sync::{Arc, atomic::Ordering};

use tokio::time::Instant;

use super::{
    PlaceTaken, Queues, locked,
    waiter::{WaiterEvent, WaiterSlot},
};
use crate::{
    domain::{Lease, LeaseId, SessionKey},
    lane::Lanes,
    session::{
        Measured,
        grant::{Grant, Grants},
        lane_ops::{LeaveCall, SessionCall},
    },
};

/// A place in a queue. Dropping it leaves the queue, and gives back the lease, if it
/// has been given by then.
pub(in crate::session) struct QueueTicket {
    key: SessionKey,
    lease: LeaseId,
    _place: PlaceTaken,
    /// Rises with each place.
    number: u64,
    ticket: Option<i64>,
    /// Whether the store may have it in its queue, or have given the lease.
    may_be_stored: bool,
    /// Whether no call of the same request is known to be newer.
    pub(in crate::session) is_newest: bool,
    /// Whether it is kept, once it is left, for a call that repeats the request.
    is_kept: bool,
    slot: Arc<WaiterSlot>,
    queues: Arc<Queues>,
    lanes: Lanes<SessionCall>,
    grants: Arc<Grants>,
}

impl QueueTicket {
    /// A ticket of which the store knows nothing yet.
    pub(super) fn new(
        key: SessionKey,
        lease: LeaseId,
        place: PlaceTaken,
        slot: Arc<WaiterSlot>,
        queues: &Arc<Queues>,
        lanes: &Lanes<SessionCall>,
        grants: &Arc<Grants>,
    ) -> Self {
        Self {
            key,
            lease,
            _place: place,
            number: queues.joined.fetch_add(1, Ordering::Relaxed),
            ticket: None,
            may_be_stored: true,
            is_newest: true,
            is_kept: false,
            slot,
            queues: Arc::clone(queues),
            lanes: lanes.clone(),
            grants: Arc::clone(grants),
        }
    }

    /// The store has it in its queue: at the end, or where an earlier call was.
    pub(in crate::session) fn stand(&mut self, ticket: i64, is_last: bool) {
        self.ticket = Some(ticket);
        self.slot.stored();
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
    pub(in crate::session) const fn lease(&self) -> LeaseId {
        self.lease
    }

    /// Rises with each place that was joined.
    pub(in crate::session) const fn number(&self) -> u64 {
        self.number
    }

    /// The server ends the wait: it is kept for a call that repeats the request.
    pub(in crate::session) fn keep(&mut self) {
        self.is_kept = true;
    }

    /// The store does not have it.
    pub(in crate::session) fn forget(mut self) {
        self.may_be_stored = false;
    }

    /// The lease has come, and is on its way to the caller.
    pub(in crate::session) fn redeem(mut self, lease: Lease, asked: Instant) -> Grant {
        self.may_be_stored = false;
        let delivery = self.grants.deliver(&self.key, self.lease);
        Grant::new(Measured::new(lease, asked), true, Some(delivery))
    }

    /// Whether it is the first on this replica.
    pub(in crate::session) fn is_first(&self) -> bool {
        let own = self.ticket.map(|ticket| (ticket, self.lease));
        let queues = self.queues.lock();
        let first = queues.get(&self.key).map(|queue| queue.tickets.first_key_value());
        first.is_none_or(|first| first.map(|(place, _)| place) == own.as_ref())
    }

    /// Which it is among those of all replicas, from 1, as far as is known.
    pub(in crate::session) fn position(&self) -> Option<usize> {
        let queues = self.queues.lock();
        let order = &queues.get(&self.key)?.order;
        order.iter().position(|lease| *lease == self.lease).map(|before| before + 1)
    }

    /// Waits until positions may have changed.
    pub(in crate::session) async fn moved(&self) {
        self.slot.moved().await;
    }

    /// Waits for an event.
    pub(in crate::session) async fn event(&self) -> WaiterEvent {
        self.slot.event().await
    }
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
