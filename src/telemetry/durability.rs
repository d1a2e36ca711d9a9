//! Whether what the store commits survives a crash.

use prometheus_client::{
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

use super::metrics::ReasonLabel;

/// Of one server. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct DurabilityMetrics(Family<ReasonLabel, Gauge>);

impl DurabilityMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "store_durable",
            "Whether commits survive a crash of the store (1) or not (0), with the reason; read at \
             startup",
            self.0.clone(),
        );
    }

    /// Notes what was found at startup.
    pub fn found(&self, reason: &'static str, is_durable: bool) {
        self.0.get_or_create(&ReasonLabel { reason }).set(i64::from(is_durable));
    }
}
