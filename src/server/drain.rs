//! How a server shuts down within a bound.

use std::{future::Future, time::Duration};

use prometheus_client::metrics::gauge::Gauge;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{probe::Health, workers::Connections};

/// How long a connection may take to close by itself once its calls are
/// answered; an idle or mute peer is cut off then.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// What it takes to end within a bound.
pub(super) struct Drain {
    pub(super) health: Health,
    /// Whether it has been asked to end: 1 or 0.
    pub(super) gauge: Gauge,
    /// The calls.
    pub(super) under_way: TaskTracker,
    pub(super) connections: Connections,
    /// How long to keep serving, no longer ready.
    pub(super) lame_duck: Duration,
    pub(super) timeout: Duration,
}

/// The requests to a server to shut down. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct ShutdownSignals {
    /// To shut down: first the lame-duck period, then the drain.
    pub(super) asked: CancellationToken,
    /// To end the lame-duck period.
    pub(super) hurry: CancellationToken,
    /// To take no more connections and no new waits.
    pub(super) stop: CancellationToken,
}

impl Drain {
    /// Waits to be asked to end, serves on for a while, stops, and waits for what
    /// is under way, and for the store to be `closed`.
    pub(super) async fn run(self, ending: ShutdownSignals, closed: impl Future<Output = ()>) {
        ending.asked.cancelled().await;
        self.gauge.set(1);
        self.health.end().await;
        if !self.lame_duck.is_zero() {
            tracing::info!(lame_duck = ?self.lame_duck, "readiness is off; still serving during the lame-duck period");
            ending.hurry.run_until_cancelled(sleep(self.lame_duck)).await;
        }
        ending.stop.cancel();
        // The last of the time is for what comes after the calls.
        let end = Instant::now() + self.timeout;
        let until = end - (self.timeout / 8 * 3).min(CLOSE_TIMEOUT * 3);
        let goodbye = CLOSE_TIMEOUT.min(self.timeout / 8);
        tracing::info!(calls = self.under_way.len(), "draining");
        self.under_way.close();
        if timeout_at(until, self.under_way.wait()).await.is_err() {
            tracing::warn!(
                calls = self.under_way.len(),
                "drain timeout reached; cancelling the remaining calls"
            );
        }
        // Every answer is on its way: peers that stay are idle, or mute.
        let Connections { served, cut, .. } = &self.connections;
        served.close();
        if timeout(goodbye, served.wait()).await.is_err() {
            cut.cancel();
            let _ = timeout(goodbye, served.wait()).await;
        }
        // The leases of callers that were cut off are still being given back, and the embedded
        // store brings all into one file.
        if timeout_at(end, closed).await.is_err() {
            tracing::warn!("drain timeout reached before the store closed");
        }
    }
}
