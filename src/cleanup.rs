//! Deletes rows that have expired, in the background and on request.

use std::time::Duration;

use tokio::{runtime::Handle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::TeamFilter,
    lane::{CallError, Executes, Lane, Op},
    store::{
        Age, Connection, Figures, Kind, Scope, Store, StoreError, Sweep, Swept, Verdict, Work,
    },
    telemetry::{LogThrottle, Metrics},
};

/// The most rows that one transaction deletes, so that none holds its locks,
/// or the embedded store's one writer, for long.
pub const BATCH_ROWS: u32 = 10_000;

/// How many rows that is where others have work for the store at the same time:
/// little enough for none of them to wait for it.
const SHARED_ROWS: u32 = 500;

/// How long a sweep rests then, as a multiple of the time that its batch took.
const REST: u32 = 3;

/// How many sweeps may queue: each runs by itself.
const QUEUE: usize = 64;

impl Op for Sweep {
    type Key<'a> = ();
    type Row = Swept;
    type Answer = Swept;

    fn key(&self) {}

    fn team(&self) -> &str {
        self.scope.team.team().unwrap_or_default()
    }

    fn is_read(&self) -> bool {
        self.scope.dry_run
    }

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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Events.
    pub events: u64,
    /// Idle, unbound sessions.
    pub sessions: u64,
    /// Whether there may be more.
    pub more: bool,
}

/// What the batches of one kind came to.
struct Total {
    rows: u64,
    /// Whether there may be more.
    more: bool,
    /// Whether no other replica swept meanwhile, so that this one has done it.
    elected: bool,
}

/// Deletes rows in bounded batches. Cheap to clone.
#[derive(Clone)]
pub struct Cleanup {
    sweeps: Lane<Sweep>,
    metrics: Metrics,
}

impl Cleanup {
    /// Starts the lane on `runtime`.
    pub fn start(store: &impl Store, runtime: &Handle, metrics: &Metrics) -> Self {
        // A lane of one a batch: two sweeps that ask alike are still two.
        let lane = metrics.lane("sweep");
        let sweeps = Lane::start(runtime, store.connection(Work::Scans), QUEUE, 1, lane);
        Self { sweeps, metrics: metrics.clone() }
    }

    /// Deletes up to `limit` events and sessions, in batches, until `until`.
    ///
    /// # Errors
    /// [`CallError`]; what earlier batches deleted stays deleted.
    pub async fn run(
        &self,
        scope: &Scope,
        limit: u32,
        until: Instant,
    ) -> Result<Cleaned, CallError> {
        let swept = self.sweep(Kind::Events, scope, limit, until).await?;
        let (events, more_events) = (swept.rows, swept.more);
        let left = limit.saturating_sub(u32::try_from(events).unwrap_or(u32::MAX));
        let swept = self.sweep(Kind::Sessions, scope, left, until).await;
        let swept = swept.map_err(|error| {
            if events > 0 && !scope.dry_run { error.after_change() } else { error }
        })?;
        Ok(Cleaned { events, sessions: swept.rows, more: more_events || swept.more })
    }

    /// Deletes up to `limit` rows of one kind.
    async fn sweep(
        &self,
        kind: Kind,
        scope: &Scope,
        limit: u32,
        until: Instant,
    ) -> Result<Total, CallError> {
        let mut total = 0;
        // Only what has expired is found by an index. Every other batch looks
        // through the table, and should find much.
        let shared = match (kind, scope.age) {
            (Kind::Events, Age::Expired) => SHARED_ROWS,
            _ => BATCH_ROWS,
        };
        let mut size = shared;
        let mut batches = 0;
        loop {
            let left = u64::from(limit) - total;
            // One batch is always due: or one kind could keep another from it.
            if left == 0 || (batches > 0 && Instant::now() >= until) {
                return Ok(Total { rows: total, more: true, elected: true });
            }
            batches += 1;
            // Counting is one statement, or it would count the same rows again.
            let most = if scope.dry_run { left } else { left.min(size.into()) };
            let batch = u32::try_from(most).unwrap_or(u32::MAX);
            let sweep = Sweep { kind, scope: scope.clone(), limit: batch };
            let begun = Instant::now();
            let Swept { rows, more, busy, elected } = match self.sweeps.call(sweep).await {
                Err(error) if total > 0 && !scope.dry_run => return Err(error.after_change()),
                swept => swept?,
            };
            total += rows.min(left);
            if !scope.dry_run {
                self.metrics.swept(kind.label(), rows);
            }
            if !more {
                return Ok(Total { rows: total, more: false, elected });
            }
            if busy {
                // The longer it takes, the larger the bites: it must end one day.
                size = (shared + 2 * batches).min(BATCH_ROWS);
                let rest = begun.elapsed() * REST;
                tokio::time::sleep_until(until.min(Instant::now() + rest)).await;
            } else {
                size = (size * 2).min(BATCH_ROWS);
            }
        }
    }

    /// Sweeps what has expired every `interval`, on one replica at a time, and
    /// counts the leases over `store`, until `stop`.
    pub async fn sweep_forever(
        self,
        mut store: impl Connection,
        interval: Duration,
        stop: CancellationToken,
    ) {
        let scope = Scope {
            team: TeamFilter::stored(None),
            age: Age::Expired,
            dry_run: false,
            elected: true,
        };
        self.metrics.store.sweeping(interval);
        let mut log = FiguresLog::default();
        // Replicas that start together do not sweep together.
        let mut next = Instant::now() + interval.mul_f64(rand::random_range(0.0..1.0));
        while stop.run_until_cancelled(tokio::time::sleep_until(next)).await.is_some() {
            next = Instant::now() + interval;
            let (mut is_done, mut events) = (true, None);
            // One kind that cannot be swept does not keep the other.
            for kind in [Kind::Events, Kind::Sessions] {
                let swept = self.sweep(kind, &scope, u32::MAX, next);
                let Some(swept) = stop.run_until_cancelled(swept).await else { return };
                match &swept {
                    Ok(Total { rows: 0, .. }) => {}
                    Ok(Total { rows, .. }) => {
                        tracing::info!(kind = kind.label(), rows, "deleted expired or idle rows");
                    }
                    Err(error) => {
                        tracing::warn!(kind = kind.label(), %error, "sweep failed; will retry");
                    }
                }
                is_done &= swept.as_ref().is_ok_and(|total| total.elected);
                if kind == Kind::Events {
                    events = swept.ok();
                }
            }
            if is_done {
                self.metrics.store.swept();
            }
            // To look for the oldest event walks over all that were deleted since the last vacuum.
            // There is no need to after a sweep that left none, and while another replica sweeps.
            let (lag, with_lag) = match events {
                Some(Total { elected: true, more: false, .. }) => (Some(Duration::ZERO), false),
                Some(Total { elected: false, .. }) => (None, false),
                _ => (None, true),
            };
            let read = async { (store.count_leases().await, store.figures(with_lag).await) };
            let Some((leases, figures)) = stop.run_until_cancelled(read).await else { return };
            let figures = Figures { sweep_lag: lag.or(figures.sweep_lag), ..figures };
            log.note(leases.as_ref().err().or(figures.error.as_ref()));
            self.note(leases.ok(), figures);
        }
    }

    /// Shows the state of the store in the metrics: what is not known is not shown.
    fn note(&self, leases: Option<u64>, figures: Figures) {
        let Figures { clock, sweep_lag, schema_version, xid_age, tables, error: _ } = figures;
        let metrics = &self.metrics.store;
        metrics.leases(leases);
        metrics.clock_read(clock.map(|(at, took)| (at.as_micros(), took)));
        metrics.sweep_lag(sweep_lag);
        metrics.schema_version(schema_version);
        metrics.xid_age(xid_age);
        metrics.tables(&tables);
    }
}

/// Logs once that figures cannot be read, until they can.
#[derive(Default)]
struct FiguresLog {
    is_failing: bool,
    lines: LogThrottle,
}

impl FiguresLog {
    fn note(&mut self, error: Option<&StoreError>) {
        match error {
            None => self.is_failing = false,
            Some(error) if !self.is_failing && self.lines.now() => {
                self.is_failing = true;
                tracing::warn!(
                    %error,
                    "cannot read the state of the store; its metrics are not shown"
                );
            }
            Some(_) => {}
        }
    }
}
