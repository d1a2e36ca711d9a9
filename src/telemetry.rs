//! Logs, and every metric's name.
//!
//! Architecture Invariant: no label ever holds a key, a holder or anything else
//! that a caller chose, so the number of series is bounded.

use std::{
    fmt,
    io::IsTerminal as _,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};
use tracing_subscriber::EnvFilter;

pub mod call;
mod write_health;

pub use write_health::{WriteFailure, WriteHealth};

/// How many status codes gRPC has:
/// <https://grpc.io/docs/guides/status-codes/>.
const GRPC_CODES: usize = 17;

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// Human-readable text.
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging to standard error. `filter` is a directive list such as
/// `info,oncegate=debug`.
///
/// # Errors
/// When `filter` cannot be read, or logging has been started before.
pub fn init_logs(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    // sqlx warns of connection parameters, and of lines of a password file, with
    // what they hold. No directive of the operator goes before these.
    let mut filter = EnvFilter::try_new(filter)?;
    for target in ["sqlx_postgres::options", "sqlx_postgres::options::pgpass"] {
        filter = filter.add_directive(format!("{target}=off").parse()?);
    }
    let terminal = std::io::stderr().is_terminal();
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // They would go to standard error, and panic if that is closed.
        .log_internal_errors(false);
    let started = match (format, terminal) {
        (LogFormat::Json, _) | (LogFormat::Auto, false) => {
            logs.json().flatten_event(true).with_span_list(false).try_init()
        }
        (LogFormat::Text, _) | (LogFormat::Auto, true) => {
            logs.with_ansi(terminal).with_target(false).try_init()
        }
    };
    started.map_err(|error| anyhow::anyhow!("{error}"))
}

/// Lets through one of many like log lines: the first, and then one every ten
/// seconds.
#[derive(Debug, Default)]
pub struct LogThrottle(Option<Instant>);

impl LogThrottle {
    /// Whether to log now.
    pub fn now(&mut self) -> bool {
        let due = self.0.is_none_or(|last| last.elapsed() >= Duration::from_secs(10));
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}

/// A count of one kind of thing, named by one label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Lane {
    lane: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

/// One gRPC method, as the conventional `grpc_server_*` metrics label it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(clippy::struct_field_names, reason = "they are the labels' names")]
struct Method {
    grpc_type: &'static str,
    grpc_service: String,
    grpc_method: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(clippy::struct_field_names, reason = "they are the labels' names")]
struct Handled {
    grpc_type: &'static str,
    grpc_service: String,
    grpc_method: String,
    grpc_code: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// 50 µs to 26 s, a factor of two apart.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_05, 2.0, 20))
}

/// 1 to 1,024, a factor of two apart.
fn rows() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 11))
}

/// Every metric of one server. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    started: Family<Method, Counter>,
    handled: Family<Handled, Counter>,
    handling: Histograms<Method>,
    lane_rows: Histograms<Lane>,
    lane_seconds: Histograms<Lane>,
    lane_queue: Family<Lane, Gauge>,
    lane_shed: Family<Lane, Counter>,
    swept: Family<Kind, Counter>,
    /// Marks that were the first of their event.
    pub first: Counter,
    /// Marks of an event that had been handled.
    pub duplicate: Counter,
    /// Marks of an event that is on record with another payload.
    pub mismatch: Counter,
    /// Marks and looks answered from memory.
    pub known_hits: Counter,
    /// Marks that are remembered.
    pub known_entries: Gauge,
    /// Whether known duplicates are answered from memory: 1 or 0.
    pub known_in_use: Gauge,
    /// Leases granted.
    pub granted: Counter,
    /// Answers that somebody else holds the session.
    pub held: Counter,
    /// Turns.
    pub turns: TurnMetrics,
    /// Callers that wait for a session on this replica.
    pub waiters: Gauge,
    /// Leases that run, over all replicas, as last counted.
    pub leases: Gauge,
    /// Whether the store would take a write: 1 or 0.
    pub store_up: Gauge,
    /// What the latest writes of calls came to; readiness follows it.
    pub writes: WriteHealth,
    /// Connections to this server.
    pub connections: Gauge,
    /// Calls refused for load.
    pub shed: ShedMetrics,
}

/// What became of turns.
#[derive(Debug, Clone)]
pub struct TurnMetrics {
    /// Begun.
    pub granted: Counter,
    /// Not begun: the event is handled.
    pub duplicate: Counter,
    /// Not begun: another run works on the event.
    pub in_progress: Counter,
    /// Not begun: the session is held.
    pub busy: Counter,
    /// Not begun: the event is on record with another payload.
    pub mismatch: Counter,
    /// Finished.
    pub succeeded: Counter,
    /// Finished: the handler refused the event for good.
    pub rejected: Counter,
    /// Finished, for another run to try again.
    pub failed: Counter,
    /// Failed as often as may be.
    pub gave_up: Counter,
    /// Finished too late.
    pub lost: Counter,
    /// Never finished, found when their events were asked for again.
    pub lapsed: Counter,
}

impl TurnMetrics {
    fn of(begins: &Family<Outcome, Counter>, finishes: &Family<Outcome, Counter>) -> Self {
        let begun = |outcome| begins.get_or_create_owned(&Outcome { outcome });
        let ended = |outcome| finishes.get_or_create_owned(&Outcome { outcome });
        Self {
            granted: begun("granted"),
            duplicate: begun("duplicate"),
            in_progress: begun("in_progress"),
            busy: begun("busy"),
            mismatch: begun("mismatch"),
            succeeded: ended("succeeded"),
            rejected: ended("rejected"),
            failed: ended("failed"),
            gave_up: ended("gave_up"),
            lost: ended("lost"),
            lapsed: ended("lapsed"),
        }
    }
}

/// Calls refused for load.
#[derive(Debug, Clone)]
pub struct ShedMetrics {
    /// Too many were under way.
    pub calls: Counter,
    /// Too many connections were open.
    pub connections: Counter,
    /// Too many were incomplete, or had too many bytes.
    pub half_open: Counter,
    /// Their message was not complete in time.
    pub slow: Counter,
}

impl ShedMetrics {
    fn of(sheds: &Family<Reason, Counter>) -> Self {
        let of = |reason| sheds.get_or_create_owned(&Reason { reason });
        Self {
            calls: of("calls"),
            connections: of("connections"),
            half_open: of("half_open"),
            slow: of("slow"),
        }
    }
}

impl Metrics {
    /// All metrics, at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let marks = Family::<Outcome, Counter>::default();
        let acquires = Family::<Outcome, Counter>::default();
        let begins = Family::<Outcome, Counter>::default();
        let finishes = Family::<Outcome, Counter>::default();
        let sheds = Family::<Reason, Counter>::default();
        let mut metrics = Self {
            registry: Arc::default(),
            started: Family::default(),
            handled: Family::default(),
            handling: Family::new_with_constructor(seconds),
            lane_rows: Family::new_with_constructor(rows),
            lane_seconds: Family::new_with_constructor(seconds),
            lane_queue: Family::default(),
            lane_shed: Family::default(),
            swept: Family::default(),
            first: marks.get_or_create_owned(&Outcome { outcome: "first" }),
            duplicate: marks.get_or_create_owned(&Outcome { outcome: "duplicate" }),
            mismatch: marks.get_or_create_owned(&Outcome { outcome: "mismatch" }),
            known_hits: Counter::default(),
            known_entries: Gauge::default(),
            known_in_use: Gauge::default(),
            granted: acquires.get_or_create_owned(&Outcome { outcome: "granted" }),
            held: acquires.get_or_create_owned(&Outcome { outcome: "held" }),
            turns: TurnMetrics::of(&begins, &finishes),
            waiters: Gauge::default(),
            leases: Gauge::default(),
            store_up: Gauge::default(),
            writes: WriteHealth::default(),
            connections: Gauge::default(),
            shed: ShedMetrics::of(&sheds),
        };

        let r = &mut registry;
        r.register("grpc_server_started", "RPCs started", metrics.started.clone());
        r.register(
            "grpc_server_handled",
            "RPCs completed, by status code",
            metrics.handled.clone(),
        );
        r.register_with_unit(
            "grpc_server_handling",
            "RPC duration, including queueing",
            Unit::Seconds,
            metrics.handling.clone(),
        );
        let r = r.sub_registry_with_prefix("oncegate");
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        r.register("build", "Version of this binary", build);
        r.register("marks", "Marks answered, by outcome", marks);
        r.register(
            "known_hits",
            "Marks and checks answered from the duplicate cache",
            metrics.known_hits.clone(),
        );
        r.register("known_entries", "Events in the duplicate cache", metrics.known_entries.clone());
        r.register(
            "known_in_use",
            "Whether the duplicate cache is in use (1) or disabled (0)",
            metrics.known_in_use.clone(),
        );
        r.register("acquires", "Lease requests answered, by outcome", acquires);
        r.register("turns_begun", "Turn requests answered, by outcome", begins);
        r.register("turns_finished", "Turns ended, by outcome", finishes);
        r.register("lane_batch_rows", "Rows per batch", metrics.lane_rows.clone());
        r.register_with_unit(
            "lane_batch",
            "Store time per batch, including its commit",
            Unit::Seconds,
            metrics.lane_seconds.clone(),
        );
        r.register("lane_queue_depth", "Calls queued per lane", metrics.lane_queue.clone());
        r.register(
            "lane_shed",
            "Calls rejected because the queue of the lane was full",
            metrics.lane_shed.clone(),
        );
        r.register("swept_rows", "Rows deleted, by kind", metrics.swept.clone());
        r.register(
            "session_waiters",
            "Callers waiting for a session on this replica",
            metrics.waiters.clone(),
        );
        r.register(
            "leases_held",
            "Leases held on all replicas, counted at each sweep",
            metrics.leases.clone(),
        );
        r.register(
            "store_up",
            "Whether the store accepts writes (1) or not (0)",
            metrics.store_up.clone(),
        );
        r.register("connections", "Open client connections", metrics.connections.clone());
        r.register("shed", "Calls rejected because of overload, by reason", sheds);

        metrics.registry = Arc::new(registry);
        metrics
    }

    /// The metrics of one kind of lane.
    #[must_use]
    pub fn lane(&self, lane: &'static str) -> LaneMetrics {
        let label = Lane { lane };
        LaneMetrics {
            rows: self.lane_rows.get_or_create_owned(&label),
            seconds: self.lane_seconds.get_or_create_owned(&label),
            queue: self.lane_queue.get_or_create_owned(&label),
            shed: self.lane_shed.get_or_create_owned(&label),
            writes: None,
        }
    }

    /// The metrics of one kind of lane that writes whatever it is asked for.
    #[must_use]
    pub fn write_lane(&self, lane: &'static str) -> LaneMetrics {
        LaneMetrics { writes: Some(self.writes.clone()), ..self.lane(lane) }
    }

    /// Notes rows that a sweep or a `Cleanup` deleted.
    pub fn swept(&self, kind: &'static str, rows: u64) {
        self.swept.get_or_create(&Kind { kind }).inc_by(rows);
    }

    /// Counts the calls of one gRPC method.
    #[must_use]
    pub fn method(&self, grpc_type: &'static str, service: &str, method: &str) -> MethodMetrics {
        let label =
            Method { grpc_type, grpc_service: service.to_owned(), grpc_method: method.to_owned() };
        MethodMetrics {
            started: self.started.get_or_create_owned(&label),
            seconds: self.handling.get_or_create_owned(&label),
            codes: [const { OnceLock::new() }; GRPC_CODES],
            handled: self.handled.clone(),
            label,
        }
    }

    /// All metrics in the `OpenMetrics` text format.
    #[must_use]
    pub fn render(&self) -> String {
        let mut page = String::new();
        // Writing to a String cannot fail.
        let _ = text::encode(&mut page, &self.registry);
        page
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// The metrics of one kind of lane.
#[derive(Clone)]
pub struct LaneMetrics {
    rows: Histogram,
    seconds: Histogram,
    queue: Gauge,
    shed: Counter,
    /// Of a lane that writes.
    pub writes: Option<WriteHealth>,
}

impl LaneMetrics {
    /// A call joined (1) or left (−1) the queue.
    pub fn queued(&self, change: i64) {
        self.queue.inc_by(change);
    }

    /// A call was refused.
    pub fn shed(&self) {
        self.shed.inc();
    }

    /// A batch of `rows` was run.
    pub fn batch(&self, rows: usize, took: Duration) {
        self.rows.observe(f64::from(u32::try_from(rows).unwrap_or(u32::MAX)));
        self.seconds.observe(took.as_secs_f64());
    }
}

/// The metrics of one gRPC method.
pub struct MethodMetrics {
    started: Counter,
    seconds: Histogram,
    /// By the number of the status code, each made when it is first met.
    codes: [OnceLock<Counter>; GRPC_CODES],
    handled: Family<Handled, Counter>,
    label: Method,
}

/// The method's full name.
impl fmt::Display for MethodMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.label.grpc_service, self.label.grpc_method)
    }
}

impl MethodMetrics {
    /// A call began.
    pub fn started(&self) {
        self.started.inc();
    }

    /// A call ended with the status code number `code`, `label` by name, such as
    /// `OK`.
    pub fn handled(&self, code: usize, label: &'static str, took: Duration) {
        if let Some(counter) = self.codes.get(code) {
            let made = || {
                let Method { grpc_type, grpc_service, grpc_method } = self.label.clone();
                let label = Handled { grpc_type, grpc_service, grpc_method, grpc_code: label };
                self.handled.get_or_create_owned(&label)
            };
            counter.get_or_init(made).inc();
        }
        self.seconds.observe(took.as_secs_f64());
    }
}
