//! A turn: one event, claimed and worked on under one session's lease, and finished
//! together with it.

use std::{sync::Arc, time::Duration};

use super::{
    Acquire, Delivered, Doubt, EventKey, EventRow, Invalid, Lease, LeaseId, Obtained,
    PayloadDigest, PriorGrant, ProcessedBy, RequestId, ResumedBy, SessionKey, SessionRow, StreamId,
    Timestamp, Ttl,
    key::optional_text,
    limits::{MAX_DETAIL_BYTES, MAX_RESULT_BYTES, MAX_RESULT_TYPE_BYTES},
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
    /// How many attempts that count the event has ([`Attempts`]).
    pub max_attempts: u32,
    /// The session to work on, where there is one: of the event's team.
    pub session: Option<Acquire>,
    /// The stream that is to keep the turn; none for a call that returns.
    pub stream: Option<StreamId>,
    /// The claim of the same request that this call has found, by its time, and carries on.
    pub resumes: Option<PriorGrant<Timestamp>>,
    /// How long the turn stays its holder's once that stream has broken.
    pub grace: Duration,
}

impl Begin {
    /// The same, by a further operation, which carries on what was found.
    #[must_use]
    pub fn anew(&self, resumes: Option<PriorGrant<Timestamp>>) -> Self {
        let session = self.session.as_ref().map(|acquire| acquire.anew(None));
        Self { session, resumes, ..self.clone() }
    }

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
    /// Of the payload that it was made with; none if the caller gave none, or in the row of an
    /// alias.
    pub digest: Option<PayloadDigest>,
    /// Why the latest turn failed that reported a failure.
    pub detail: Option<Detail>,
}

/// The attempts at an event, as its row has them.
///
/// An attempt that broke off for no fault of its handler does not count: its stream broke, or
/// its server drained, and its holder did not carry it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempts {
    /// How often the event was claimed.
    pub claimed: u32,
    /// How many of these do not count.
    pub uncounted: u32,
    /// The attempt that was interrupted, unless its holder has carried it on since.
    pub interrupted: Option<u32>,
}

impl Attempts {
    /// The same, once the latest claim has lapsed: if it was interrupted, it does not count.
    #[must_use]
    pub fn lapsed(self) -> Self {
        let is_interrupted = self.interrupted == Some(self.claimed);
        Self { uncounted: self.uncounted + u32::from(is_interrupted), ..self }
    }

    /// Whether as many attempts as an event has, `most`, were made and count.
    #[must_use]
    pub const fn are_spent(self, most: u32) -> bool {
        self.claimed.saturating_sub(self.uncounted) >= most
    }
}

/// Why a turn failed, or its event was rejected: a handler's words for an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detail(Arc<str>);

impl Detail {
    /// Checks the detail in `field`, where empty means that there is none. It may be an error
    /// of several lines.
    ///
    /// # Errors
    /// [`Invalid`] on `field`, when it is too long or has other control characters.
    pub fn optional(field: &'static str, given: String) -> Result<Option<Self>, Invalid> {
        let text = optional_text(field, given, MAX_DETAIL_BYTES, &['\n', '\r', '\t'])?;
        Ok(text.map(Self::from_row))
    }

    /// The detail that a row carries.
    #[must_use]
    pub fn from_row(text: String) -> Self {
        Self(text.into())
    }

    /// The detail as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a turn left, returned to callers that deliver its event again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TurnResult {
    /// What it is.
    pub bytes: Vec<u8>,
    /// Its type, as the turn set it.
    pub type_name: Option<String>,
}

impl TurnResult {
    /// Checks a result, and its type, where empty means that there is none.
    ///
    /// # Errors
    /// [`Invalid`] on `result` or `result_type`, when it breaks a rule.
    pub fn parse(bytes: Vec<u8>, type_name: String) -> Result<Self, Invalid> {
        if bytes.len() > MAX_RESULT_BYTES {
            let problem = format!("must be at most {MAX_RESULT_BYTES} bytes, is {}", bytes.len());
            return Err(Invalid::new("result", problem));
        }
        let type_name = optional_text("result_type", type_name, MAX_RESULT_TYPE_BYTES, &[])?;
        Ok(Self { bytes, type_name })
    }
}

/// What became of a [`Begin`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// The request has the turn; `obtained` says whether this call does.
    Granted {
        /// The event.
        claim: Claim,
        /// The session.
        lease: Option<Lease>,
        /// How the request came to it.
        obtained: Obtained,
    },
    /// The event is taken: its row, and the result of the turn that handled it.
    NotAvailable(EventRow, Option<TurnResult>),
    /// The event is free, and the session is not, or is bound to other work.
    Busy(SessionRow),
}

/// Identifies a turn in the calls that renew and finish it.
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
    /// How many attempts that count the event has ([`Attempts`]).
    pub max_attempts: u32,
}

/// Lets a turn run on.
#[derive(Debug, Clone)]
pub struct RenewTurn {
    /// The turn.
    pub turn: TurnId,
    /// How long the claim runs from now.
    pub claim_ttl: Ttl,
    /// How long the lease does.
    pub lease_ttl: Ttl,
    /// The stream that keeps the turn; none where its holder carries it on by a call
    /// that returns.
    pub stream: Option<StreamId>,
    /// Why that stream keeps the turn no longer.
    pub interruption: Option<Interruption>,
}

/// Why a stream keeps a turn no longer, which its holder may still carry on. If nobody does,
/// and the claim lapses, the attempt does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interruption {
    /// It has broken, some time ago: its holder may have carried the turn on since.
    Broken,
    /// Its server ends it just now.
    Drained,
}

impl Interruption {
    /// Whether it is noted of a turn that was carried on as `resumed` says.
    #[must_use]
    pub fn is_noted(self, stream: StreamId, resumed: ResumedBy) -> bool {
        self == Self::Drained || resumed.leaves_to(stream)
    }
}

/// How a turn ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishAs {
    /// The event is handled, for so long and with this result.
    Succeeded(Arc<TurnResult>, Ttl),
    /// The handler refuses the event for good: it counts as handled, for so long.
    Rejected(Option<Detail>, Ttl),
    /// The event is to be handled by another run; not if its attempts are spent.
    Failed(Option<Detail>),
    /// The stream that kept the turn has broken: the event is to be handled by another run,
    /// and this attempt does not count.
    Broken,
    /// No caller was answered: the attempt, claimed at this time, is taken back. The next attempt has
    /// the same number, so the time distinguishes them.
    Abandoned(Timestamp),
    /// The caller has gone before a run of its begin was answered, which may have been granted the
    /// turn, or its lease alone: that is given back. The turn is known by its lease; which attempt it
    /// is, is not known.
    Unanswered,
}

/// Ends a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finish {
    /// The turn.
    pub turn: TurnId,
    /// How.
    pub ending: FinishAs,
    /// End it only if no other call than this stream has carried it on; none: always.
    pub unless_resumed: Option<StreamId>,
    pub(crate) doubt: Doubt,
}

impl Finish {
    /// Ends a turn; `unless_resumed` by another call than this stream.
    #[must_use]
    pub fn new(turn: TurnId, ending: FinishAs, unless_resumed: Option<StreamId>) -> Self {
        Self { turn, ending, unless_resumed, doubt: Doubt::default() }
    }

    /// Whether, by the row of its event, the turn has ended so before.
    #[must_use]
    pub fn is_already_applied(&self, event: &EventRow) -> bool {
        match (&self.ending, event) {
            (FinishAs::Succeeded(..), EventRow::Processed(event)) => {
                event.by == ProcessedBy::Turn(self.turn.attempt)
            }
            (FinishAs::Rejected(..), EventRow::Processed(event)) => {
                event.by == ProcessedBy::Rejected(self.turn.attempt)
            }
            (FinishAs::Failed(_), EventRow::Processed(event)) => {
                event.by == ProcessedBy::GaveUp(self.turn.attempt)
            }
            // One that only lapsed did so later than it was made.
            (FinishAs::Failed(_) | FinishAs::Broken, EventRow::Claimed(claim)) => {
                claim.attempt == self.turn.attempt && claim.claim_time == claim.lapse_time
            }
            _ => false,
        }
    }
}

/// Why a turn cannot be renewed or finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TurnLost {
    /// The claim has lapsed, or was finished otherwise.
    Claim,
    /// The lease has ended. If it ran out, rather than being released or passed on: how long it
    /// was held.
    Lease(Option<Duration>),
    /// It runs on: another call of its holder keeps it now.
    Replaced,
}
