//! What every store must do: one body, run on each of them.

mod events;
mod sessions;
