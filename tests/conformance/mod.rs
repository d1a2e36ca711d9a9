//! What every store must do: one body, run on each of them.

mod admin;
mod cleanup;
mod clock;
mod consumers;
mod elapsed;
mod equal;
mod events;
mod limits;
mod names;
mod payloads;
mod sessions;
mod turns;
