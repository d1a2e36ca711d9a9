//! The conventional metrics of gRPC servers, by method.

use std::{fmt, sync::OnceLock, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::metrics::{Histograms, seconds};

/// How many status codes gRPC has:
/// <https://grpc.io/docs/guides/status-codes/>.
const GRPC_CODES: usize = 17;

/// One gRPC method, as the conventional `grpc_server_*` metrics label it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(clippy::struct_field_names, reason = "they are the labels' names")]
struct MethodLabel {
    grpc_type: &'static str,
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
}

impl MethodFamilies {
    /// The metrics, at zero, which `registry` has by then.
    pub(super) fn registered(registry: &mut Registry) -> Self {
        let families = Self {
            started: Family::default(),
            handled: Family::default(),
            handling: Family::new_with_constructor(seconds),
        };
        registry.register("grpc_server_started", "RPCs started", families.started.clone());
        registry.register(
            "grpc_server_handled",
            "RPCs completed, by status code",
            families.handled.clone(),
        );
        registry.register_with_unit(
            "grpc_server_handling",
            "RPC duration, including queueing",
            Unit::Seconds,
            families.handling.clone(),
        );
        families
    }

    /// The metrics of one method.
    pub(super) fn method(
        &self,
        grpc_type: &'static str,
        service: &str,
        method: &str,
    ) -> MethodMetrics {
        let label = MethodLabel {
            grpc_type,
            grpc_service: service.to_owned(),
            grpc_method: method.to_owned(),
        };
        MethodMetrics {
            started: self.started.get_or_create_owned(&label),
            seconds: self.handling.get_or_create_owned(&label),
            codes: [const { OnceLock::new() }; GRPC_CODES],
            handled: self.handled.clone(),
            label,
        }
    }
}

/// The metrics of one gRPC method.
pub struct MethodMetrics {
    started: Counter,
    seconds: Histogram,
    /// By the number of the status code, each made when it is first met.
    codes: [OnceLock<Counter>; GRPC_CODES],
    handled: Family<CodeLabel, Counter>,
    label: MethodLabel,
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
                let MethodLabel { grpc_type, grpc_service, grpc_method } = self.label.clone();
                let label = CodeLabel { grpc_type, grpc_service, grpc_method, grpc_code: label };
                self.handled.get_or_create_owned(&label)
            };
            counter.get_or_init(made).inc();
        }
        self.seconds.observe(took.as_secs_f64());
    }
}
