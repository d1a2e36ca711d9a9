//! Keeps readiness true to the store.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    store::{Connection, StoreError},
    telemetry::Metrics,
};

/// What `grpc.health.v1` is asked for: these follow the store.
const READINESS: [&str; 5] = [
    "",
    "readiness",
    "oncegate.v1.IdempotencyService",
    "oncegate.v1.TurnService",
    "oncegate.v1.AdminService",
];
/// These serve while the process runs.
const LIVENESS: [&str; 2] = ["liveness", "oncegate.v1.ServerService"];

/// Whether the service is alive, which it is, and ready. Cheap to clone.
#[derive(Clone)]
pub(super) struct Health {
    reporter: HealthReporter,
    is_ready: Arc<AtomicBool>,
    /// Whether the service is about to end, and so is never ready again. Locked while
    /// readiness changes.
    ending: Arc<Mutex<bool>>,
}

impl Health {
    /// Reports to `reporter`.
    pub(super) async fn new(reporter: HealthReporter) -> Self {
        for service in LIVENESS {
            reporter.set_service_status(service, ServingStatus::Serving).await;
        }
        Self { reporter, is_ready: Arc::default(), ending: Arc::default() }
    }

    /// Whether the service is ready, as was last set.
    pub(super) fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed)
    }

    /// Turns readiness on or off; not on once the service is about to end.
    pub(super) async fn ready(&self, ready: bool) {
        let ending = self.ending.lock().await;
        self.set(ready && !*ending).await;
    }

    /// Turns readiness off for good.
    pub(super) async fn end(&self) {
        let mut ending = self.ending.lock().await;
        *ending = true;
        self.set(false).await;
    }

    async fn set(&self, ready: bool) {
        self.is_ready.store(ready, Ordering::Relaxed);
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in READINESS {
            self.reporter.set_service_status(service, status).await;
        }
    }
}

/// How long a failed write counts, where a statement has `timeout`: until the next one has failed too, if
/// commits hang.
fn failures_count(timeout: Duration) -> Duration {
    (timeout + Duration::from_secs(1)).max(Duration::from_secs(5))
}

/// Looks after the store.
pub(super) struct Probe<C> {
    store: C,
    health: Health,
    metrics: Metrics,
    /// How long a failed write counts while no other one shows that it is over.
    window: Duration,
    /// What it found last; none before the first look.
    was_up: Option<bool>,
    /// Whether the last look failed.
    has_failed: bool,
}

impl<C: Connection> Probe<C> {
    /// Looks over `store`, whose statements have `timeout`, and reports to `health`.
    pub(super) fn new(store: C, timeout: Duration, health: Health, metrics: Metrics) -> Self {
        let window = failures_count(timeout);
        Self { store, health, metrics, window, was_up: None, has_failed: false }
    }

    /// Looks every `interval`, until `stop`.
    pub(super) async fn follow(mut self, interval: Duration, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
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
            Ok(()) => !writes.fails_for_all(self.window),
            // A rule that lets certain rows pass may not let this one: calls show it. What
            // one team's rows break must not make the others' replica unready.
            Err(StoreError::Rejected(_)) => {
                !(writes.fails_for_all(self.window) || writes.rejects_several_teams(self.window))
            }
            Err(_) => false,
        };
        self.has_failed = answer.is_err();
        self.metrics.store_up.set(i64::from(up));
        if self.was_up.replace(up) != Some(up) {
            if up {
                tracing::info!("store accepts writes; readiness is on");
            } else {
                let error = answer.as_ref().err().map(StoreError::to_string);
                tracing::error!(
                    error,
                    "store rejects writes; readiness is off until a write succeeds"
                );
            }
        }
        self.health.ready(up).await;
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_counts_until_the_next_one_has_failed() {
        for (timeout, counts) in [(1, 5), (5, 6), (10, 11)]
            .map(|(a, b)| (Duration::from_secs(a), Duration::from_secs(b)))
        {
            assert_eq!(failures_count(timeout), counts);
        }
    }

    #[tokio::test]
    async fn readiness_stays_off_once_the_service_is_about_to_end() {
        let health = Health::new(tonic_health::server::health_reporter().0).await;
        health.ready(true).await;
        assert!(health.is_ready());
        health.end().await;
        // As by a probe that was under way.
        health.ready(true).await;
        assert!(!health.is_ready());
    }
}
