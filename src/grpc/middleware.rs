//! What every call passes through: counting, a bound on how many are under way,
//! and the two things the framework gets wrong (a panic, a foreign content
//! type).

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt::Display,
    future::{self, Future},
    panic::AssertUnwindSafe,
    sync::Arc,
};

use anyhow::Context as _;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body::Body as HttpBody;
use prost::{Message as _, bytes::Bytes};
use prost_types::FileDescriptorSet;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{server::NamedService as _, service::Routes};
use tower::Service as _;

use super::{
    Idempotency,
    access::Access,
    arriving::{Arriving, HalfOpen, Reads},
    caller::Caller,
    code::ALERTED,
    door::{Callers, Door, Known},
    pb::{self, idempotency_service_server::IdempotencyServiceServer},
    server_info::VERSION,
    status::Problem,
    web::{self, Protocol},
};
use crate::{
    session::StreamCaller,
    sockets::PeerIdentity,
    telemetry::{MethodMetrics, Metrics, Traces, UNARY},
};

mod call;

use call::Call;
pub use call::ObservedBody;

/// The longest metadata of one call, counted as HTTP/2 does, in bytes.
const MAX_METADATA_BYTES: usize = 16 * 1024;
/// What HTTP/2 adds to the length of each field:
/// <https://www.rfc-editor.org/rfc/rfc9113.html#section-10.5.1>.
const FIELD_OVERHEAD: usize = 32;

/// The header of every response with the server's version.
const VERSION_HEADER: HeaderName = HeaderName::from_static("oncegate-version");

/// What the calls of all workers have in common. Cheap to clone.
#[derive(Clone)]
pub struct CallMetrics(Arc<Shared>);

/// One method of the contract, of health or of reflection.
#[derive(Clone)]
struct Method {
    metrics: Arc<MethodMetrics>,
    shape: Shape,
}

/// How a method is served.
#[derive(Clone, Copy)]
struct Shape {
    reads: Reads,
    /// Whether its answer is one message.
    answers_once: bool,
    /// Whether it counts as work: a drain waits for it, and it is refused when there are
    /// too many. Health and reflection always answer.
    is_work: bool,
    /// Whether it belongs to `IdempotencyService`.
    is_idempotency: bool,
    access: Access,
}

/// The most streams of a connection on which no caller was let in: those of health. A client watches the health of
/// each of its connections by one.
const MAX_WATCHES: usize = 4;

/// One connection, as its calls and its server know it.
#[derive(Default)]
pub struct Connection {
    /// Who is at the other end.
    pub peer: PeerIdentity,
    /// Cancelled once a call was refused because there are too many connections, or many calls
    /// because their callers were not known.
    pub refused: CancellationToken,
    /// Cancelled when the server ends the connection: its streams end then.
    pub leaving: CancellationToken,
    /// Who calls.
    callers: Callers,
    /// The streams on it that are none of the contract's.
    watches: TaskTracker,
}

/// A call, the length of its metadata, and its caller.
type Begun = (Call, usize, Option<Arc<Caller>>);

impl Connection {
    /// A connection of `peer`, which notes in `known` that a caller is let in.
    #[must_use]
    pub fn of(peer: PeerIdentity, known: Arc<Known>) -> Self {
        Self { peer, callers: Callers::noting(known), ..Self::default() }
    }
}

struct Shared {
    methods: HashMap<String, Method>,
    unknown: Method,
    /// The most calls under way.
    most: usize,
    under_way: TaskTracker,
    metrics: Metrics,
    /// None without `--auth`.
    door: Option<Arc<Door>>,
    /// None without `--otlp-endpoint`.
    traces: Option<Traces>,
}

impl CallMetrics {
    /// Lets `most` calls be under way at once, and notes each in `under_way`.
    ///
    /// Callers are let in by `door`, and all of them without one; calls are traced by `traces`.
    ///
    /// # Errors
    /// When a compiled-in descriptor cannot be read, or has a method that no role is given for.
    pub fn new(
        metrics: &Metrics,
        most: usize,
        under_way: TaskTracker,
        door: Option<Arc<Door>>,
        traces: Option<Traces>,
    ) -> anyhow::Result<Self> {
        let mut methods = HashMap::new();
        for descriptors in [
            pb::FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ] {
            for file in FileDescriptorSet::decode(descriptors)?.file {
                for service in &file.service {
                    let name = format!("{}.{}", file.package(), service.name());
                    let is_work = name.starts_with("oncegate.");
                    let alerted: &[_] = if is_work { &ALERTED } else { &[] };
                    for method in &service.method {
                        let (kind, reads) =
                            match (method.client_streaming(), method.server_streaming()) {
                                (false, false) => (UNARY, Reads::OnlyMessage),
                                (true, false) => ("client_stream", Reads::FirstMessage),
                                (false, true) => ("server_stream", Reads::OnlyMessage),
                                (true, true) => ("bidi_stream", Reads::FirstMessage),
                            };
                        let metrics = Arc::new(metrics.method(kind, &name, method.name(), alerted));
                        let path = format!("/{name}/{}", method.name());
                        let access = Access::to(&name, method.name());
                        let access = access.with_context(|| format!("{path} has no role"))?;
                        let shape = Shape {
                            reads,
                            answers_once: !method.server_streaming(),
                            is_work,
                            is_idempotency: name == IdempotencyServiceServer::<Idempotency>::NAME,
                            access,
                        };
                        methods.insert(path, Method { metrics, shape });
                    }
                }
            }
        }
        let unknown = Arc::new(metrics.method(UNARY, "unknown", "unknown", &[]));
        let shape = Shape {
            reads: Reads::Nothing,
            answers_once: true,
            is_work: false,
            is_idempotency: false,
            access: Access::UNKNOWN,
        };
        let unknown = Method { metrics: unknown, shape };
        let metrics = metrics.clone();
        Ok(Self(Arc::new(Shared { methods, unknown, most, under_way, metrics, door, traces })))
    }
}

/// Everything that one worker answers. Cheap to clone.
#[derive(Clone)]
pub struct GrpcService {
    /// What there are many calls of.
    idempotency: IdempotencyServiceServer<Idempotency>,
    /// Everything else.
    others: Routes,
    half_open: HalfOpen,
    observe: CallMetrics,
    /// Whether it answers the contract's calls, or only health and reflection.
    takes_work: bool,
    connection: Arc<Connection>,
}

impl GrpcService {
    /// Answers with `idempotency`, and with `others` what that does not know,
    /// once a call's message is whole; until then the call is in `half_open`.
    #[must_use]
    pub fn new(
        idempotency: IdempotencyServiceServer<Idempotency>,
        others: Routes,
        half_open: HalfOpen,
        observe: CallMetrics,
    ) -> Self {
        let connection = Arc::default();
        Self { idempotency, others, half_open, observe, takes_work: true, connection }
    }

    /// The same for connections over the limit: it answers health and reflection,
    /// and refuses everything else.
    #[must_use]
    pub fn health_only(&self) -> Self {
        Self { takes_work: false, ..self.clone() }
    }

    /// The same for one connection.
    #[must_use]
    pub fn on(&self, connection: Arc<Connection>) -> Self {
        Self { connection, ..self.clone() }
    }

    /// Answers one call, of gRPC or of gRPC-Web.
    ///
    /// # Errors
    /// Never: whatever goes wrong is an answer.
    pub fn answer<B>(
        &self,
        request: Request<B>,
    ) -> impl Future<Output = Result<Response<ObservedBody>, Infallible>> + Send + use<B>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<tonic::codegen::StdError> + Display + Send + 'static,
    {
        match Protocol::of(&request) {
            Protocol::Grpc => self.call(request).left_future(),
            Protocol::Web(kind) => {
                web::answer(self.clone(), request, kind).boxed().left_future().right_future()
            }
            Protocol::Unsupported => {
                future::ready(Ok(web::unsupported())).right_future().right_future()
            }
        }
    }

    /// Answers one call of gRPC.
    pub(super) fn call<B>(
        &self,
        request: Request<B>,
    ) -> impl Future<Output = Result<Response<ObservedBody>, Infallible>> + Send + use<B>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<tonic::codegen::StdError> + Send + 'static,
    {
        let (mut call, metadata, caller) = match self.begin(&request) {
            Ok(begun) => begun,
            Err(refusal) => return future::ready(Ok(with_version(*refusal))).left_future(),
        };
        let mut gate = self.clone();
        // Combinators rather than `async`: a request that has been handed on takes no memory.
        let Shape { reads, is_idempotency, .. } = call.method.shape;
        let arriving = Arriving::new(request, reads, metadata, self.half_open.clone());
        let answering = arriving.then(move |arrived| {
            let admitted = arrived.and_then(|request| gate.admit(request, &mut call));
            let request = match admitted {
                Ok(request) => request,
                Err(problem) => {
                    gate.count(&problem);
                    return future::ready(call.refuse(problem)).left_future();
                }
            };
            let answer = if is_idempotency {
                gate.idempotency.call(request).left_future()
            } else {
                gate.others.call(request).right_future()
            };
            let access = call.method.shape.access;
            let answer = Caller::scope(caller, access, AssertUnwindSafe(answer).catch_unwind());
            let answer = call.trace.follow(answer);
            answer.map(|answer| call.answer(answer)).right_future()
        });
        answering.map(|response| Ok(with_version(response))).right_future()
    }

    /// Counts a call in, or refuses it: after its caller was authenticated, and before anything
    /// is read of its message. Answers the length of its metadata as well, and its caller.
    fn begin<B>(&self, request: &Request<B>) -> Result<Begun, Box<Response<ObservedBody>>> {
        if !is_grpc(request.headers()) {
            return Err(Box::new(web::unsupported()));
        }
        let shared = &self.observe.0;
        let method = shared.methods.get(request.uri().path()).unwrap_or(&shared.unknown);
        let traces = shared.traces.as_ref().filter(|_| method.shape.is_work);
        let mut call = Call::begin(method, request.headers(), traces);
        let metadata = length(request.headers());
        if metadata > MAX_METADATA_BYTES {
            return Err(Box::new(call.refuse(Problem::Metadata(MAX_METADATA_BYTES))));
        }
        match self.authorize(&mut call, request.headers()) {
            Ok(caller) => Ok((call, metadata, caller)),
            Err(problem) => {
                self.count(&problem);
                Err(Box::new(call.refuse(problem)))
            }
        }
    }

    /// Who makes `call`, if the caller may; none if it need not be known.
    fn authorize(
        &self,
        call: &mut Call,
        headers: &HeaderMap,
    ) -> Result<Option<Arc<Caller>>, Problem> {
        let Connection { peer, refused, callers, .. } = &*self.connection;
        let door = self.observe.0.door.as_ref();
        let access = call.method.shape.access;
        let caller = callers.admit(door, (access, headers), (peer, &call.trace), refused)?;
        if let Some(caller) = &caller {
            call.quota = caller.begin_call(access, Some(&call.trace))?;
            if call.method.metrics.is_unary() {
                call.caller = Some(Arc::clone(caller));
            }
        }
        Ok(caller)
    }

    /// Counts a call that is refused for load.
    fn count(&self, problem: &Problem) {
        let shed = &self.observe.0.metrics.shed;
        let count = match problem {
            Problem::Shed => &shed.calls,
            Problem::Connections => &shed.connections,
            Problem::HalfOpen => &shed.half_open,
            Problem::Slow(_) => &shed.slow,
            _ => return,
        };
        count.inc();
    }

    /// Gives a call whose message is whole a place among those under way.
    fn admit<B>(&self, mut request: Request<B>, call: &mut Call) -> Result<Request<B>, Problem> {
        if !call.method.shape.is_work {
            if !call.method.shape.answers_once {
                let watches = &self.connection.watches;
                if watches.len() >= MAX_WATCHES && !self.connection.callers.are_known() {
                    return Err(Problem::Watches);
                }
                call.place = Some(watches.token());
            }
            return Ok(request);
        }
        if !self.takes_work {
            self.connection.refused.cancel();
            return Err(Problem::Connections);
        }
        let shared = &self.observe.0;
        // Callers that come in the same moment may see the last place free,
        // each on its own worker: the bound gives by one a worker.
        if shared.under_way.len() >= shared.most {
            return Err(Problem::Shed);
        }
        let place = Some(shared.under_way.token());
        if call.method.shape.answers_once {
            call.place = place;
        } else {
            // It is done when its stream is, read or not.
            let leaving = self.connection.leaving.clone();
            request.extensions_mut().insert(StreamCaller::new(leaving, place));
        }
        Ok(request)
    }
}

/// Every response names the version that gave it.
pub(super) fn with_version<B>(mut response: Response<B>) -> Response<B> {
    response.headers_mut().insert(VERSION_HEADER, HeaderValue::from_static(VERSION));
    response
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(b"application/grpc"))
}

/// How long metadata is, in bytes.
fn length(headers: &HeaderMap) -> usize {
    let fields = headers.iter();
    let bytes = fields.map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD);
    bytes.sum()
}
