//! One load: a closed loop of callers in a process of its own, so that what the
//! client costs is known and taken from nobody else's account.
//!
//! `oncegate-bench load SPEC` runs one and prints its [`Report`]; both are JSON.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

pub mod grpc;
mod http2;
pub mod keys;
mod socket;

pub use socket::Tls;

/// What the callers do, over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// `MarkProcessed` of a new event, its id rising with time.
    Mark,
    /// `MarkProcessed` of a new event, its id random.
    MarkRandom,
    /// `MarkProcessed` of the same few events.
    MarkKnown,
    /// `BatchMarkProcessed` of `items` new events.
    Batch,
    /// `BatchMarkProcessed` of `items` new events with random ids.
    BatchRandom,
    /// A call of the same server that does nothing: `Health/Check` of `liveness`.
    Empty,
    /// `AcquireSessionLease` and `ReleaseSessionLease` of a session of the
    /// caller's own; one cycle counts as one.
    Lease,
    /// The same of one session that all callers share: each waits for it, and releases it at once;
    /// one hand-over counts as one.
    HotLease,
    /// `BeginTurn` and `FinishTurn` of a new event, in a session of the caller's own;
    /// one turn counts as one.
    Turn,
    /// The same in one session that all callers share: each waits for it, and finishes at once.
    HotTurn,
    /// `IsProcessed`, `AcquireSessionLease`, `MarkProcessed` and `ReleaseSessionLease`:
    /// the calls that a turn replaces; the four count as one.
    FourCalls,
    /// etcd: put if absent, `etcdserverpb.KV/Txn`.
    EtcdPut,
    /// etcd: `v3lockpb.Lock/Lock` and `Unlock`; one cycle counts as one.
    EtcdLock,
}

/// One load.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    /// `HOST:PORT` of each replica; the connections take turns among them.
    pub targets: Vec<String>,
    /// What is done.
    pub work: Work,
    /// Over how many connections.
    pub connections: usize,
    /// How many callers there are in all, each with one call under way.
    pub callers: usize,
    /// How many events one batch holds.
    pub items: usize,
    /// How long is measured, in seconds.
    pub seconds: f64,
    /// How long the load runs before that, in seconds.
    pub warmup: f64,
    /// The deadline that each call carries, in milliseconds; none: no deadline.
    pub timeout_ms: Option<u64>,
    /// Whose keys they are: of one team by its number, or of a team for each connection.
    pub team: Option<usize>,
    /// Keeps the keys of different loads apart.
    pub seed: u64,
    /// After how many the load is over, before its time is; none: its time decides.
    pub most: Option<u64>,
    /// How long events of a batch are remembered, in seconds; none: the server's default.
    pub ttl_s: Option<i64>,
    /// How the callers prove who they are.
    pub access: Access,
}

/// What callers show to a server.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Access {
    /// A bearer token.
    pub token: Option<String>,
    /// A client certificate; without it, the connection is plaintext.
    pub tls: Option<Tls>,
}

/// What became of a load.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// How many were done within the measured time; an item of a batch and a
    /// cycle of a lease count as one.
    pub done: u64,
    /// How many were answered with an error.
    pub failed: u64,
    /// How many answers were not the one that the work expects, such as `first`
    /// for a new event: not 0 means that nothing was measured.
    pub wrong: u64,
    /// How long was measured, in seconds.
    pub seconds: f64,
    /// Answers a second.
    pub rate: f64,
    /// Latency of one call (or cycle), in microseconds.
    pub p50_us: f64,
    /// The same, of the slowest hundredth.
    pub p99_us: f64,
    /// The same, of the slowest thousandth.
    pub p999_us: f64,
    /// The slowest of all.
    pub max_us: f64,
    /// The slowest of those that failed.
    pub max_failed_us: f64,
    /// What the client's process used within the measured time, in seconds of CPU.
    pub client_cpu: f64,
}

/// Counts what one thread of callers sees.
#[derive(Debug, Clone)]
pub struct Tally {
    from: Instant,
    until: Instant,
    most: u64,
    done: u64,
    failed: u64,
    wrong: u64,
    latencies: Histogram,
    slowest_failure: Duration,
}

impl Tally {
    /// Counts what ends between `from` and `until`.
    pub fn new(from: Instant, until: Instant) -> Self {
        Self {
            from,
            until,
            most: u64::MAX,
            done: 0,
            failed: 0,
            wrong: 0,
            latencies: Histogram::default(),
            slowest_failure: Duration::ZERO,
        }
    }

    /// The same, until `most` are done.
    pub fn at_most(self, most: Option<u64>) -> Self {
        Self { most: most.unwrap_or(u64::MAX), ..self }
    }

    /// Whether the load is over. One that ends by its count ends its time.
    pub fn over(&mut self, now: Instant) -> bool {
        if self.done >= self.most {
            self.until = self.until.min(now);
        }
        now >= self.until
    }

    /// `count` were done by a call that began at `begun`.
    pub fn done(&mut self, begun: Instant, now: Instant, count: u64) {
        if self.counts(now) {
            self.done += count;
            self.latencies.note(now - begun);
        }
    }

    /// A call that began at `begun` was answered with an error.
    pub fn failed(&mut self, begun: Instant, now: Instant) {
        if self.counts(now) {
            self.failed += 1;
            self.slowest_failure = self.slowest_failure.max(now - begun);
        }
    }

    /// An answer makes the measurement void.
    pub fn wrong(&mut self) {
        self.wrong += 1;
    }

    fn counts(&self, now: Instant) -> bool {
        self.from <= now && now < self.until
    }

    /// Adds up what all threads saw.
    pub fn report(tallies: Vec<Self>, client_cpu: f64) -> Report {
        let mut sum = Histogram::default();
        let mut report = Report { client_cpu, ..Report::default() };
        for tally in tallies {
            report.done += tally.done;
            report.failed += tally.failed;
            report.wrong += tally.wrong;
            report.seconds = report.seconds.max((tally.until - tally.from).as_secs_f64());
            sum.add(&tally.latencies);
            let slowest = tally.slowest_failure.as_secs_f64() * 1e6;
            report.max_failed_us = report.max_failed_us.max(slowest);
        }
        report.rate = report.done as f64 / report.seconds;
        report.p50_us = sum.quantile(0.5);
        report.p99_us = sum.quantile(0.99);
        report.p999_us = sum.quantile(0.999);
        report.max_us = sum.quantile(1.0);
        report
    }
}

/// Latencies in buckets of 1/16 of a power of two: 6 % wide at most, and no
/// memory that grows with the load.
#[derive(Debug, Clone)]
struct Histogram(Vec<u64>);

/// Sixteen buckets for each doubling.
const STEPS: u32 = 4;

impl Default for Histogram {
    fn default() -> Self {
        Self(vec![0; 64 << STEPS])
    }
}

impl Histogram {
    fn note(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1 << STEPS);
        let power = nanos.ilog2();
        let step = (nanos >> (power - STEPS)) as usize & ((1 << STEPS) - 1);
        self.0[(power as usize) << STEPS | step] += 1;
    }

    fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(sum, count)| *sum += count);
    }

    /// The latency that `share` of all do not exceed, in microseconds: the
    /// middle of its bucket.
    fn quantile(&self, share: f64) -> f64 {
        let rank = (self.0.iter().sum::<u64>() as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.0.iter().enumerate() {
            seen += count;
            if seen >= rank {
                let width = f64::from(1u32 << STEPS);
                let base = 2f64.powi((index >> STEPS) as i32) / 1e3;
                return base * (1.0 + ((index & ((1 << STEPS) - 1)) as f64 + 0.5) / width);
            }
        }
        0.0
    }
}

/// What this process has used so far, in seconds of CPU.
pub fn process_cpu() -> anyhow::Result<f64> {
    // In hundredths of a second on every Linux: <https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html>.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').context("an odd /proc/self/stat")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / TICKS)
}
