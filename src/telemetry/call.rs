//! What logs and traces say of one call.
//!
//! Each call has a request id and, if the filter lets `oncegate::call=debug` through, a span
//! from its first byte to its last. Otherwise the span is made only for a line that the call
//! writes, so that every such line has the request id. A call that is sampled has a span that is
//! exported as well, and its lines have the ids of that.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue};
use opentelemetry::{Value, trace::TraceId};
use tokio::{task_local, time::Instant};
use tracing::{Instrument as _, Span, field::Empty};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    CallStatus, MethodMetrics, Traces,
    traceparent::{TRACEPARENT, TraceParent},
    traces::{CallSpan, QueuedSpan},
};

/// What enables a span for each call.
pub const TARGET: &str = "oncegate::call";
/// The caller's own request id.
const REQUEST_ID: &str = "x-request-id";
/// The longest one, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;

task_local! {
    static CALL: CallTrace;
}

/// One call, as its lines in the log and its span name it. Cheap to clone.
#[derive(Clone)]
pub struct CallTrace(Arc<Inner>);

struct Inner {
    method: Arc<MethodMetrics>,
    /// As the caller chose it.
    given: Option<HeaderValue>,
    /// Otherwise.
    random: u64,
    /// Valid.
    parent: Option<TraceParent>,
    /// The span that is exported, of a sampled call.
    sampled: Option<Box<CallSpan>>,
    /// Disabled unless [`TARGET`] is enabled.
    span: Span,
    /// Made for a line of the log.
    late_span: OnceLock<Span>,
    /// A hash of its team; 0 while that is not known.
    team: AtomicU64,
    /// How long it has waited in the queue of a session, in microseconds.
    waited: AtomicU64,
}

/// A span of a call, with the fields that are known as it begins.
macro_rules! span {
    ($level:ident, $call:expr) => {{
        tracing::span!(
            target: TARGET,
            tracing::Level::$level,
            "call",
            method = %$call.method,
            request_id = %$call,
            trace_id = $call.trace_id().map(display),
            span_id = $call.sampled.as_ref().map(|span| display(span.span_id())),
            parent_id = $call.parent.map(|parent| display(parent.span_id)),
            team = Empty,
            attempt = Empty,
            outcome = Empty,
        )
    }};
}

impl CallTrace {
    /// A call of `method` begins, with these headers. It is exported to `traces` if it is sampled.
    #[must_use]
    pub fn begin(
        method: &Arc<MethodMetrics>,
        headers: &HeaderMap,
        traces: Option<&Traces>,
    ) -> Self {
        let given = headers.get(REQUEST_ID).filter(|id| is_request_id(id.as_bytes()));
        let parent = headers.get(TRACEPARENT).and_then(TraceParent::of);
        let sampled = traces.and_then(|traces| traces.begin(method, parent, headers));
        let mut call = Inner {
            method: Arc::clone(method),
            given: given.cloned(),
            random: rand::random(),
            parent,
            sampled: sampled.map(Box::new),
            span: Span::none(),
            late_span: OnceLock::new(),
            team: AtomicU64::new(0),
            waited: AtomicU64::new(0),
        };
        if tracing::enabled!(target: TARGET, tracing::Level::DEBUG) {
            call.span = span!(DEBUG, call);
        }
        if let Some(span) = &call.sampled {
            span.set("oncegate.request_id", call.to_string());
        }
        Self(Arc::new(call))
    }

    /// The call that this task works on.
    #[must_use]
    pub fn current() -> Option<Self> {
        CALL.try_with(Clone::clone).ok()
    }

    /// Runs `work` as this call.
    pub fn follow<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        CALL.scope(self.clone(), work.instrument(self.0.span.clone()))
    }

    /// Runs `step` as this call.
    pub fn step<T>(&self, step: impl FnOnce() -> T) -> T {
        CALL.sync_scope(self.clone(), || self.0.span.in_scope(step))
    }

    /// Writes a line that names this call.
    pub fn log(&self, line: impl FnOnce()) {
        let call = &self.0;
        let span = if call.span.is_disabled() {
            call.late_span.get_or_init(|| span!(ERROR, call))
        } else {
            &call.span
        };
        span.in_scope(line);
    }

    /// The method.
    #[must_use]
    pub fn method(&self) -> &MethodMetrics {
        &self.0.method
    }

    /// A hash of its team, if that is known.
    #[must_use]
    pub fn team(&self) -> Option<String> {
        let team = self.0.team.load(Ordering::Relaxed);
        (team != 0).then(|| format!("{team:016x}"))
    }

    /// How long it has waited in the queue of a session.
    #[must_use]
    pub fn waited(&self) -> Duration {
        Duration::from_micros(self.0.waited.load(Ordering::Relaxed))
    }

    /// The request id.
    #[must_use]
    pub fn id(&self) -> String {
        self.0.to_string()
    }

    /// Whether it has a span, whose fields are worth recording.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        !self.0.span.is_disabled() || self.0.sampled.is_some()
    }

    /// The call ends.
    pub fn end(&self, status: &CallStatus<'_>) {
        if !self.0.span.is_disabled() {
            self.0.span.record("outcome", status.reason.unwrap_or(status.code));
            tracing::debug!(target: TARGET, parent: &self.0.span, "call ended");
        }
        if let Some(span) = &self.0.sampled {
            span.end(status);
        }
    }
}

/// Writes a line that names the call that this task works on, if there is one.
pub fn log(call: Option<&CallTrace>, line: impl FnOnce()) {
    match call {
        Some(call) => call.log(line),
        None => line(),
    }
}

/// Runs `work`, which is to be a task of its own, as the call that this task works on: what it
/// waits is a wait of that call.
pub fn inherit<F: Future>(work: F) -> impl Future<Output = F::Output> {
    match CallTrace::current() {
        Some(call) => CALL.scope(call, work).left_future(),
        None => work.right_future(),
    }
}

/// Times the waits of the call that this task works on in the queue of a session, until it is
/// dropped. All of them together are one wait in the metrics.
pub struct WaitTimer {
    call: Option<CallTrace>,
    total: Option<Duration>,
    since: Option<Instant>,
}

impl WaitTimer {
    /// It does not wait yet.
    #[must_use]
    pub fn of_current() -> Self {
        Self { call: CallTrace::current(), total: None, since: None }
    }

    /// The call waits from now on.
    pub fn resume(&mut self) {
        self.since = Some(Instant::now());
    }

    /// It does not wait any more.
    pub fn pause(&mut self) {
        if let Some(since) = self.since.take() {
            let waited = since.elapsed();
            self.total = Some(self.total.unwrap_or_default() + waited);
            if let Some(span) = self.call.as_ref().and_then(|call| call.0.sampled.as_ref()) {
                span.waited(waited);
            }
        }
    }
}

impl Drop for WaitTimer {
    fn drop(&mut self) {
        self.pause();
        if let (Some(call), Some(total)) = (&self.call, self.total) {
            let micros = u64::try_from(total.as_micros()).unwrap_or(u64::MAX);
            call.0.waited.fetch_add(micros, Ordering::Relaxed);
            call.0.method.waited(total);
        }
    }
}

/// Notes the team of the call that this task works on: a hash of it, for it is the caller's.
pub fn team(team: &str) {
    let _ = CALL.try_with(|call| {
        let hash = xxh3_64(team.as_bytes());
        call.0.team.store(hash, Ordering::Relaxed);
        if call.is_recorded() {
            let hash = format!("{hash:016x}");
            call.0.span.record("team", &hash);
            call.0.note("oncegate.team", hash);
        }
    });
}

/// Operations of the call that this task works on wait in the queue of `lane` from now on.
#[must_use]
pub fn queued(lane: &'static str) -> Option<Box<QueuedSpan>> {
    CALL.try_with(|call| call.0.sampled.as_ref()?.queued(lane)).ok().flatten()
}

/// Notes the attempt of a turn.
pub fn attempt(attempt: i32) {
    let _ = CALL.try_with(|call| {
        call.0.span.record("attempt", attempt);
        call.0.note("oncegate.attempt", i64::from(attempt));
    });
}

impl Inner {
    /// The trace that it belongs to, if that is known.
    fn trace_id(&self) -> Option<TraceId> {
        let own = self.sampled.as_ref().map(|span| span.trace_id());
        own.or_else(|| self.parent.map(|parent| parent.trace_id))
    }

    /// Notes something in the span that is exported.
    fn note(&self, name: &'static str, value: impl Into<Value>) {
        if let Some(span) = &self.sampled {
            span.set(name, value);
        }
    }
}

/// The request id.
impl fmt::Display for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.given.as_ref().and_then(|id| id.to_str().ok()) {
            Some(given) => f.write_str(given),
            None => write!(f, "{:016x}", self.random),
        }
    }
}

/// Whether a caller's request id can stand in a log as it is.
fn is_request_id(id: &[u8]) -> bool {
    (1..=MAX_REQUEST_ID_BYTES).contains(&id.len())
        && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~:/+=@".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_fits_in_a_line() {
        assert!(is_request_id(b"f058ebd6-02f7-4d3f-942e-904344e8cde5"));
        assert!(is_request_id(&[b'x'; 128]));
        for bad in [&b""[..], b"two words", b"a\nb", b"a\"b", "é".as_bytes(), &[b'x'; 129]] {
            assert!(!is_request_id(bad), "{bad:?}");
        }
    }
}
