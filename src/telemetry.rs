//! Logs, metrics and traces.

mod auth;
pub mod call;
mod durability;
mod format;
mod lane;
mod logs;
mod method;
mod metrics;
#[cfg(target_os = "linux")]
mod process;
mod reload;
mod slow;
mod store;
mod tls;
mod traceparent;
mod traces;
mod window;
mod write_health;

/// The target of the audit log: what operators changed, and which calls were refused.
pub const AUDIT: &str = "oncegate::audit";

pub use auth::AuthMetrics;
pub use durability::DurabilityMetrics;
pub use format::TextFormat;
pub use lane::LaneMetrics;
pub use logs::{LogFormat, LogThrottle, init_logs};
pub use method::{CodeName, MethodMetrics, UNARY};
pub use metrics::{LimitMetrics, Metrics, ShedMetrics, TurnMetrics};
pub use reload::{FileMetrics, ReloadMetrics};
pub use slow::{Ended, SlowCalls};
pub use store::{Counted, ErrorClass, StoreConnectionMetrics, StoreMetrics, TableFigures};
pub use tls::{HandshakeMetrics, TlsMetrics};
pub use traces::{BatchSpan, CallStatus, QueuedSpan, TraceMetrics, Traces};
pub use write_health::{WriteFailure, WriteHealth};
