//! Traces: a span for each sampled call, a child of it for each of its waits, and a span for each
//! batch of the store that is linked to the calls that it was run for.
//!
//! The spans are made by hand rather than from those of `tracing`: a call that is not sampled
//! costs no more than the decision. Their names and attributes are those of
//! <https://opentelemetry.io/docs/specs/semconv/rpc/rpc-spans/>, and `oncegate.*` for what only
//! oncegate has.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use http::HeaderMap;
use opentelemetry::{
    Context, InstrumentationScope, KeyValue, Value, time,
    trace::{
        Link, Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _,
        TraceFlags, TraceId, TraceState, TracerProvider as _,
    },
};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{SdkTracer, SdkTracerProvider, Span},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::traceparent::TraceParent;

/// What the caller's tracing system adds to its span:
/// <https://www.w3.org/TR/trace-context/#tracestate-header>.
const TRACESTATE: &str = "tracestate";

/// Decides which calls are traced, and sends their spans to the collector. Cheap to clone.
#[derive(Clone)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    /// The share of calls without a caller's span that are traced.
    ratio: f64,
}

impl Traces {
    /// Traces `ratio` of the calls that bring no caller's span, and makes spans by `provider`,
    /// which records each of them.
    #[must_use]
    pub fn new(provider: SdkTracerProvider, ratio: f64) -> Self {
        let scope = InstrumentationScope::builder("oncegate");
        let scope = scope.with_version(env!("CARGO_PKG_VERSION")).build();
        Self { tracer: provider.tracer_with_scope(scope), provider, ratio }
    }

    /// Sends what is left, for at most `timeout`, and ends; spans that end later are lost. Blocks.
    ///
    /// # Errors
    /// When something could not be sent.
    pub fn shutdown(&self, timeout: Duration) -> OTelSdkResult {
        self.provider.shutdown_with_timeout(timeout)
    }

    /// The span of a call of `method` that begins, if it is sampled: as its caller's span is, by
    /// the ratio if it has none.
    pub(super) fn begin(
        &self,
        method: &impl ToString,
        parent: Option<TraceParent<'_>>,
        headers: &HeaderMap,
    ) -> Option<CallSpan> {
        let is_sampled = match parent {
            Some(parent) => parent.is_sampled,
            None => rand::random_bool(self.ratio),
        };
        if !is_sampled {
            return None;
        }
        let parent = match parent {
            Some(parent) => Context::new().with_remote_span_context(remote(parent, headers)?),
            None => Context::new(),
        };
        let method = method.to_string();
        let builder = SpanBuilder::from_name(method.clone()).with_kind(SpanKind::Server);
        let attributes =
            [KeyValue::new("rpc.system.name", "grpc"), KeyValue::new("rpc.method", method)];
        let span = builder.with_attributes(attributes).start_with_context(&self.tracer, &parent);
        let (tracer, context) = (self.tracer.clone(), span.span_context().clone());
        Some(CallSpan { tracer, context, span: Mutex::new(span) })
    }
}

/// How a call has ended.
pub struct CallStatus<'a> {
    /// The name of its status code, as gRPC spells it.
    pub code: &'static str,
    /// Why it failed, if an error of the contract says so.
    pub reason: Option<&'a str>,
    /// Whether the code says that the server is at fault.
    pub is_server_fault: bool,
}

/// The span of a call that is sampled.
pub(super) struct CallSpan {
    tracer: SdkTracer,
    context: SpanContext,
    span: Mutex<Span>,
}

impl CallSpan {
    /// The trace, as 32 hexadecimal digits.
    pub(super) fn trace_id(&self) -> String {
        self.context.trace_id().to_string()
    }

    /// The span, as 16 hexadecimal digits.
    pub(super) fn span_id(&self) -> String {
        self.context.span_id().to_string()
    }

    /// Notes something about the call.
    pub(super) fn set(&self, name: &'static str, value: impl Into<Value>) {
        self.span().set_attribute(KeyValue::new(name, value));
    }

    /// The call ends.
    pub(super) fn end(&self, status: &CallStatus<'_>) {
        let mut span = self.span();
        span.set_attribute(KeyValue::new("rpc.response.status_code", status.code));
        if let Some(reason) = status.reason {
            span.set_attribute(KeyValue::new("oncegate.reason", reason.to_owned()));
        }
        if status.is_server_fault {
            span.set_attribute(KeyValue::new("error.type", status.code));
            span.set_status(Status::error(""));
        }
        span.end();
    }

    /// The call has waited in the queue of a session, until now.
    pub(super) fn waited(&self, span: Duration) {
        let begun = time::now().checked_sub(span).unwrap_or(SystemTime::UNIX_EPOCH);
        drop(self.child(SpanBuilder::from_name("session.wait").with_start_time(begun)));
    }

    /// Operations of the call wait in the queue of a lane from now on.
    pub(super) fn queued(&self, lane: &'static str) -> QueuedSpan {
        let wait = self.child(
            SpanBuilder::from_name("lane.wait")
                .with_attributes([KeyValue::new("oncegate.lane", lane)]),
        );
        QueuedSpan { tracer: self.tracer.clone(), call: self.context.clone(), wait: Some(wait) }
    }

    fn child(&self, builder: SpanBuilder) -> Span {
        let parent = Context::new().with_remote_span_context(self.context.clone());
        builder.start_with_context(&self.tracer, &parent)
    }

    fn span(&self) -> MutexGuard<'_, Span> {
        self.span.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What operations in a lane know of their call, if it is sampled.
pub struct QueuedSpan {
    tracer: SdkTracer,
    call: SpanContext,
    /// Until their first batch begins.
    wait: Option<Span>,
}

/// The span of a batch. It ends when this is dropped.
pub struct BatchSpan(#[expect(dead_code, reason = "it ends when it is dropped")] Span);

impl BatchSpan {
    /// A batch of `rows` begins in `lane`, for these operations and others; none if none of the
    /// calls is sampled. It is in a trace of its own, linked to each of them, and each wait that
    /// it ends is linked to it.
    #[must_use]
    pub fn begin<'a>(
        queued: impl Iterator<Item = &'a mut QueuedSpan>,
        lane: &'static str,
        rows: usize,
    ) -> Option<Self> {
        let mut queued: Vec<_> = queued.collect();
        let tracer = queued.first()?.tracer.clone();
        // A call may have several parts in a batch: one for each of its teams.
        let mut calls = HashSet::new();
        let links = queued.iter().filter(|op| calls.insert(op.call.span_id()));
        let links = links.map(|op| Link::with_context(op.call.clone())).collect();
        let rows = i64::try_from(rows).unwrap_or(i64::MAX);
        let span = SpanBuilder::from_name("store.batch")
            .with_attributes([
                KeyValue::new("oncegate.lane", lane),
                KeyValue::new("oncegate.batch.rows", rows),
            ])
            .with_links(links)
            .start_with_context(&tracer, &Context::new());
        for op in &mut queued {
            if let Some(mut wait) = op.wait.take() {
                wait.add_link(span.span_context().clone(), Vec::new());
            }
        }
        Some(Self(span))
    }
}

/// The caller's span.
fn remote(parent: TraceParent<'_>, headers: &HeaderMap) -> Option<SpanContext> {
    let state = headers.get(TRACESTATE).and_then(|state| state.to_str().ok()?.parse().ok());
    Some(SpanContext::new(
        TraceId::from_hex(parent.trace_id).ok()?,
        SpanId::from_hex(parent.span_id).ok()?,
        TraceFlags::SAMPLED,
        true,
        state.unwrap_or(TraceState::NONE),
    ))
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// What became of spans. Without a series until some have been sent. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct TraceMetrics(Family<OutcomeLabel, Counter>);

impl TraceMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "trace_spans",
            "Spans sent to --otlp-endpoint, by outcome",
            self.0.clone(),
        );
    }

    /// The collector has taken `count` spans.
    pub fn exported(&self, count: u64) {
        self.add("exported", count);
    }

    /// `count` spans are lost.
    pub fn failed(&self, count: u64) {
        self.add("failed", count);
    }

    fn add(&self, outcome: &'static str, count: u64) {
        self.0.get_or_create(&OutcomeLabel { outcome }).inc_by(count);
    }
}
