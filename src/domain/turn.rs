//! A turn: one event, claimed and worked on under one session's lease, and finished
//! together with it.

use std::time::Duration;

use super::{
    Acquire, By, Delivered, EventKey, EventRow, Lease, LeaseId, PayloadDigest, RequestId,
    SessionKey, SessionRow, StreamId, Timestamp, Ttl,
};

/// Asks to begin a turn.
#[derive(Debug, Clone)]
pub struct Begin {
    /// The event.
    pub event: Delivered,
    /// The attempt at it.
    pub request: RequestId,
    /// Who asks.
    pub holder: String,
    /// How long the claim runs.
    pub claim_ttl: Ttl,
    /// How often the event may be claimed in all.
    pub max_attempts: u32,
    /// The session to work on, where there is one: of the event's team.
    pub session: Option<Acquire>,
    /// The stream that is to keep the turn; none for a call that returns.
    pub stream: Option<StreamId>,
    /// How long the turn stays its holder's once that stream has broken.
    pub grace: Duration,
}

impl Begin {
    /// The same, for a turn that `stream` is to keep.
    #[must_use]
    pub fn kept_by(mut self, stream: StreamId) -> Self {
        self.stream = Some(stream);
        if let Some(acquire) = &mut self.session {
            acquire.stream = Some(stream);
        }
        self
    }
}

/// A run's claim to an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The attempt that has it.
    pub request: RequestId,
    /// Who has it.
    pub holder: String,
    /// How many runs have had it, this one included.
    pub attempt: u32,
    /// When it was made.
    pub claim_time: Timestamp,
    /// When it lapses, unless it is renewed or finished.
    pub lapse_time: Timestamp,
    /// How long it still runs.
    pub remaining: Duration,
    /// Of the payload that it was made with; none where that did not tell, or in the row
    /// of an alias.
    pub digest: Option<PayloadDigest>,
}

/// What became of a [`Begin`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// The turn is the asker's; `fresh` unless an earlier answer may have told so.
    Granted {
        /// The event.
        claim: Claim,
        /// The session.
        lease: Option<Lease>,
        /// Whether this very decision granted it.
        fresh: bool,
    },
    /// The event is taken: as its row tells, with the result of the turn that handled
    /// it.
    Taken(EventRow, Option<Vec<u8>>),
    /// The event is free, and the session is not, or is bound to other work.
    Busy(SessionRow),
}

/// What names a turn to those who renew and finish it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnId {
    /// The event.
    pub event: EventKey,
    /// The attempt that has it.
    pub request: RequestId,
    /// How many runs have had the event, this one included: an attempt that is repeated
    /// after a lapse is another turn.
    pub attempt: u32,
    /// The session and its lease.
    pub lease: Option<(SessionKey, LeaseId)>,
    /// How often the event may be claimed in all.
    pub max_attempts: u32,
}

/// Lets a turn run on.
#[derive(Debug, Clone)]
pub struct Prolong {
    /// The turn.
    pub turn: TurnId,
    /// How long the claim runs from now.
    pub claim_ttl: Ttl,
    /// How long the lease does.
    pub lease_ttl: Ttl,
    /// The stream that keeps the turn; none where its holder carries it on by a call
    /// that returns.
    pub stream: Option<StreamId>,
}

/// How a turn ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The event is handled, for so long and with this result.
    Succeeded(Vec<u8>, Ttl),
    /// The event is to be handled by another run; not if it was claimed as often as it
    /// may be.
    Failed,
    /// The turn was never answered to anybody: it is as if it had not been.
    Abandoned,
}

/// Ends a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finish {
    /// The turn.
    pub turn: TurnId,
    /// How.
    pub ending: Ending,
    /// End it only if no other call than this stream has carried it on; none: always.
    pub unless_resumed: Option<StreamId>,
}

impl Finish {
    /// Whether the row of the turn's own event tells that it has ended so before.
    #[must_use]
    pub fn was_done(&self, event: &EventRow) -> bool {
        match (&self.ending, event) {
            (Ending::Succeeded(..), EventRow::Processed(event)) => {
                event.by == By::Turn(self.turn.attempt)
            }
            (Ending::Failed, EventRow::Processed(event)) => {
                event.by == By::Nobody(self.turn.attempt)
            }
            // One that only lapsed did so later than it was made.
            (Ending::Failed, EventRow::Claimed(claim)) => {
                claim.attempt == self.turn.attempt && claim.claim_time == claim.lapse_time
            }
            _ => false,
        }
    }
}

/// What became of a turn that was to run on, or to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept<T> {
    /// It was done, now or before.
    Done(T),
    /// The claim has lapsed, or was finished otherwise.
    ClaimLost,
    /// The lease has ended. If it ran out, rather than being released or passed on: how long it
    /// was held.
    LeaseLost(Option<Duration>),
    /// It runs on, carried on by another call of its holder.
    Resumed,
}
