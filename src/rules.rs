//! What is decided, and by which rule: pure functions over the records of a store.
//!
//! An [`Operation`] is decided on a [`Draft`]: it reads records, which notes what the decision
//! rests on, and writes them. What the draft comes to is a [`Plan`]: a store writes it as a
//! whole if all that it rests on still holds, and not at all otherwise; then the operation is
//! decided again. All stores share every rule; none has one of its own.
//!
//! Architecture Invariant: no I/O, no clock, no randomness. The time, ids and limits come in.
//!
//! | module | decides |
//! |---|---|
//! | [`session`] | who holds a session: acquire, renew, release, and what an operator does |
//! | [`queue`] | who waits for it, and who is next |
//! | [`event`] | whether an event is handled: marks, forgetting |
//! | [`turn`] | an event and its session at once: begin, renew, finish |

mod draft;
pub mod event;
mod ids;
mod plan;
pub mod queue;
mod record;
pub mod session;
#[cfg(test)]
mod tests;
pub mod turn;

pub use draft::{Draft, Snapshot, Wanted};
pub use ids::Ids;
pub use plan::{Change, EventUpdate, Notice, Place, Plan, SessionWrite, Writes};
pub use record::{Event, Latest, Session, State, Version, Waiter};

/// Why an operation cannot be decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// No fencing token is left below 2^53.
    #[error("fencing tokens are exhausted: the clock or the floor has reached 2^53")]
    TokensExhausted,
}

/// What is asked of the rules.
pub trait Operation {
    /// What it comes to.
    type Answer;

    /// Adds the records that it is about to `wanted`.
    fn wants(&self, wanted: &mut Wanted);

    /// Whether there is usually no such record: then it is decided without a look first, and
    /// again if that was wrong.
    fn is_usually_new(&self) -> bool {
        false
    }

    /// The answer of its latest run was lost, so that it may be done: ids that it may have been granted
    /// are not granted any more.
    fn spend(&self) {}

    /// Decides it on `draft`.
    ///
    /// # Errors
    /// [`RuleError`]; then nothing is to be written.
    fn decide(&self, draft: &mut Draft<'_>) -> Result<Self::Answer, RuleError>;
}

impl<O: Operation> Operation for &O {
    type Answer = O::Answer;

    fn wants(&self, wanted: &mut Wanted) {
        (*self).wants(wanted);
    }

    fn is_usually_new(&self) -> bool {
        (*self).is_usually_new()
    }

    fn spend(&self) {
        (*self).spend();
    }

    fn decide(&self, draft: &mut Draft<'_>) -> Result<Self::Answer, RuleError> {
        (*self).decide(draft)
    }
}
