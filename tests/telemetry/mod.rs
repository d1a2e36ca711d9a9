//! What a server says of itself: its metrics page and its log of slow calls.

mod exposition;
mod slow;
mod store;
mod times;

const SERVICE: &str = "oncegate.v1.IdempotencyService";
const OPS: [&str; 2] = ["--ops-listen", "127.0.0.1:0"];
