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

use crate::{store::Connection, telemetry::Metrics};

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
    pub(super) store: C,
    pub(super) health: Health,
    pub(super) metrics: Metrics,
}

impl<C: Connection> Probe<C> {
    /// Looks every `interval`, until `stop`.
    pub(super) async fn follow(mut self, interval: Duration, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
            // Once draining has begun, readiness is its business.
            if stop.run_until_cancelled(self.look()).await.is_none() {
                return;
            }
        }
    }

    /// Looks once.
    pub(super) async fn look(&mut self) {
        let up = self.store.ping().await.is_ok();
        let was_up = self.metrics.store_up.set(i64::from(up)) == 1;
        if up != was_up {
            if up {
                tracing::info!("the store is up");
            } else {
                tracing::error!("the store is down");
            }
        }
        self.health.ready(up).await;
    }
}
