//! Turns on their way to their callers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{runtime::Handle, time::sleep};

use super::lane_ops::TurnLanes;
use crate::{
    domain::{Begin, Claim, Finish, FinishAs, Lease, Obtained, StreamId, Timestamp, TurnId},
    session::{self, Measured},
};

/// A turn, as its holder knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Names it.
    pub id: TurnId,
    /// The event.
    pub claim: Measured<Claim>,
    /// The session's lease, where there is one.
    pub lease: Option<Measured<Lease>>,
}

/// A turn that its caller has yet to accept. Dropped before, it is as if it had never
/// been; unless the caller has asked again by then, with the same request id.
pub struct Grant {
    pub(super) turn: Turn,
    /// Whether it was granted just now, rather than found by a repetition.
    pub(super) fresh: bool,
    /// None where it is another's to give it up.
    pub(super) delivery: Option<Arc<Delivery>>,
    /// Of a lease that was waited for.
    pub(super) lease: Option<session::Grant>,
}

impl Grant {
    /// Whether it was granted just now, rather than found by a repetition.
    pub(super) const fn is_fresh(&self) -> bool {
        self.fresh
    }

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

/// What becomes of a turn that no caller accepts.
pub(super) enum Unaccepted {
    /// No other call has it, claimed at this time: it is given up.
    Abandoned(Timestamp),
    /// This stream took it over and has broken: it fails after the grace.
    Broken(StreamId, Duration),
}

impl Unaccepted {
    /// None if another call has the turn and ends it.
    pub(super) fn of(begin: &Begin, claim: &Claim, obtained: Obtained) -> Option<Self> {
        if obtained.is_new() {
            return Some(Self::Abandoned(claim.claim_time));
        }
        let stream = obtained.taken_over(begin.stream)?;
        Some(Self::Broken(stream, begin.grace))
    }
}

/// A turn on its way to the callers of one batch whose request it answers. If the last of
/// them has gone and none has accepted it, it ends.
pub(super) struct Delivery {
    turn: TurnId,
    unaccepted: Unaccepted,
    lanes: Arc<TurnLanes>,
    accepted: AtomicBool,
}

impl Delivery {
    pub(super) fn new(turn: TurnId, unaccepted: Unaccepted, lanes: &Arc<TurnLanes>) -> Arc<Self> {
        let (lanes, accepted) = (Arc::clone(lanes), AtomicBool::new(false));
        Arc::new(Self { turn, unaccepted, lanes, accepted })
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if *self.accepted.get_mut() {
            return;
        }
        let turn = self.turn.clone();
        match self.unaccepted {
            Unaccepted::Abandoned(claim_time) => {
                // No row has this stream, so a call that carried the turn on keeps it.
                let unless_resumed = Some(StreamId::random());
                let ending = FinishAs::Abandoned(claim_time);
                self.lanes.post(Finish::new(turn, ending, unless_resumed));
            }
            Unaccepted::Broken(stream, grace) => {
                let (lanes, unless_resumed) = (Arc::clone(&self.lanes), Some(stream));
                // Without a runtime, as the server has ended, or without a place among the
                // calls that hold, the turn ends with its TTL.
                let Ok(runtime) = Handle::try_current() else { return };
                let team = &turn.event.team;
                let Ok(place) = lanes.sessions.count_in(team) else { return };
                runtime.spawn(async move {
                    let _place = place;
                    tokio::select! {
                        biased;
                        () = lanes.sessions.stopping() => {}
                        () = sleep(grace) => {
                            lanes.post(Finish::new(turn, FinishAs::Broken, unless_resumed));
                        }
                    }
                });
            }
        }
    }
}
