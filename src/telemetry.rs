//! Logs and metrics.

pub mod call;
mod logs;
mod method;
mod metrics;
mod reload;
mod tls;
mod write_health;

pub use logs::{LogFormat, LogThrottle, init_logs};
pub use method::MethodMetrics;
pub use metrics::{LaneMetrics, Metrics, ShedMetrics, TurnMetrics};
pub use reload::{FileMetrics, ReloadMetrics};
pub use tls::{HandshakeMetrics, TlsMetrics};
pub use write_health::{WriteFailure, WriteHealth};
