//! One idempotency authority for bots in any language: *has this event been
//! handled already?* and *may I work on this conversation now?*
//!
//! Dependencies point one way, from the bottom of this list to its top:
//!
//! | module | what it is |
//! |---|---|
//! | [`domain`] | values and rules, no I/O |
//! | [`rules`] | what is decided, as pure functions over records |
//! | [`auth`] | who calls, and what it may do |
//! | [`platform`] | what the payloads of Slack and others name |
//! | [`store`] | what is needed of a database; PostgreSQL, SQLite and memory |
//! | [`lane`] | the batching actor between callers and a connection |
//! | [`dedup`], [`session`], [`cleanup`] | events, leases, rows no longer needed |
//! | [`turn`] | an event and its session at once |
//! | [`admin`] | the operator API |
//! | [`grpc`] | the wire |
//! | [`sockets`], [`server`] | sockets; the composition root |
//! | [`cli`] | the commands |
//!
//! [`telemetry`], [`config`], [`backoff`] and `der`, which reads certificates, stand beside them.
//! `docs/ARCHITECTURE.md` walks one call through all of it.
//!
//! What always holds, with the numbers of `docs/concepts.md`:
//!
//! 1. At most one `first` per team and event in a TTL window, over all callers,
//!    replicas, crashes and retries; a duplicate is reported only while a
//!    committed winner lives.
//! 2. An answer leaves only after its commit; an outcome that is not known is
//!    unavailable, never a guess.
//! 3. Expiry is exact, by the store's clock, read after any lock wait.
//! 4. At most one live lease per session; its fencing tokens rise forever.
//! 5. Renew and release work for the exact, unexpired holder; a stale one
//!    changes nothing.
//! 6. A caller that disconnects never ends up holding.
//! 7. A bad or repeated item never fails its neighbours in a batch.
//! 8. A stream that breaks ends no turn or lease that its holder has carried on since.
//! 9. Everything is bounded, and a drain ends in time whatever the peers do.

pub mod admin;
pub mod auth;
pub mod backoff;
pub mod cleanup;
pub mod cli;
pub mod config;
pub mod dedup;
mod der;
pub mod domain;
pub mod grpc;
pub mod lane;
pub mod platform;
pub mod rules;
pub mod server;
pub mod session;
pub mod sockets;
pub mod store;
pub mod telemetry;
pub mod turn;
