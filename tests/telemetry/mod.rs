//! What a server says of itself: its metrics page, its log of slow calls and its traces.

mod collector;
mod exposition;
mod figures;
#[expect(clippy::float_cmp, reason = "limits are whole numbers")]
mod limits;
mod slow;
#[expect(clippy::float_cmp, reason = "counts are whole numbers")]
mod store;
#[expect(clippy::float_cmp, reason = "counts are whole numbers")]
mod times;
#[expect(clippy::float_cmp, reason = "counts are whole numbers")]
mod traces;

const SERVICE: &str = "oncegate.v1.IdempotencyService";
const OPS: [&str; 2] = ["--ops-listen", "127.0.0.1:0"];
