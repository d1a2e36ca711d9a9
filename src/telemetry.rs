//! Logs and metrics.

pub mod call;
mod logs;
mod method;
mod metrics;
mod write_health;

pub use logs::{LogFormat, LogThrottle, init_logs};
pub use method::MethodMetrics;
pub use metrics::{LaneMetrics, Metrics, ShedMetrics, TurnMetrics};
pub use write_health::{WriteFailure, WriteHealth};
