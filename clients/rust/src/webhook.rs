//! Guards the handlers of webhooks: each delivery is handled once, in its conversation's turn.
//!
//! ```no_run
//! # use oncegate_client::{Gate, github, webhook::Guard};
//! # use tower::{Layer, service_fn};
//! # fn example(gate: Gate) {
//! let guard = Guard::new(gate, |request| github(&request.headers, &request.body));
//! # let handler = service_fn(|_: http::Request<oncegate_client::Body>| async {
//! #     Ok::<_, std::convert::Infallible>(http::Response::new(String::new()))
//! # });
//! let guarded = guard.layer(handler); // or .layer(guard), in axum
//! # let _ = guarded; }
//! ```
//!
//! Verify the sender's signature before the guard. The handler's turn is
//! `request.extensions().get::<Turn>()`.
//!
//! A status below 500 ends the turn, and a duplicate gets the same status, headers and body, or the status
//! alone if their record is longer than 64 KiB, which takes a body of about 47 KiB. A status of 500 or more,
//! an error of the handler or a panic fails the turn. While another run has the event or its conversation, or
//! the server is unavailable, the sender gets 503 with `Retry-After`.
//!
//! The bodies of requests, of at most 32 MiB, and of guarded responses are read into memory: a route that streams
//! is none for a guard.
//!
//! A response is sent once the turn has ended. If the sender's connection ends before, what serves it drops
//! the handler, and the turn fails at once: the redelivery gets the event. If the turn is lost, the handler
//! is dropped.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, request};
use http_body_util::{BodyExt as _, Full};
use sha2::{Digest as _, Sha256};
use tower_layer::Layer;
use tower_service::Service;

use self::answers::{instead, read, record_of, respond};
use crate::{Body, Delivery, Gate, Turn, TurnRequest, TurnScope, errors::BoxError};

pub(crate) mod answers;

/// Senders wait 10 s and longer.
const PATIENCE: Duration = Duration::from_secs(5);
const WAIT_WITHOUT_REDELIVERY: Duration = Duration::from_secs(5);

/// More than GitHub sends.
const MAX_BODY: usize = 32 << 20;

/// A request, as what names its delivery sees it.
#[derive(Clone)]
#[non_exhaustive]
pub struct Received {
    /// Its headers.
    pub headers: HeaderMap,
    /// Its method and path, with the query: `POST /pay?x=1`.
    pub target: String,
    /// Its body.
    pub body: Bytes,
}

/// `None`: the handler runs without a turn. An error is the text of an answer 400.
type Name = dyn Fn(&Received) -> Result<Option<Delivery>, &'static str> + Send + Sync;

/// Shows no values of headers, and no body: they may be secret.
impl std::fmt::Debug for Received {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let headers: Vec<_> = self.headers.keys().collect();
        let mut shown = f.debug_struct("Received");
        shown.field("target", &self.target).field("headers", &headers);
        shown.field("body", &self.body.len()).finish()
    }
}

pub(crate) type Options = dyn Fn(TurnRequest) -> TurnRequest + Send + Sync;

/// A [`Layer`] that runs a handler in the turn of the request's delivery.
#[derive(Clone)]
pub struct Guard {
    gate: Gate,
    name: Arc<Name>,
    options: Arc<Options>,
}

/// A handler behind a [`Guard`].
#[derive(Debug, Clone)]
pub struct Guarded<S> {
    guard: Guard,
    inner: S,
}

impl Guard {
    /// A guard that names a delivery by a function, such as [`github`](crate::github).
    pub fn new(gate: Gate, name: impl Fn(&Received) -> Delivery + Send + Sync + 'static) -> Self {
        Self {
            gate,
            name: Arc::new(move |request| Ok(Some(name(request)))),
            options: Arc::new(|turn| turn),
        }
    }

    /// A guard of requests with an `Idempotency-Key`, of the caller that a function names, such as its
    /// account. The same key with another method, path or body gets 422, and a key that cannot be used 400.
    /// A request without a key is handled without a turn.
    pub fn idempotency_key(
        gate: Gate,
        caller: impl Fn(&Received) -> String + Send + Sync + 'static,
    ) -> Self {
        let name = move |request: &Received| {
            let mut keys = request.headers.get_all("idempotency-key").iter();
            let Some(key) = keys.next() else { return Ok(None) };
            let unusable = "the Idempotency-Key must be one text in ASCII";
            let key = key.to_str().map_err(|_| unusable)?.trim();
            // Of RFC 8941: a string in quotes.
            let key = key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(key);
            let mut content = request.target.clone().into_bytes();
            content.push(b'\n');
            content.extend_from_slice(&request.body);
            let delivery =
                Delivery::new(caller(request), key).digest(Sha256::digest(&content).to_vec());
            // A caller that sends a key relies on it.
            if key.is_empty() || keys.next().is_some() { Err(unusable) } else { Ok(Some(delivery)) }
        };
        Self { gate, name: Arc::new(name), options: Arc::new(|turn| turn) }
    }

    /// Sets options of each turn, such as [`TurnRequest::wait`]. A delivery that is not sent again waits
    /// 5 s for its conversation, unless they say otherwise.
    #[must_use]
    pub fn with(
        mut self,
        options: impl Fn(TurnRequest) -> TurnRequest + Send + Sync + 'static,
    ) -> Self {
        self.options = Arc::new(options);
        self
    }
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("gate", &self.gate).finish_non_exhaustive()
    }
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { guard: self.clone(), inner }
    }
}

impl<S, B, R> Service<Request<B>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let guard = self.guard.clone();
        // The one that is ready is used, and its copy is left.
        let next = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, next);
        Box::pin(async move { handle(guard, inner, request).await })
    }
}

async fn handle<S, B, R>(
    guard: Guard,
    mut inner: S,
    request: Request<B>,
) -> Result<Response<Body>, S::Error>
where
    S: Service<Request<Body>, Response = Response<R>>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    let (parts, body) = request.into_parts();
    let body = match read(body, MAX_BODY).await {
        Ok(body) => body,
        Err(response) => return Ok(made(response)),
    };
    let received = received(&parts, body.clone());
    let mut request = Request::from_parts(parts, Body::new(Full::new(body)));
    let delivery = match (guard.name)(&received) {
        Ok(Some(delivery)) => delivery,
        Ok(None) => return Ok(inner.call(request).await?.map(Body::new)),
        Err(problem) => return Ok(made(respond(StatusCode::BAD_REQUEST, problem))),
    };
    let sent_once = delivery.is_sent_once();
    let mut turn = guard.gate.turn(delivery).patience(PATIENCE);
    if sent_once {
        turn = turn.wait(WAIT_WITHOUT_REDELIVERY);
    }
    let turn = match (guard.options)(turn).begin().await {
        Ok(turn) => turn,
        Err(error) => return Ok(made(instead(&error))),
    };
    request.extensions_mut().insert::<Turn>(turn.turn().clone());
    let handled = async {
        let (parts, body) = inner.call(request).await?.into_parts();
        let body = body.collect().await.map_err(Into::<BoxError>::into);
        Ok(body.map(|body| Response::from_parts(parts, body.to_bytes())))
    };
    // A handler that is dropped, or panics, drops the turn, which fails it.
    let response = tokio::select! {
        biased;
        response = handled => response,
        lost = turn.lost() => return Ok(made(instead(&lost))),
    };
    match response {
        Ok(Ok(response)) => Ok(made(end(turn, response).await)),
        Ok(Err(error)) => {
            tracing::error!(%error, "the body of a handler's response cannot be read");
            turn.fail("the handler's body cannot be read").await;
            Ok(made(respond(StatusCode::INTERNAL_SERVER_ERROR, "internal error")))
        }
        Err(error) => {
            turn.fail("the handler failed").await;
            Err(error)
        }
    }
}

pub(crate) fn made(response: Response<Bytes>) -> Response<Body> {
    response.map(|body| Body::new(Full::new(body)))
}

fn received(parts: &request::Parts, body: Bytes) -> Received {
    Received {
        headers: parts.headers.clone(),
        // Without the host, which is in the URI with HTTP/2.
        target: format!(
            "{} {}",
            parts.method,
            parts.uri.path_and_query().map_or("/", |it| it.as_str())
        ),
        body,
    }
}

/// Ends the turn by what was answered, and returns what to answer then.
async fn end(turn: TurnScope, response: Response<Bytes>) -> Response<Bytes> {
    if response.status().is_server_error() {
        turn.fail(format!("the handler answered {}", response.status().as_u16())).await;
        return response;
    }
    let record = record_of(response.status(), response.headers(), response.body());
    let ended = match turn.latest_rejection() {
        Some(detail) => turn.reject(detail).await,
        None => turn.succeed(&record).await,
    };
    match ended {
        Ok(()) => response,
        Err(error) => instead(&error),
    }
}
