//! The metrics of gRPC methods: the conventional ones of gRPC servers, and waits and streams.
//!
//! A series is made when a method is first called: a page then holds only what is used. With it, those of the codes
//! that alerts count begin at 0: Prometheus counts how much a series rises, and not with which value it appears.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::{SlowCalls, metrics::seconds};

/// How many status codes gRPC has:
/// <https://grpc.io/docs/guides/status-codes/>.
const GRPC_CODES: usize = 17;

/// Bounds of the buckets for waits: up to the longest wait of the contract.
const WAITS: [f64; 15] =
    [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];

/// The kind of a method that takes one message and answers one.
pub const UNARY: &str = "unary";

pub(super) type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

fn waits() -> Histogram {
    Histogram::new(WAITS)
}

/// One gRPC method, as the conventional `grpc_server_*` metrics label it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(clippy::struct_field_names, reason = "they are the labels' names")]
struct MethodLabel {
    grpc_type: &'static str,
    grpc_service: String,
    grpc_method: String,
}

/// The same, where the type is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NameLabel {
    grpc_service: String,
    grpc_method: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(clippy::struct_field_names, reason = "they are the labels' names")]
struct CodeLabel {
    grpc_type: &'static str,
    grpc_service: String,
    grpc_method: String,
    grpc_code: &'static str,
}

/// The metrics of all methods.
#[derive(Clone)]
pub(super) struct MethodFamilies {
    started: Family<MethodLabel, Counter>,
    handled: Family<CodeLabel, Counter>,
    handling: Histograms<MethodLabel>,
    waits: Histograms<NameLabel>,
    streams: Family<NameLabel, Gauge>,
}

impl MethodFamilies {
    /// The metrics, without a series, which `registry` has by then.
    pub(super) fn registered(registry: &mut Registry) -> Self {
        let families = Self {
            started: Family::default(),
            handled: Family::default(),
            handling: Family::new_with_constructor(seconds),
            waits: Family::new_with_constructor(waits),
            streams: Family::default(),
        };
        registry.register("grpc_server_started", "RPCs started", families.started.clone());
        registry.register(
            "grpc_server_handled",
            "RPCs completed, by status code",
            families.handled.clone(),
        );
        registry.register_with_unit(
            "grpc_server_handling",
            "Duration of unary RPCs, without the time that they waited for a session",
            Unit::Seconds,
            families.handling.clone(),
        );
        registry.register_with_unit(
            "oncegate_wait",
            "Time that RPCs waited in the queue of a session",
            Unit::Seconds,
            families.waits.clone(),
        );
        registry.register("oncegate_streams", "Open streams", families.streams.clone());
        families
    }

    /// The metrics of one method.
    pub(super) fn method(
        &self,
        grpc_type: &'static str,
        service: &str,
        method: &str,
        alerted: &'static [CodeName],
        slow: Arc<SlowCalls>,
    ) -> MethodMetrics {
        let (grpc_service, grpc_method) = (service.to_owned(), method.to_owned());
        MethodMetrics {
            label: MethodLabel { grpc_type, grpc_service, grpc_method },
            families: self.clone(),
            started: OnceLock::new(),
            seconds: OnceLock::new(),
            waits: OnceLock::new(),
            open: OnceLock::new(),
            codes: [const { OnceLock::new() }; GRPC_CODES],
            alerted,
            slow,
        }
    }
}

/// A status code: its number, and its name, such as `OK`.
pub type CodeName = (usize, &'static str);

/// The metrics of one gRPC method. Each series is looked up once.
pub struct MethodMetrics {
    label: MethodLabel,
    families: MethodFamilies,
    started: OnceLock<Counter>,
    seconds: OnceLock<Histogram>,
    waits: OnceLock<Histogram>,
    open: OnceLock<Gauge>,
    /// By the number of the status code.
    codes: [OnceLock<Counter>; GRPC_CODES],
    /// The codes that begin at 0.
    alerted: &'static [CodeName],
    /// Where its slow calls are logged.
    pub slow: Arc<SlowCalls>,
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
        let started = || {
            for code in self.alerted {
                self.ended_with(*code);
            }
            self.families.started.get_or_create_owned(&self.label)
        };
        self.started.get_or_init(started).inc();
        if !self.is_unary() {
            self.open().inc();
        }
    }

    /// A call ended with the status `code`. `took` is without its wait.
    pub fn handled(&self, code: CodeName, took: Duration) {
        if let Some(counter) = self.ended_with(code) {
            counter.inc();
        }
        if self.is_unary() {
            let seconds = || self.families.handling.get_or_create_owned(&self.label);
            self.seconds.get_or_init(seconds).observe(took.as_secs_f64());
        } else {
            self.open().dec();
        }
    }

    /// A call has waited in the queue of a session.
    pub fn waited(&self, span: Duration) {
        let waits = || self.families.waits.get_or_create_owned(&self.name());
        self.waits.get_or_init(waits).observe(span.as_secs_f64());
    }

    /// Whether its calls are one message each way; otherwise they are streams.
    #[must_use]
    pub fn is_unary(&self) -> bool {
        self.label.grpc_type == UNARY
    }

    fn ended_with(&self, (code, label): CodeName) -> Option<&Counter> {
        let made = || {
            let MethodLabel { grpc_type, grpc_service, grpc_method } = self.label.clone();
            let label = CodeLabel { grpc_type, grpc_service, grpc_method, grpc_code: label };
            self.families.handled.get_or_create_owned(&label)
        };
        Some(self.codes.get(code)?.get_or_init(made))
    }

    fn open(&self) -> &Gauge {
        self.open.get_or_init(|| self.families.streams.get_or_create_owned(&self.name()))
    }

    fn name(&self) -> NameLabel {
        let MethodLabel { grpc_service, grpc_method, .. } = self.label.clone();
        NameLabel { grpc_service, grpc_method }
    }
}
