//! Metrics of the files that are read again while the server runs.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhatLabel {
    what: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    what: &'static str,
    outcome: &'static str,
}

/// Of all sets of files. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ReloadMetrics {
    reloads: Family<ReloadLabels, Counter>,
    stale: Family<WhatLabel, Gauge>,
}

/// Of one set of files.
#[derive(Debug, Clone)]
pub struct FileMetrics {
    /// Changes that are in use.
    pub applied: Counter,
    /// Changes that cannot be used.
    pub failed: Counter,
    /// Whether the files hold something else than what is in use: 1 or 0.
    pub stale: Gauge,
}

impl ReloadMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "reload",
            "Changes of files that the server reads again, by outcome",
            self.reloads.clone(),
        );
        registry.register(
            "config_stale",
            "Whether a changed file, or a part of it, cannot be used, so that what it held before stays in use (1)",
            self.stale.clone(),
        );
    }

    /// The metrics of one set of files, at zero.
    #[must_use]
    pub fn of(&self, what: &'static str) -> FileMetrics {
        let count = |outcome| self.reloads.get_or_create_owned(&ReloadLabels { what, outcome });
        FileMetrics {
            applied: count("applied"),
            failed: count("failed"),
            stale: self.stale.get_or_create_owned(&WhatLabel { what }),
        }
    }
}
