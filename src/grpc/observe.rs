//! What every call passes through: counting, a bound on how many are under way,
//! and the two things the framework gets wrong (a panic, a foreign content
//! type).

use std::{
    collections::HashMap,
    convert::Infallible,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body::{Body as HttpBody, Frame, SizeHint};
use prost::{Message as _, bytes::Bytes};
use prost_types::FileDescriptorSet;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use super::{pb, status::Problem};
use crate::{
    lane::CallError,
    store::StoreError,
    telemetry::{MethodMetrics, Metrics},
};

/// The methods that count as work: the ones that a drain waits for, and that
/// are refused when there are too many. Health and reflection always answer.
const OURS: &str = "/oncegate.";

/// Wraps every service of the server.
#[derive(Clone)]
pub struct Observe {
    shared: Arc<Shared>,
}

struct Shared {
    methods: HashMap<String, MethodMetrics>,
    unknown: MethodMetrics,
    room: Arc<Semaphore>,
    under_way: TaskTracker,
    metrics: Metrics,
}

impl Observe {
    /// Lets `most` calls be under way at once, and notes each in `under_way`.
    ///
    /// # Errors
    /// When a compiled-in descriptor cannot be read.
    pub fn new(
        metrics: &Metrics,
        most: usize,
        under_way: TaskTracker,
    ) -> Result<Self, prost::DecodeError> {
        let mut methods = HashMap::new();
        for descriptors in [pb::FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET] {
            for file in FileDescriptorSet::decode(descriptors)?.file {
                for service in &file.service {
                    let name = format!("{}.{}", file.package(), service.name());
                    for method in &service.method {
                        let kind = match (method.client_streaming(), method.server_streaming()) {
                            (false, false) => "unary",
                            (true, false) => "client_stream",
                            (false, true) => "server_stream",
                            (true, true) => "bidi_stream",
                        };
                        let counts = metrics.method(kind, &name, method.name());
                        methods.insert(format!("/{name}/{}", method.name()), counts);
                    }
                }
            }
        }
        let shared = Shared {
            methods,
            unknown: metrics.method("unary", "unknown", "unknown"),
            room: Arc::new(Semaphore::new(most)),
            under_way,
            metrics: metrics.clone(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }
}

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, shared: Arc::clone(&self.shared) }
    }
}

/// A service with [`Observe`] around it.
#[derive(Clone)]
pub struct Observed<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if !is_grpc(request.headers()) {
            let mut refusal = Response::new(Body::empty());
            *refusal.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return std::future::ready(Ok(refusal)).boxed();
        }

        let path = request.uri().path();
        let method = self.shared.methods.get(path).unwrap_or(&self.shared.unknown);
        let mut call = Call::begin(method.clone());
        if path.starts_with(OURS) {
            let Ok(room) = Arc::clone(&self.shared.room).try_acquire_owned() else {
                self.shared.metrics.shed.inc();
                return std::future::ready(Ok(call.refuse(Problem::Shed))).boxed();
            };
            call.under_way = Some((room, self.shared.under_way.token()));
        }

        let inner = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        async move {
            let Ok(Ok(response)) = inner.await else {
                let fault = CallError::from(StoreError::fault("a handler panicked"));
                return Ok(call.refuse(fault.into()));
            };
            call.note(response.headers());
            Ok(response.map(|body| Body::new(ObservedBody { body, call })))
        }
        .boxed()
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(http::HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(b"application/grpc"))
}

/// One call, from its first byte to its last; whatever ends it, it is counted.
struct Call {
    method: MethodMetrics,
    begun: Instant,
    code: Option<Code>,
    under_way: Option<(OwnedSemaphorePermit, TaskTrackerToken)>,
}

impl Call {
    fn begin(method: MethodMetrics) -> Self {
        method.started();
        Self { method, begun: Instant::now(), code: None, under_way: None }
    }

    /// Notes the status, which is in the headers of an answer without a body
    /// and in the trailers of any other.
    fn note(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get(Status::GRPC_STATUS) {
            self.code = Some(Code::from_bytes(status.as_bytes()));
        }
    }

    fn refuse(mut self, problem: Problem) -> Response<Body> {
        let status = Status::from(problem);
        self.code = Some(status.code());
        status.into_http()
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(Code::Cancelled);
        self.method.handled(label(code), self.begun.elapsed());
    }
}

/// A body that ends its call.
struct ObservedBody {
    body: Body,
    call: Call,
}

impl HttpBody for ObservedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            self.call.note(trailers);
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

/// A status code as the conventional metrics spell it.
fn label(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
