//! Leases on their way to their holders.
//!
//! A caller may go away at any moment: while its batch runs, while the answer
//! waits for it, or in between. A grant that nobody accepts gives its lease
//! back when it is dropped, wherever that happens.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::queue::Queues;
use crate::{
    domain::{Lease, LeaseId, SessionKey},
    lane::{Executes, Lane, Op},
    store::{Connection, Release, StoreError, Verdict},
};

/// Gives a lease back, and tells the queue.
pub(super) struct GiveBack {
    pub(super) release: Release,
    pub(super) queues: Arc<Queues>,
}

impl Op for GiveBack {
    type Key<'a> = (&'a SessionKey, LeaseId);
    type Row = bool;
    type Answer = bool;

    fn key(&self) -> (&SessionKey, LeaseId) {
        (&self.release.key, self.release.lease)
    }

    fn answer(&self, released: &bool) -> Verdict<bool> {
        if *released {
            self.queues.freed(&self.release.key);
        }
        Verdict::Decided(*released)
    }
}

impl<S: Connection> Executes<GiveBack> for S {
    async fn execute(&mut self, ops: &[&GiveBack]) -> Result<Vec<Verdict<bool>>, StoreError> {
        let asked: Vec<&Release> = ops.iter().map(|op| &op.release).collect();
        self.release(&asked).await
    }
}

/// Leases granted here that no caller has accepted yet.
pub(super) struct Grants {
    /// How many answers carry each: callers with one request id share a lease.
    pending: Mutex<HashMap<LeaseId, usize>>,
    releases: Lane<GiveBack>,
    queues: Arc<Queues>,
}

impl Grants {
    pub(super) fn new(releases: Lane<GiveBack>, queues: Arc<Queues>) -> Self {
        Self { pending: Mutex::default(), releases, queues }
    }

    /// A lease for one caller. A `fresh` one is its caller's to accept; one that
    /// was found belongs to an earlier answer, unless that is still pending.
    pub(super) fn grant(self: &Arc<Self>, key: &SessionKey, lease: Lease, fresh: bool) -> Grant {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if fresh {
            pending.entry(lease.id).or_insert(0);
        }
        let guard = pending.get_mut(&lease.id).map(|answers| {
            *answers += 1;
            Guard { key: key.clone(), lease: lease.id, grants: Arc::clone(self) }
        });
        Grant { lease, guard }
    }
}

/// A lease that its caller has yet to accept.
pub struct Grant {
    lease: Lease,
    guard: Option<Guard>,
}

impl Grant {
    /// A lease that stays with its caller even if it goes away now.
    pub(super) fn found(lease: Lease) -> Self {
        Self { lease, guard: None }
    }

    /// The lease is on its way to its holder, and no longer given back.
    #[must_use]
    pub fn accept(self) -> Lease {
        if let Some(guard) = &self.guard {
            let mut pending = guard.grants.pending.lock().unwrap_or_else(PoisonError::into_inner);
            pending.remove(&guard.lease);
        }
        self.lease
    }
}

struct Guard {
    key: SessionKey,
    lease: LeaseId,
    grants: Arc<Grants>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut pending = self.grants.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(answers) = pending.get_mut(&self.lease) else {
            return;
        };
        *answers -= 1;
        if *answers > 0 {
            return;
        }
        pending.remove(&self.lease);
        drop(pending);
        let release = Release { key: self.key.clone(), lease: self.lease };
        let queues = Arc::clone(&self.grants.queues);
        if self.grants.releases.post(GiveBack { release, queues }).is_err() {
            // It ends with its TTL, as a crashed holder's does.
            tracing::warn!("no room to give back the lease of a caller that went away");
        }
    }
}
