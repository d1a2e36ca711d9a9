//! Traces: a span for each sampled call, a child of it for each of its waits, and a span for each
//! batch of the store that is linked to the calls that it was run for.
//!
//! The spans are made here rather than from those of `tracing`: a call that is not sampled
//! costs no more than the decision. Their names and attributes are those of
//! <https://opentelemetry.io/docs/specs/semconv/rpc/rpc-spans/>, and `oncegate.*` for what only
//! oncegate has.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant, SystemTime},
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

use super::{traceparent::TraceParent, window::Window};

/// What the caller's tracing system adds to its span:
/// <https://www.w3.org/TR/trace-context/#tracestate-header>.
const TRACESTATE: &str = "tracestate";
/// The longest one that is kept, in bytes: what the specification asks for at least.
const MAX_TRACESTATE_BYTES: usize = 512;
/// The most calls of a replica that are traced in a second. Callers may sample all of theirs, and
/// what the collector cannot take would be dropped here and there.
const MAX_CALLS: u32 = 1_000;
/// The most waits of one call that have a span: a call may wait for days.
const MAX_WAITS: u32 = 32;

/// Decides which calls are traced, and sends their spans to the collector. Cheap to clone.
#[derive(Clone)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    /// The share of calls without a caller's span that are traced.
    ratio: f64,
    calls: Arc<Window>,
    metrics: TraceMetrics,
}

impl Traces {
    /// Traces `ratio` of the calls that bring no caller's span, and makes spans by `provider`,
    /// which records each of them.
    #[must_use]
    pub fn new(provider: SdkTracerProvider, ratio: f64, metrics: TraceMetrics) -> Self {
        let scope = InstrumentationScope::builder("oncegate");
        let scope = scope.with_version(env!("CARGO_PKG_VERSION")).build();
        let tracer = provider.tracer_with_scope(scope);
        let calls = Arc::new(Window::new(Duration::from_secs(1), MAX_CALLS));
        Self { provider, tracer, ratio: ratio.clamp(0.0, 1.0), calls, metrics }
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
        parent: Option<TraceParent>,
        headers: &HeaderMap,
    ) -> Option<CallSpan> {
        let is_sampled = match parent {
            Some(parent) => parent.is_sampled,
            None => rand::random_bool(self.ratio),
        };
        if !is_sampled {
            return None;
        }
        if self.calls.admit(Instant::now()).is_none() {
            self.metrics.calls_left_out.inc();
            return None;
        }
        let parent = match parent {
            Some(parent) => Context::new().with_remote_span_context(remote(parent, headers)),
            None => Context::new(),
        };
        let method = method.to_string();
        let builder = SpanBuilder::from_name(method.clone()).with_kind(SpanKind::Server);
        let attributes =
            [KeyValue::new("rpc.system.name", "grpc"), KeyValue::new("rpc.method", method)];
        let span = builder.with_attributes(attributes).start_with_context(&self.tracer, &parent);
        let (tracer, context) = (self.tracer.clone(), span.span_context().clone());
        Some(CallSpan { tracer, context, span: Mutex::new(span), waits: AtomicU32::new(0) })
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
    /// How often it has waited.
    waits: AtomicU32,
}

impl CallSpan {
    pub(super) fn trace_id(&self) -> TraceId {
        self.context.trace_id()
    }

    pub(super) fn span_id(&self) -> SpanId {
        self.context.span_id()
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
        let waits = self.waits.load(Ordering::Relaxed);
        if waits > MAX_WAITS {
            span.set_attribute(KeyValue::new("oncegate.waits", i64::from(waits)));
        }
        if status.is_server_fault {
            span.set_attribute(KeyValue::new("error.type", status.code));
            span.set_status(Status::error(""));
        }
        span.end();
    }

    /// The call has waited in the queue of a session, until now.
    pub(super) fn waited(&self, duration: Duration) {
        let begun = time::now().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH);
        drop(self.wait(SpanBuilder::from_name("session.wait").with_start_time(begun)));
    }

    /// Operations of the call wait in the queue of a lane from now on.
    pub(super) fn queued(&self, lane: &'static str) -> Option<Box<QueuedSpan>> {
        let builder = SpanBuilder::from_name("lane.wait");
        let wait = self.wait(builder.with_attributes([KeyValue::new("oncegate.lane", lane)]))?;
        let call = without_state(&self.context);
        Some(Box::new(QueuedSpan { tracer: self.tracer.clone(), call, wait: Some(wait) }))
    }

    /// A wait begins; none if the call has had too many.
    fn wait(&self, builder: SpanBuilder) -> Option<Span> {
        if self.waits.fetch_add(1, Ordering::Relaxed) >= MAX_WAITS {
            return None;
        }
        let parent = Context::new().with_remote_span_context(without_state(&self.context));
        Some(builder.start_with_context(&self.tracer, &parent))
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
fn remote(parent: TraceParent, headers: &HeaderMap) -> SpanContext {
    let state = headers.get(TRACESTATE).filter(|state| state.len() <= MAX_TRACESTATE_BYTES);
    let state = state.and_then(|state| state.to_str().ok()?.parse().ok());
    SpanContext::new(
        parent.trace_id,
        parent.span_id,
        TraceFlags::SAMPLED,
        true,
        state.unwrap_or(TraceState::NONE),
    )
}

/// The same span, without what its caller's tracing system added: that is sent once.
fn without_state(context: &SpanContext) -> SpanContext {
    SpanContext::new(
        context.trace_id(),
        context.span_id(),
        context.trace_flags(),
        false,
        TraceState::NONE,
    )
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// What became of spans, whose outcomes have no series before the first. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct TraceMetrics {
    spans: Family<OutcomeLabel, Counter>,
    calls_left_out: Counter,
}

impl TraceMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "trace_spans",
            "Spans sent to --otlp-endpoint, by outcome",
            self.spans.clone(),
        );
        registry.register(
            "trace_calls_left_out",
            "Sampled calls without a span, because too many are traced in a second",
            self.calls_left_out.clone(),
        );
    }

    /// The collector has taken `count` spans.
    pub fn exported(&self, count: u64) {
        self.add("exported", count);
    }

    /// The collector has not taken `count` spans, which are lost.
    pub fn failed(&self, count: u64) {
        self.add("failed", count);
    }

    /// A span is lost, because too many are to be sent.
    pub fn dropped(&self) {
        self.add("dropped", 1);
    }

    fn add(&self, outcome: &'static str, count: u64) {
        self.spans.get_or_create(&OutcomeLabel { outcome }).inc_by(count);
    }
}
