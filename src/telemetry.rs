//! Logs and metrics.

pub mod call;
mod durability;
mod logs;
mod method;
mod metrics;
mod reload;
mod tls;
mod write_health;

/// The target of the audit log: what operators changed, and which calls were refused.
pub const AUDIT: &str = "oncegate::audit";

pub use durability::DurabilityMetrics;
pub use logs::{LogFormat, LogThrottle, init_logs};
pub use method::MethodMetrics;
pub use metrics::{AuthMetrics, LaneMetrics, Metrics, ShedMetrics, TurnMetrics};
pub use reload::{FileMetrics, ReloadMetrics};
pub use tls::{HandshakeMetrics, TlsMetrics};
pub use write_health::{WriteFailure, WriteHealth};
