//! Every metric of a server, by its name.
//!
//! Architecture Invariant: no label ever holds a key, a holder or anything else
//! that a caller chose, so the number of series is bounded.

use std::sync::Arc;

use prometheus_client::{
    encoding::{EncodeLabelSet, prometheus_text, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::Registry,
};

#[cfg(target_os = "linux")]
use super::process::ProcessCollector;
use super::{
    AuthMetrics, DurabilityMetrics, LaneMetrics, ReloadMetrics, SlowCalls, StoreMetrics,
    TextFormat, TlsMetrics, TraceMetrics, WriteHealth,
    lane::LaneFamilies,
    method::{CodeName, MethodFamilies, MethodMetrics},
};

/// The commit that this binary was built from, where the build says so.
const REVISION: &str = match option_env!("ONCEGATE_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// A count of one kind of thing, named by one label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReasonLabel {
    pub(super) reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// 50 µs to 26 s, a factor of two apart.
pub(super) fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_05, 2.0, 20))
}

/// Every metric of one server. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    methods: MethodFamilies,
    /// The log of slow calls.
    pub slow: Arc<SlowCalls>,
    lanes: LaneFamilies,
    swept: Family<KindLabel, Counter>,
    /// Marks that were the first of their event.
    pub first: Counter,
    /// Marks of an event that had been handled.
    pub duplicate: Counter,
    /// Marks of an event that is on record with another payload.
    pub mismatch: Counter,
    /// Marks and looks answered from memory.
    pub duplicate_cache_hits: Counter,
    /// Marks that are remembered.
    pub duplicate_cache_entries: Gauge,
    /// Whether known duplicates are answered from memory: 1 or 0.
    pub duplicate_cache_in_use: Gauge,
    /// Leases granted.
    pub granted: Counter,
    /// Answers that another caller holds the session.
    pub held: Counter,
    /// Turns.
    pub turns: TurnMetrics,
    /// Callers that wait for a session on this replica.
    pub waiters: Gauge,
    /// Whether the store would take a write: 1 or 0.
    pub store_up: Gauge,
    /// What the latest writes of calls came to; readiness follows it.
    pub writes: WriteHealth,
    /// Connections to this server.
    pub connections: Gauge,
    /// Calls refused for load.
    pub shed: ShedMetrics,
    /// Beyond which they are.
    pub limits: LimitMetrics,
    /// Callers that are authenticated, and those that are refused.
    pub auth: AuthMetrics,
    /// Files that are read again while the server runs.
    pub reload: ReloadMetrics,
    /// TLS handshakes and the certificate.
    pub tls: TlsMetrics,
    /// Whether what the store commits survives a crash.
    pub durability: DurabilityMetrics,
    /// Spans that are exported.
    pub traces: TraceMetrics,
    /// Whether the server may be reached without TLS and authentication: 1 or 0.
    pub insecure: Gauge,
    /// Whether the server is about to end: 1 or 0.
    pub draining: Gauge,
    /// The store.
    pub store: StoreMetrics,
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
    fn of(
        begins: &Family<OutcomeLabel, Counter>,
        finishes: &Family<OutcomeLabel, Counter>,
    ) -> Self {
        let begun = |outcome| begins.get_or_create_owned(&OutcomeLabel { outcome });
        let ended = |outcome| finishes.get_or_create_owned(&OutcomeLabel { outcome });
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
    /// Too many waited for a session.
    pub waiters: Counter,
    /// Too many streams held a session, or waited in order to.
    pub streams: Counter,
}

/// Bounds that calls are refused beyond.
#[derive(Debug, Clone, Default)]
pub struct LimitMetrics {
    /// Of calls under way.
    pub calls: Gauge,
    /// Of connections.
    pub connections: Gauge,
    /// Of callers that wait for a session.
    pub waiters: Gauge,
}

impl LimitMetrics {
    fn register(&self, r: &mut Registry) {
        r.register("calls_limit", "Maximum number of calls under way", self.calls.clone());
        r.register(
            "connections_limit",
            "Maximum number of client connections",
            self.connections.clone(),
        );
        r.register(
            "session_waiters_limit",
            "Maximum number of callers waiting for a session on this replica; one team has three \
             quarters of it at most",
            self.waiters.clone(),
        );
    }
}

impl ShedMetrics {
    fn of(sheds: &Family<ReasonLabel, Counter>) -> Self {
        let of = |reason| sheds.get_or_create_owned(&ReasonLabel { reason });
        Self {
            calls: of("calls"),
            connections: of("connections"),
            half_open: of("half_open"),
            slow: of("slow"),
            waiters: of("waiters"),
            streams: of("streams"),
        }
    }
}

impl Metrics {
    /// All metrics, at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let marks = Family::<OutcomeLabel, Counter>::default();
        let acquires = Family::<OutcomeLabel, Counter>::default();
        let begins = Family::<OutcomeLabel, Counter>::default();
        let finishes = Family::<OutcomeLabel, Counter>::default();
        let sheds = Family::<ReasonLabel, Counter>::default();
        #[cfg(target_os = "linux")]
        registry.register_collector(Box::new(ProcessCollector));
        let methods = MethodFamilies::registered(&mut registry);
        let r = registry.sub_registry_with_prefix("oncegate");
        let mut metrics = Self {
            registry: Arc::default(),
            methods,
            slow: Arc::default(),
            lanes: LaneFamilies::registered(r),
            swept: Family::default(),
            first: marks.get_or_create_owned(&OutcomeLabel { outcome: "first" }),
            duplicate: marks.get_or_create_owned(&OutcomeLabel { outcome: "duplicate" }),
            mismatch: marks.get_or_create_owned(&OutcomeLabel { outcome: "mismatch" }),
            duplicate_cache_hits: Counter::default(),
            duplicate_cache_entries: Gauge::default(),
            duplicate_cache_in_use: Gauge::default(),
            granted: acquires.get_or_create_owned(&OutcomeLabel { outcome: "granted" }),
            held: acquires.get_or_create_owned(&OutcomeLabel { outcome: "held" }),
            turns: TurnMetrics::of(&begins, &finishes),
            waiters: Gauge::default(),
            store_up: Gauge::default(),
            writes: WriteHealth::default(),
            connections: Gauge::default(),
            shed: ShedMetrics::of(&sheds),
            limits: LimitMetrics::default(),
            auth: AuthMetrics::default(),
            reload: ReloadMetrics::default(),
            tls: TlsMetrics::default(),
            durability: DurabilityMetrics::default(),
            traces: TraceMetrics::default(),
            insecure: Gauge::default(),
            draining: Gauge::default(),
            store: StoreMetrics::default(),
        };

        let build = Info::new([("version", env!("CARGO_PKG_VERSION")), ("revision", REVISION)]);
        r.register("build", "Version of this binary, and the commit that it was built from", build);
        r.register("marks", "Marks answered, by outcome", marks);
        r.register(
            "duplicate_cache_hits",
            "Marks and checks answered from the duplicate cache",
            metrics.duplicate_cache_hits.clone(),
        );
        r.register(
            "duplicate_cache_entries",
            "Events in the duplicate cache",
            metrics.duplicate_cache_entries.clone(),
        );
        r.register(
            "duplicate_cache_in_use",
            "Whether the duplicate cache is in use (1) or disabled (0)",
            metrics.duplicate_cache_in_use.clone(),
        );
        r.register("acquires", "Lease requests answered, by outcome", acquires);
        r.register("turns_begun", "Turn requests answered, by outcome", begins);
        r.register("turns_finished", "Turns ended, by outcome", finishes);
        r.register("swept_rows", "Rows deleted, by kind", metrics.swept.clone());
        r.register(
            "session_waiters",
            "Callers waiting for a session on this replica",
            metrics.waiters.clone(),
        );
        r.register(
            "store_up",
            "Whether the store accepts writes (1) or not (0)",
            metrics.store_up.clone(),
        );
        r.register("connections", "Open client connections", metrics.connections.clone());
        r.register("shed", "Calls rejected because of overload, by reason", sheds);
        metrics.limits.register(r);
        metrics.auth.register(r);
        metrics.reload.register(r);
        metrics.tls.register(r);
        metrics.durability.register(r);
        r.register(
            "insecure",
            "Whether --insecure is set (1) or not (0)",
            metrics.insecure.clone(),
        );
        r.register(
            "draining",
            "Whether the server is about to end and not ready any more (1) or not (0)",
            metrics.draining.clone(),
        );
        metrics.traces.register(r);
        metrics.store.register(r);

        metrics.registry = Arc::new(registry);
        metrics
    }

    /// The metrics of one kind of lane.
    #[must_use]
    pub fn lane(&self, lane: &'static str) -> LaneMetrics {
        self.lane_of(lane, None)
    }

    /// The metrics of one kind of lane that writes whatever it is asked for.
    #[must_use]
    pub fn write_lane(&self, lane: &'static str) -> LaneMetrics {
        self.lane_of(lane, Some(self.writes.clone()))
    }

    fn lane_of(&self, lane: &'static str, writes: Option<WriteHealth>) -> LaneMetrics {
        self.lanes.lane(lane, self.store.unknown_outcomes.clone(), writes)
    }

    /// Notes rows that a sweep or a `Cleanup` deleted.
    pub fn swept(&self, kind: &'static str, rows: u64) {
        self.swept.get_or_create(&KindLabel { kind }).inc_by(rows);
    }

    /// Counts the calls of one gRPC method. From its first call on, the counters of the codes `alerted` exist.
    #[must_use]
    pub fn method(
        &self,
        grpc_type: &'static str,
        service: &str,
        method: &str,
        alerted: &'static [CodeName],
    ) -> MethodMetrics {
        self.methods.method(grpc_type, service, method, alerted, Arc::clone(&self.slow))
    }

    /// All metrics.
    #[must_use]
    pub fn render(&self, format: TextFormat) -> String {
        let mut page = String::new();
        // Writing to a String cannot fail.
        let _ = match format {
            TextFormat::Prometheus => prometheus_text::encode(&mut page, &self.registry),
            TextFormat::OpenMetrics => text::encode(&mut page, &self.registry),
        };
        page
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
