//! Turns on their way to those who asked for them.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::time::Instant;

use super::ops::Turning;
use crate::{
    domain::{Claim, Ending, Finish, Lease, TurnId},
    session,
};

/// A turn, as its holder knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Names it.
    pub id: TurnId,
    /// The event.
    pub claim: Claim,
    /// The session's lease, where there is one.
    pub lease: Option<Lease>,
}

/// A turn that its caller has yet to accept. Dropped before, it is as if it had never
/// been; unless the caller has asked again by then, with the same request id.
pub struct Grant {
    pub(super) turn: Turn,
    /// When it was asked for, or later: claim and lease run from then at the earliest.
    pub(super) asked: Instant,
    /// None where an earlier answer granted it.
    pub(super) delivery: Option<Arc<Delivery>>,
    /// Of a lease that was waited for.
    pub(super) lease: Option<session::Grant>,
}

impl Grant {
    /// The turn is on its way to its holder, and no longer given up.
    #[must_use]
    pub fn accept(self) -> Turn {
        if let Some(delivery) = &self.delivery {
            delivery.accepted.store(true, Ordering::Relaxed);
        }
        if let Some(lease) = self.lease {
            let _ = lease.accept();
        }
        self.turn
    }
}

/// A turn that was granted just now, on its way to the callers of one batch whose
/// request it answers. If the last of them has gone and none has accepted it, it is
/// given up.
pub(super) struct Delivery {
    turn: TurnId,
    lanes: Arc<Turning>,
    accepted: AtomicBool,
}

impl Delivery {
    pub(super) fn new(turn: TurnId, lanes: &Arc<Turning>) -> Arc<Self> {
        Arc::new(Self { turn, lanes: Arc::clone(lanes), accepted: AtomicBool::new(false) })
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if *self.accepted.get_mut() {
            return;
        }
        let finish = Finish { turn: self.turn.clone(), ending: Ending::Abandoned };
        if self.lanes.finish(finish).is_err() {
            // It ends with its TTL, as a crashed holder's does.
            tracing::warn!("no room to give up the turn of a caller that went away");
        }
    }
}
