//! Leases on their way to their holders.
//!
//! A caller may go away at any moment: while its batch runs, while the answer
//! waits for it, or in between. A lease that nobody accepts is given back,
//! wherever its answer is dropped; unless a repetition of the same request has
//! been told of it by then, on whichever replica. That is for the row to say.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::time::Instant;

use crate::domain::{Lease, LeaseId, SessionKey};

type GiveBack = dyn Fn(&SessionKey, LeaseId) + Send + Sync;

/// Where leases that nobody accepts go.
pub(super) struct Grants {
    give_back: Box<GiveBack>,
}

impl Grants {
    pub(super) fn new(give_back: impl Fn(&SessionKey, LeaseId) + Send + Sync + 'static) -> Self {
        Self { give_back: Box::new(give_back) }
    }

    /// Gives back a lease that may have been granted.
    pub(super) fn give_back(&self, key: &SessionKey, lease: LeaseId) {
        (self.give_back)(key, lease);
    }

    /// Sends a lease that was granted just now on its way.
    pub(super) fn deliver(self: &Arc<Self>, key: &SessionKey, lease: LeaseId) -> Arc<Delivery> {
        let accepted = AtomicBool::new(false);
        Arc::new(Delivery { key: key.clone(), lease, accepted, grants: Arc::clone(self) })
    }
}

/// A fresh lease, on its way to the callers of one batch whose request it
/// answers. If the last of them has gone and none has accepted it, it is given
/// back.
pub(super) struct Delivery {
    key: SessionKey,
    lease: LeaseId,
    accepted: AtomicBool,
    grants: Arc<Grants>,
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if !*self.accepted.get_mut() {
            self.grants.give_back(&self.key, self.lease);
        }
    }
}

/// A lease that its caller has yet to accept.
pub struct Grant {
    lease: Lease,
    /// When it was asked for, or later: it runs from then at the earliest.
    pub(crate) asked: Instant,
    /// None where an earlier answer granted it.
    delivery: Option<Arc<Delivery>>,
}

impl Grant {
    pub(super) fn new(lease: Lease, delivery: Option<Arc<Delivery>>) -> Self {
        Self { lease, asked: Instant::now(), delivery }
    }

    /// The same, asked for at `asked`.
    pub(super) fn asked_at(self, asked: Instant) -> Self {
        Self { asked, ..self }
    }

    /// The lease.
    #[must_use]
    pub const fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Whether it was granted just now, rather than found by a repetition.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.delivery.is_some()
    }

    /// The lease is on its way to its holder, and no longer given back.
    #[must_use]
    pub fn accept(self) -> Lease {
        if let Some(delivery) = &self.delivery {
            delivery.accepted.store(true, Ordering::Relaxed);
        }
        self.lease
    }
}
