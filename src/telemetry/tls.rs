//! Metrics of TLS.

use std::sync::Arc;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HandshakeLabels {
    listener: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NoLabels {}

/// Of one server. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct TlsMetrics {
    handshakes: Family<HandshakeLabels, Counter>,
    /// One series each, or none.
    not_before: Family<NoLabels, Gauge>,
    not_after: Family<NoLabels, Gauge>,
}

/// Handshakes on one kind of listener. Cheap to clone.
#[derive(Debug, Clone)]
pub struct HandshakeMetrics {
    /// Those that succeeded.
    pub completed: Counter,
    failed: Arc<[(&'static str, Counter)]>,
}

impl TlsMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "tls_handshakes",
            "TLS handshakes, by listener and outcome",
            self.handshakes.clone(),
        );
        registry.register_with_unit(
            "certificate_not_before",
            "Begin of the validity of the server's certificate, since 1970; absent without TLS",
            Unit::Seconds,
            self.not_before.clone(),
        );
        registry.register_with_unit(
            "certificate_not_after",
            "End of the validity of the server's certificate, since 1970; absent without TLS",
            Unit::Seconds,
            self.not_after.clone(),
        );
    }

    /// The handshakes on `listener`, at zero, with the ways in which one can fail.
    #[must_use]
    pub fn handshakes(
        &self,
        listener: &'static str,
        failures: impl IntoIterator<Item = &'static str>,
    ) -> HandshakeMetrics {
        let count =
            |outcome| self.handshakes.get_or_create_owned(&HandshakeLabels { listener, outcome });
        let failed = failures.into_iter().map(|failure| (failure, count(failure))).collect();
        HandshakeMetrics { completed: count("completed"), failed }
    }

    /// The certificate in use is valid from when until when, in seconds since 1970, if that is
    /// known.
    pub fn valid(&self, validity: Option<(i64, i64)>) {
        if let Some((first, last)) = validity {
            self.not_before.get_or_create(&NoLabels {}).set(first);
            self.not_after.get_or_create(&NoLabels {}).set(last);
        } else {
            self.not_before.clear();
            self.not_after.clear();
        }
    }
}

impl HandshakeMetrics {
    /// One failed.
    pub fn failed(&self, how: &str) {
        if let Some((_, count)) = self.failed.iter().find(|(failure, _)| *failure == how) {
            count.inc();
        }
    }
}
