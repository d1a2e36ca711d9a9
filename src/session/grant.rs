//! Leases on their way to their holders.
//!
//! A caller may go away at any moment: while its batch runs, while the answer
//! waits for it, or in between. A lease that no caller accepts is given back
//! wherever its answer is dropped, unless another call, on any replica, has carried it
//! on by then. The row says so.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::Measured;
use crate::domain::{Acquire, Lease, LeaseId, SessionKey, StreamId};

type GiveBack = dyn Fn(&SessionKey, LeaseId, StreamId) + Send + Sync;

/// Gives back leases that no caller accepts.
pub(super) struct Grants {
    give_back: Box<GiveBack>,
}

impl Grants {
    pub(super) fn new(
        give_back: impl Fn(&SessionKey, LeaseId, StreamId) + Send + Sync + 'static,
    ) -> Self {
        Self { give_back: Box::new(give_back) }
    }

    /// Gives back a lease that may have been granted, and that no caller was answered.
    pub(super) fn give_back(&self, key: &SessionKey, lease: LeaseId) {
        // No row has this stream, so a call that carried the lease on keeps it.
        (self.give_back)(key, lease, StreamId::random());
    }

    /// Sends a lease that was granted just now on its way.
    pub(super) fn deliver(self: &Arc<Self>, key: &SessionKey, lease: LeaseId) -> Arc<Delivery> {
        self.deliver_to(key, lease, StreamId::random())
    }

    /// Sends a lease on its way to a stream that has taken it over.
    pub(super) fn deliver_to(
        self: &Arc<Self>,
        key: &SessionKey,
        lease: LeaseId,
        stream: StreamId,
    ) -> Arc<Delivery> {
        let (key, grants) = (key.clone(), Arc::clone(self));
        Arc::new(Delivery { key, lease, stream, accepted: AtomicBool::new(false), grants })
    }
}

/// Takes a lease.
pub(super) struct AcquireCall {
    pub(super) acquire: Acquire,
    pub(super) grants: Arc<Grants>,
    /// Whether its latest run was not decided: that run, or one before, may have been granted the
    /// lease all the same, and its answer lost.
    is_in_doubt: AtomicBool,
}

impl AcquireCall {
    pub(super) fn new(acquire: Acquire, grants: &Arc<Grants>) -> Self {
        Self { acquire, grants: Arc::clone(grants), is_in_doubt: AtomicBool::new(false) }
    }

    /// Notes whether a run of it was decided.
    pub(super) fn ran(&self, is_decided: bool) {
        self.is_in_doubt.store(!is_decided, Ordering::Relaxed);
    }
}

impl Drop for AcquireCall {
    fn drop(&mut self) {
        if *self.is_in_doubt.get_mut() {
            // Its caller has gone.
            self.grants.give_back(&self.acquire.key, self.acquire.lease.id());
        }
    }
}

/// A lease, on its way to the callers of one batch whose request it
/// answers. If the last of them has gone and none has accepted it, it is given
/// back.
pub(super) struct Delivery {
    key: SessionKey,
    lease: LeaseId,
    stream: StreamId,
    accepted: AtomicBool,
    grants: Arc<Grants>,
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if !*self.accepted.get_mut() {
            (self.grants.give_back)(&self.key, self.lease, self.stream);
        }
    }
}

/// A lease that its caller has yet to accept.
pub struct Grant {
    lease: Measured<Lease>,
    fresh: bool,
    /// None where it is another's to give it back.
    delivery: Option<Arc<Delivery>>,
}

impl Grant {
    pub(super) const fn new(
        lease: Measured<Lease>,
        fresh: bool,
        delivery: Option<Arc<Delivery>>,
    ) -> Self {
        Self { lease, fresh, delivery }
    }

    /// The lease.
    #[must_use]
    pub const fn lease(&self) -> &Measured<Lease> {
        &self.lease
    }

    /// Whether it was granted just now, rather than found by a repetition.
    #[must_use]
    pub const fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// The lease is on its way to its holder, and no longer given back.
    #[must_use]
    pub fn accept(self) -> Measured<Lease> {
        if let Some(delivery) = &self.delivery {
            delivery.accepted.store(true, Ordering::Relaxed);
        }
        self.lease
    }
}
