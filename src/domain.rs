//! Values and rules: no I/O, no async, no transport.
//!
//! Architecture Invariant: nothing here knows a database, a clock or gRPC. A
//! rule that needs the time is given it.

mod conversation;
mod doubt;
mod event;
mod invalid;
mod key;
pub mod limits;
pub mod name;
mod queue;
mod session;
mod slack;
mod stream;
mod team;
mod time;
mod turn;

pub use conversation::{Conversation, Conversations, SessionScope};
pub use doubt::Doubt;
pub use event::{
    Delivered, EventRow, KeySet, Mark, MarkOutcome, PayloadDigest, ProcessedBy, RequestId,
    StoredEvent,
};
pub use invalid::{Fault, Invalid};
pub use key::{EventKey, Field, Id, SessionKey, is_stored_id, split_consumer};
pub use queue::{Enqueue, Enqueued};
pub use session::{
    Acquire, Acquired, Decision, FencingToken, Held, Labels, Lease, LeaseId, OwnLease, Release,
    Renew, Renewed, SessionRow,
};
pub use slack::{SlackAction, SlackEvent, SlackFields, Text};
pub use stream::{Obtained, PriorGrant, ResumedBy, StreamId};
pub use team::{Team, TeamFilter, TeamScope};
pub use time::{Timestamp, Ttl, bounded};
pub use turn::{
    Attempts, Begin, Begun, Claim, Detail, Finish, FinishAs, Interruption, RenewTurn, TurnId,
    TurnLost, TurnResult,
};
