//! Keeps readiness true to the store.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    store::{Connection, StoreError},
    telemetry::Metrics,
};

/// What `grpc.health.v1` is asked for. `liveness` is true while the process
/// runs; the others follow the store.
const READINESS: [&str; 5] = [
    "",
    "readiness",
    "oncegate.v1.IdempotencyService",
    "oncegate.v1.TurnService",
    "oncegate.v1.AdminService",
];
const LIVENESS: &str = "liveness";

/// Whether the service is alive, which it is, and ready. Cheap to clone.
#[derive(Clone)]
pub(super) struct Health {
    reporter: HealthReporter,
    is_ready: Arc<AtomicBool>,
}

impl Health {
    /// Reports to `reporter`.
    pub(super) async fn new(reporter: HealthReporter) -> Self {
        reporter.set_service_status(LIVENESS, ServingStatus::Serving).await;
        Self { reporter, is_ready: Arc::default() }
    }

    /// Whether the service is ready, as was last set.
    pub(super) fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed)
    }

    /// Turns readiness on or off.
    pub(super) async fn ready(&self, ready: bool) {
        self.is_ready.store(ready, Ordering::Relaxed);
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in READINESS {
            self.reporter.set_service_status(service, status).await;
        }
    }
}

/// Looks after the store.
pub(super) struct Probe<C> {
    store: C,
    health: Health,
    metrics: Metrics,
    /// What it found last; none before the first look.
    was_up: Option<bool>,
    /// Whether the last look failed.
    has_failed: bool,
}

impl<C: Connection> Probe<C> {
    /// Looks over `store`, and reports to `health`.
    pub(super) fn new(store: C, health: Health, metrics: Metrics) -> Self {
        Self { store, health, metrics, was_up: None, has_failed: false }
    }

    /// Looks every `interval`, until `stop`.
    pub(super) async fn follow(mut self, interval: Duration, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
            // Once draining has begun, readiness is its business.
            // What it finds is in the log, and in readiness.
            if stop.run_until_cancelled(self.look()).await.is_none() {
                return;
            }
        }
    }

    /// Looks once. Answers what the store answered.
    pub(super) async fn look(&mut self) -> Result<(), StoreError> {
        let answer = self.store.ping().await;
        let writes = &self.metrics.writes;
        if answer.is_ok() && self.has_failed {
            writes.recovered();
        }
        let up = match &answer {
            // As while a commit hangs, which a probe does not wait for.
            Ok(()) => !writes.fails_for_all(),
            // A rule that lets certain rows pass may not let this one: calls show it. What
            // one team's rows break must not make the others' replica unready.
            Err(StoreError::Rejected(_)) => {
                !(writes.fails_for_all() || writes.rejects_several_teams())
            }
            Err(_) => false,
        };
        self.has_failed = answer.is_err();
        self.metrics.store_up.set(i64::from(up));
        if self.was_up.replace(up) != Some(up) {
            if up {
                tracing::info!("the store is up");
            } else {
                let error = answer.as_ref().err().map(StoreError::to_string);
                tracing::error!(error, "the store takes no writes; readiness is off until it does");
            }
        }
        self.health.ready(up).await;
        answer
    }
}
