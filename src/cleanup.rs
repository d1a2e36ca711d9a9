//! Rows that are no longer needed leave: in the background, and when asked.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    lane::{CallError, Executes, Lane, Op},
    store::{Age, Connection, Store, StoreError, Sweep, Swept, Verdict},
    telemetry::Metrics,
};

/// The most rows that one transaction deletes, so that none holds its locks,
/// or the embedded store's one writer, for long.
pub const BATCH_ROWS: u32 = 10_000;

/// How many sweeps may queue: each runs by itself.
const QUEUE: usize = 64;

impl Op for Sweep {
    type Key<'a> = ();
    type Row = Swept;
    type Answer = Swept;

    fn key(&self) {}

    fn answer(&self, swept: &Swept) -> Verdict<Swept> {
        Verdict::Decided(*swept)
    }
}

impl<S: Connection> Executes<Sweep> for S {
    async fn execute(&mut self, sweeps: &[&Sweep]) -> Result<Vec<Verdict<Swept>>, StoreError> {
        let mut swept = Vec::with_capacity(sweeps.len());
        for sweep in sweeps {
            swept.push(Verdict::Decided(self.sweep(sweep).await?));
        }
        Ok(swept)
    }
}

/// What a cleanup deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cleaned {
    /// Rows, by kind.
    pub swept: Swept,
    /// Whether there may be more.
    pub more: bool,
}

/// Deletes rows in bounded batches. Cheap to clone.
#[derive(Clone)]
pub struct Cleanup {
    sweeps: Lane<Sweep>,
    metrics: Metrics,
}

impl Cleanup {
    /// Starts the lane.
    pub fn start(store: &impl Store, metrics: &Metrics) -> Self {
        // A lane of one a batch: two sweeps that ask alike are still two.
        let sweeps = Lane::start(store.connection(), QUEUE, 1, metrics.lane("sweep"));
        Self { sweeps, metrics: metrics.clone() }
    }

    /// Deletes up to `sweep.limit` rows, in batches, until `until`.
    ///
    /// # Errors
    /// [`CallError`]; what earlier batches deleted stays deleted.
    pub async fn run(&self, sweep: Sweep, until: Instant) -> Result<Cleaned, CallError> {
        let mut total = Swept::default();
        let mut left = sweep.limit;
        loop {
            // Counting is one statement, or it would count the same rows again.
            let limit = if sweep.dry_run { left } else { left.min(BATCH_ROWS) };
            let swept = self.sweeps.call(Sweep { limit, ..sweep.clone() }).await?;
            let rows = swept.events + swept.sessions;
            total.events += swept.events;
            total.sessions += swept.sessions;
            left = left.saturating_sub(u32::try_from(rows).unwrap_or(u32::MAX));
            if !sweep.dry_run {
                self.metrics.swept(swept.events, swept.sessions);
            }
            let full = rows >= u64::from(limit);
            if !full || left == 0 || Instant::now() >= until {
                return Ok(Cleaned { swept: total, more: full });
            }
        }
    }

    /// Sweeps what has expired every `interval`, on one replica at a time, and
    /// counts the leases over a connection of its own, until `stop`.
    pub async fn sweep_forever(
        self,
        mut store: impl Connection,
        interval: Duration,
        stop: CancellationToken,
    ) {
        // Replicas that start together do not sweep together.
        let mut next = Instant::now() + interval.mul_f64(rand::random_range(0.0..1.0));
        while stop.run_until_cancelled(tokio::time::sleep_until(next)).await.is_some() {
            next = Instant::now() + interval;
            let sweep = Sweep {
                team: None,
                age: Age::Expired,
                limit: u32::MAX,
                dry_run: false,
                elected: true,
            };
            let Some(ended) = stop.run_until_cancelled(self.run(sweep, next)).await else {
                return;
            };
            match ended {
                Ok(Cleaned { swept, .. }) if swept != Swept::default() => {
                    tracing::info!(events = swept.events, sessions = swept.sessions, "swept");
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "sweep failed"),
            }
            if let Ok(leases) = store.count_leases().await {
                self.metrics.leases.set(i64::try_from(leases).unwrap_or(i64::MAX));
            }
        }
    }
}
