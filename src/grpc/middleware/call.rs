//! One call as it is counted, and the body that ends it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    thread,
    time::{Duration, Instant},
};

use http::{HeaderMap, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use prost::bytes::Bytes;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::{Code, Status, body::Body};
use tonic_types::StatusExt as _;

use super::Method;
use crate::{
    auth::UsageGuard,
    grpc::{
        arriving::Reads,
        caller::Caller,
        code,
        status::{self, Problem},
    },
    lane::CallError,
    store::StoreError,
    telemetry::{CallStatus, Ended, Traces, call::CallTrace},
};

/// Where a status has its details: in the headers of an answer without a body.
const STATUS_DETAILS: &str = "grpc-status-details-bin";

/// One call, from its first byte to its last; whatever ends it, it is counted.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) trace: CallTrace,
    begun: Instant,
    /// How long its work took: how long its answer then waits for a caller to read it is not ours.
    worked: Option<Duration>,
    code: Option<Code>,
    /// Why it failed, if it has a span.
    reason: Option<String>,
    /// Its place among those under way; a stream of the contract keeps its own.
    pub(super) place: Option<TaskTrackerToken>,
    /// Its place among the calls of its principal.
    pub(super) quota: Option<UsageGuard>,
    /// Who made a call that answers once, for the log of slow ones.
    pub(super) caller: Option<Arc<Caller>>,
}

impl Call {
    pub(super) fn begin(method: &Method, headers: &HeaderMap, traces: Option<&Traces>) -> Self {
        method.metrics.started();
        let trace = CallTrace::begin(&method.metrics, headers, traces);
        let (method, begun) = (method.clone(), Instant::now());
        let (worked, code, reason, place, quota, caller) = Default::default();
        Self { method, trace, begun, worked, code, reason, place, quota, caller }
    }

    /// Notes the status, which is in the headers of an answer without a body
    /// and in the trailers of any other.
    fn note(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get(Status::GRPC_STATUS) {
            self.code = Some(Code::from_bytes(status.as_bytes()));
            if self.trace.is_recorded() {
                let info = Status::from_header_map(headers)
                    .and_then(|status| status.get_details_error_info());
                self.reason = info.map(|info| info.reason);
            }
        }
    }

    /// Makes what a service answered this call's answer.
    pub(super) fn answer<E>(
        mut self,
        answer: thread::Result<Result<Response<Body>, E>>,
    ) -> Response<ObservedBody> {
        self.worked = Some(self.begun.elapsed());
        let Ok(Ok(response)) = answer else {
            let fault = CallError::from(StoreError::internal("a handler panicked"));
            return self.refuse(Problem::from(fault));
        };
        self.note(response.headers());
        // Errors of ours have details.
        if self.code.is_some_and(|code| code != Code::Ok)
            && self.method.shape.reads != Reads::Nothing
            && !response.headers().contains_key(STATUS_DETAILS)
            && let Some(status) = Status::from_header_map(response.headers())
        {
            return self.refuse(status::of_framework(status));
        }
        response.map(|body| ObservedBody { body, call: Some(self) })
    }

    pub(super) fn refuse(mut self, status: impl Into<Status>) -> Response<ObservedBody> {
        let trace = self.trace.clone();
        let response = trace.step(|| status.into().into_http());
        self.note(response.headers());
        response.map(|body| ObservedBody { body, call: Some(self) })
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(Code::Cancelled);
        let elapsed = self.worked.unwrap_or_else(|| self.begun.elapsed());
        let (metrics, wait) = (&self.method.metrics, self.trace.waited());
        let took = elapsed.saturating_sub(wait);
        metrics.handled(code::metric(code), took);
        if metrics.is_unary() && metrics.slow.includes(took) {
            let principal = self.caller.as_ref().and_then(|caller| caller.principal());
            let principal = principal.as_deref();
            metrics.slow.log(&Ended {
                call: &self.trace,
                code: code::name(code),
                elapsed,
                wait,
                principal,
            });
        }
        self.trace.end(&CallStatus {
            code: code::name(code),
            reason: self.reason.as_deref(),
            is_server_fault: code::is_server_fault(code),
        });
    }
}

/// A body that ends its call.
pub struct ObservedBody {
    body: Body,
    call: Option<Call>,
}

impl From<Body> for ObservedBody {
    /// A body whose call is counted elsewhere, or is none.
    fn from(body: Body) -> Self {
        Self { body, call: None }
    }
}

impl HttpBody for ObservedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { body, call } = &mut *self;
        let frame = match call {
            // Its work goes on.
            Some(call) if !call.method.shape.answers_once => {
                call.trace.step(|| Pin::new(body).poll_frame(context))
            }
            _ => Pin::new(body).poll_frame(context),
        };
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(call) = &mut self.call
        {
            match frame.trailers_ref() {
                Some(trailers) => call.note(trailers),
                // The work is done; a caller that does not read its answer keeps no place.
                None if call.method.shape.answers_once => {
                    (call.place, call.quota) = (None, None);
                }
                None => {}
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
