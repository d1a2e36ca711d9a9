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

use super::queue::Queues;
use crate::{
    domain::{Lease, LeaseId, SessionKey},
    lane::{Executes, Lanes, Op},
    store::{Connection, Release, StoreError, Verdict},
};

/// Gives a lease back, and tells the queue.
pub(super) struct GiveBack {
    pub(super) release: Release,
    pub(super) queues: Arc<Queues>,
}

impl Op for GiveBack {
    type Key<'a> = (&'a SessionKey, LeaseId);
    type Row = Ended;
    type Answer = bool;

    fn key(&self) -> (&SessionKey, LeaseId) {
        (&self.release.key, self.release.lease)
    }

    fn answer(&self, ended: &Ended) -> Verdict<bool> {
        if ended.released {
            self.queues.freed(&self.release.key);
        } else if ended.unless_repeated && !self.release.unless_repeated {
            // The one who spoke for the group would have spared it.
            return Verdict::Again;
        }
        Verdict::Decided(ended.released)
    }
}

/// Whether a lease has been given back.
pub(super) struct Ended {
    released: bool,
    unless_repeated: bool,
}

impl<S: Connection> Executes<GiveBack> for S {
    async fn execute(&mut self, ops: &[&GiveBack]) -> Result<Vec<Verdict<Ended>>, StoreError> {
        let asked: Vec<&Release> = ops.iter().map(|op| &op.release).collect();
        let verdicts = self.release(&asked).await?.into_iter().zip(asked);
        Ok(verdicts
            .map(|(verdict, &Release { unless_repeated, .. })| match verdict {
                Verdict::Decided(released) => Verdict::Decided(Ended { released, unless_repeated }),
                Verdict::Again => Verdict::Again,
            })
            .collect())
    }
}

/// Where leases that nobody accepts go.
pub(super) struct Grants {
    releases: Lanes<GiveBack>,
    queues: Arc<Queues>,
}

impl Grants {
    pub(super) fn new(releases: Lanes<GiveBack>, queues: Arc<Queues>) -> Self {
        Self { releases, queues }
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
        if *self.accepted.get_mut() {
            return;
        }
        let release = Release { key: self.key.clone(), lease: self.lease, unless_repeated: true };
        let queues = Arc::clone(&self.grants.queues);
        let lane = self.grants.releases.of(self.key.shard());
        if lane.post(GiveBack { release, queues }).is_err() {
            // It ends with its TTL, as a crashed holder's does.
            tracing::warn!("no room to give back the lease of a caller that went away");
        }
    }
}

/// A lease that its caller has yet to accept.
pub struct Grant {
    lease: Lease,
    /// None where an earlier answer granted it.
    delivery: Option<Arc<Delivery>>,
}

impl Grant {
    pub(super) fn new(lease: Lease, delivery: Option<Arc<Delivery>>) -> Self {
        Self { lease, delivery }
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
