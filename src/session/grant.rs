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
use crate::{
    domain::{Acquire, Lease, LeaseId, OwnLease, SessionKey, StreamId},
    store::{StoreError, Verdict},
};

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

/// Notes how the latest run of an operation ended that asks for a lease of its own.
#[derive(Default)]
pub(crate) struct LatestRun {
    is_decided: AtomicBool,
}

impl LatestRun {
    /// A run was answered this.
    pub(crate) fn answered<T>(&self, own: &OwnLease, verdict: &Verdict<T>) {
        if let Verdict::Failed(error) = verdict {
            return self.failed(own, error);
        }
        self.is_decided.store(matches!(verdict, Verdict::Decided(_)), Ordering::Relaxed);
    }

    /// A run failed, with all others of its batch.
    pub(crate) fn failed(&self, own: &OwnLease, error: &StoreError) {
        if matches!(error, StoreError::OutcomeUnknown(_)) {
            own.spend();
        }
        self.is_decided.store(false, Ordering::Relaxed);
    }

    /// Whether the operation, which ends now, may have been granted the lease by a run without an
    /// answer.
    pub(crate) fn may_have_been_granted(&mut self, own: &OwnLease) -> bool {
        own.is_spent() && !*self.is_decided.get_mut()
    }
}

/// Takes a lease.
pub(super) struct AcquireCall {
    pub(super) acquire: Acquire,
    pub(super) grants: Arc<Grants>,
    pub(super) latest_run: LatestRun,
}

impl AcquireCall {
    pub(super) fn new(acquire: Acquire, grants: &Arc<Grants>) -> Self {
        Self { acquire, grants: Arc::clone(grants), latest_run: LatestRun::default() }
    }
}

impl Drop for AcquireCall {
    fn drop(&mut self) {
        if self.latest_run.may_have_been_granted(&self.acquire.lease) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it is known to have no lease once its runs have ended so.
    fn gives_back(runs: &[Verdict<()>], is_spent: bool) -> bool {
        let (own, mut latest) = (OwnLease::random(), LatestRun::default());
        if is_spent {
            own.spend();
        }
        for verdict in runs {
            latest.answered(&own, verdict);
        }
        latest.may_have_been_granted(&own)
    }

    #[test]
    fn an_operation_gives_back_what_no_run_of_it_was_answered() {
        let away = || Verdict::Failed(StoreError::unavailable("away"));
        let unknown = || Verdict::Failed(StoreError::unknown("lost"));
        assert!(!gives_back(&[], false));
        assert!(!gives_back(&[Verdict::Retry, away()], false), "it was granted nothing");
        assert!(gives_back(&[unknown()], false));
        assert!(gives_back(&[unknown(), away()], false), "the later run wrote nothing");
        assert!(gives_back(&[Verdict::Retry, away()], true), "the store has noted it");
        assert!(!gives_back(&[unknown(), Verdict::Decided(())], true));
    }
}
