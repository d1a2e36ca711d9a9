//! Every metric of a server, by its name.
//!
//! Architecture Invariant: no label ever holds a key, a holder or anything else
//! that a caller chose, so the number of series is bounded.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
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

use super::{
    DurabilityMetrics, ReloadMetrics, TlsMetrics, WriteHealth,
    method::{MethodFamilies, MethodMetrics},
};

/// A count of one kind of thing, named by one label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneLabel {
    lane: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PrincipalLabel {
    principal: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

pub(super) type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// 50 µs to 26 s, a factor of two apart.
pub(super) fn seconds() -> Histogram {
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
    methods: MethodFamilies,
    lane_rows: Histograms<LaneLabel>,
    lane_seconds: Histograms<LaneLabel>,
    lane_queue: Family<LaneLabel, Gauge>,
    lane_shed: Family<LaneLabel, Counter>,
    swept: Family<KindLabel, Counter>,
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
    /// Answers that another caller holds the session.
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
    /// Callers that are authenticated, and those that are refused.
    pub auth: AuthMetrics,
    /// Files that are read again while the server runs.
    pub reload: ReloadMetrics,
    /// TLS handshakes and the certificate.
    pub tls: TlsMetrics,
    /// Whether what the store commits survives a crash.
    pub durability: DurabilityMetrics,
    /// Whether the server may be reached without TLS and authentication: 1 or 0.
    pub insecure: Gauge,
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
    fn register(&self, r: &mut Registry) {
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
}

impl ShedMetrics {
    fn of(sheds: &Family<ReasonLabel, Counter>) -> Self {
        let of = |reason| sheds.get_or_create_owned(&ReasonLabel { reason });
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
        let marks = Family::<OutcomeLabel, Counter>::default();
        let acquires = Family::<OutcomeLabel, Counter>::default();
        let begins = Family::<OutcomeLabel, Counter>::default();
        let finishes = Family::<OutcomeLabel, Counter>::default();
        let sheds = Family::<ReasonLabel, Counter>::default();
        let mut metrics = Self {
            registry: Arc::default(),
            methods: MethodFamilies::registered(&mut registry),
            lane_rows: Family::new_with_constructor(rows),
            lane_seconds: Family::new_with_constructor(seconds),
            lane_queue: Family::default(),
            lane_shed: Family::default(),
            swept: Family::default(),
            first: marks.get_or_create_owned(&OutcomeLabel { outcome: "first" }),
            duplicate: marks.get_or_create_owned(&OutcomeLabel { outcome: "duplicate" }),
            mismatch: marks.get_or_create_owned(&OutcomeLabel { outcome: "mismatch" }),
            known_hits: Counter::default(),
            known_entries: Gauge::default(),
            known_in_use: Gauge::default(),
            granted: acquires.get_or_create_owned(&OutcomeLabel { outcome: "granted" }),
            held: acquires.get_or_create_owned(&OutcomeLabel { outcome: "held" }),
            turns: TurnMetrics::of(&begins, &finishes),
            waiters: Gauge::default(),
            leases: Gauge::default(),
            store_up: Gauge::default(),
            writes: WriteHealth::default(),
            connections: Gauge::default(),
            shed: ShedMetrics::of(&sheds),
            auth: AuthMetrics::default(),
            reload: ReloadMetrics::default(),
            tls: TlsMetrics::default(),
            durability: DurabilityMetrics::default(),
            insecure: Gauge::default(),
        };

        let r = registry.sub_registry_with_prefix("oncegate");
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
        metrics.auth.register(r);
        metrics.reload.register(r);
        metrics.tls.register(r);
        metrics.durability.register(r);
        r.register(
            "insecure",
            "Whether --insecure is set (1) or not (0)",
            metrics.insecure.clone(),
        );

        metrics.registry = Arc::new(registry);
        metrics
    }

    /// The metrics of one kind of lane.
    #[must_use]
    pub fn lane(&self, lane: &'static str) -> LaneMetrics {
        let label = LaneLabel { lane };
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
        self.swept.get_or_create(&KindLabel { kind }).inc_by(rows);
    }

    /// Counts the calls of one gRPC method.
    #[must_use]
    pub fn method(&self, grpc_type: &'static str, service: &str, method: &str) -> MethodMetrics {
        self.methods.method(grpc_type, service, method)
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
