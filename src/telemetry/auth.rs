//! Metrics of callers that are authenticated, and of those that are refused.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::metrics::ReasonLabel;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PrincipalLabel {
    principal: String,
}

/// Callers that are authenticated, and those that are refused. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct AuthMetrics {
    refused: Family<ReasonLabel, Counter>,
    calls: Family<PrincipalLabel, Counter>,
    /// The labels of `calls`.
    principals: Arc<Mutex<BTreeSet<String>>>,
}

impl AuthMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register(
            "refused_calls",
            "Calls, or items of a batch, refused by --auth, by reason",
            self.refused.clone(),
        );
        r.register(
            "principal_calls",
            "Calls of authenticated callers, by principal",
            self.calls.clone(),
        );
    }

    /// Notes a call, or an item of one, that was refused.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// The count of a principal's calls. Its name is of the `--auth` file.
    #[must_use]
    pub fn calls(&self, principal: &str) -> Counter {
        self.principals().insert(principal.to_owned());
        self.calls.get_or_create_owned(&PrincipalLabel { principal: principal.to_owned() })
    }

    /// Forgets the principals that are not to be kept.
    pub fn keep(&self, is_kept: impl Fn(&str) -> bool) {
        self.principals().retain(|principal| {
            let kept = is_kept(principal);
            if !kept {
                self.calls.remove(&PrincipalLabel { principal: principal.clone() });
            }
            kept
        });
    }

    fn principals(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.principals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
