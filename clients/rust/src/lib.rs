//! Handle every event of a bot or webhook once, in its conversation's turn: over crashes,
//! redeliveries, deployments and several processes.
//!
//! ```no_run
//! use oncegate_client::{Error, Gate, Outcome, slack};
//!
//! # async fn example(body: Vec<u8>) -> Result<(), Error> {
//! let gate = Gate::builder().consumer("answer-bot").build()?; // ONCEGATE_SERVER, or 127.0.0.1:7411
//! let outcome = gate.turn(slack(&body)).run(|turn| async move {
//!     let reply = answer(&body).await?; // dropped if the turn is lost
//!     save(&reply, turn.fence()).await?;
//!     Ok::<_, Error>(reply) // duplicates get the reply
//! });
//! match outcome.await? {
//!     Outcome::Ran(reply) => println!("{reply}"),
//!     other => println!("{other:?}"),
//! }
//! # Ok(()) }
//! # async fn answer(_: &[u8]) -> Result<String, Error> { Ok(String::new()) }
//! # async fn save(_: &str, _: Option<i64>) -> Result<(), Error> { Ok(()) }
//! ```
//!
//! The [server](https://github.com/oncegate/oncegate) keeps the events and the conversations. A
//! [`Gate`] connects to it on first use; make one a process.

use std::sync::{Mutex, MutexGuard, PoisonError};

#[cfg(not(unix))]
compile_error!("oncegate-client is for Unix: its files and sockets are");

mod access;
mod address;
mod begin;
mod body;
mod clock;
mod codec;
mod connection;
mod connector;
mod delivery;
mod errors;
mod failure;
mod gate;
mod hold;
mod keep;
mod lease;
mod link;
mod marks;
mod not_granted;
mod options;
mod outcome;
#[allow(dead_code, missing_docs, clippy::all, clippy::pedantic, reason = "it is generated")]
mod pb {
    include!("pb/oncegate.v1.rs");
}
mod platforms;
mod rotation;
mod run;
mod scope;
#[cfg(feature = "slack")]
pub mod slack;
mod stream;
#[cfg(feature = "testing")]
pub mod testing;
mod token;
mod turn;
mod turn_flow;
mod view;
#[cfg(feature = "webhook")]
pub mod webhook;

pub use body::Body;
pub use codec::{Codec, Json, RawBytes, Stored};
pub use connection::Connection;
pub use delivery::{Delivery, Scope, Session};
#[doc(hidden)]
pub use errors::Kept;
pub use errors::{Cause, Error, LossReason, Secret};
pub use gate::{Gate, GateBuilder};
pub use lease::{Lease, LeaseRequest};
pub use marks::{Mark, MarkAll, MarkItem, Seen};
pub use not_granted::{Busy, Duplicate, GaveUp, InProgress, NotGranted};
pub use options::{Hooks, OnUnavailable};
pub use outcome::{EndOutcome, EventOutcome, EventState, Outcome};
pub use platforms::{discord, github, slack, standard_webhooks, stripe, teams, telegram};
pub use run::{OnceRequest, TurnRequest};
pub use scope::TurnScope;
pub use turn::Turn;
pub use view::KeptBy;

/// What a panic of another thread left is used as it is: no change in here is done by halves.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
