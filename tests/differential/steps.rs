//! The steps of a sequence. What a store draws itself is named by the step that was granted it.

use std::{fmt, time::Duration};

use oncegate::{
    domain::{
        Acquire, Begin, Delivered, Enqueue, EventKey, Finish, LeaseId, Mark, Release, Renew,
        RenewTurn, RequestId, SessionKey,
    },
    store::{EventFilter, Page, Sweep},
};
use uuid::Uuid;

/// What a step was granted: the step, and which of its items.
pub type Grant = (usize, usize);

/// Something of a lease or turn, whose ids each store fills in with its own.
#[derive(Clone)]
pub struct Of<T>(pub Grant, pub T);

impl<T: fmt::Debug> fmt::Debug for Of<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self((step, item), value) = self;
        write!(f, "of {step}.{item}: {value:?}")
    }
}

/// One step of a sequence.
#[derive(Debug, Clone)]
pub struct Step {
    /// It keeps its number when others are left out.
    pub number: usize,
    pub op: Op,
}

/// What a step does.
#[derive(Debug, Clone)]
pub enum Op {
    Advance(Duration),
    Mark(Vec<Mark>),
    Change(Vec<Acquire>, Vec<Of<Release>>),
    Enqueue(Vec<Enqueue>),
    /// Takes so many places in one queue, one after the other.
    Crowd(Enqueue, usize),
    HandOn(Vec<SessionKey>),
    /// Gives places up, or leaves them behind.
    Leave(Vec<Of<SessionKey>>, bool),
    Renew(Vec<Of<Renew>>, Duration),
    Turns(Vec<Begin>, Vec<Of<Finish>>),
    RenewTurn(Vec<Of<RenewTurn>>, Duration),
    Bind(SessionKey, Option<&'static str>),
    Force(SessionKey),
    Close(SessionKey),
    Forget(EventKey),
    Sweep(Sweep),
    ListSessions(Page, Option<bool>),
    ListEvents(Page, EventFilter),
    Count(Option<String>),
}

/// The lease that a place is to end in, or one that there never was: the same in all stores.
pub fn lease((step, item): Grant) -> LeaseId {
    LeaseId::from_uuid(Uuid::from_u64_pair(step as u64, item as u64))
}

/// The attempt of one waiter of a crowd.
pub fn request((step, item): Grant) -> RequestId {
    RequestId::from_uuid(Uuid::from_u64_pair(step as u64, item as u64))
}

/// All names of an event.
pub fn names(event: &Delivered) -> Vec<EventKey> {
    let of = |name: &str| EventKey { team: event.key.team.clone(), event: name.to_owned() };
    event.names().map(of).collect()
}
