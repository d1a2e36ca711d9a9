//! gRPC-Web on the same port: for edge runtimes and other callers that have no HTTP/2, or
//! cannot read its trailers. It is translated before a call is counted, so all bounds hold.
//! <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md>
//!
//! There is no CORS: edge runtimes are not browsers, and a browser must not reach this service.
//! A page whose name resolves to this address (DNS rebinding) needs none; its origin shows it.

use std::{
    convert::Infallible,
    fmt::Display,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Version,
    header::{ACCEPT, CONTENT_TYPE, ORIGIN},
};
use http_body::{Body as HttpBody, Frame};
use prost::bytes::Bytes;
use tokio::runtime::Handle;
use tonic::{Status, body::Body, codegen::StdError};
use tonic_web::GrpcWebLayer;
use tower::{Layer as _, ServiceExt as _, service_fn};

use super::middleware::{GrpcService, ObservedBody, with_version};
use crate::domain::limits::MAX_REQUEST_BYTES;

/// How a request says that it is a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// gRPC, or nothing that is known.
    Grpc,
    /// gRPC-Web of this content type.
    Web(&'static str),
    /// gRPC-Web from a browser, or over HTTP/1.1 anything else than gRPC-Web.
    Unsupported,
}

const PREFIX: &str = "application/grpc-web";
const CONTENT_TYPES: [&str; 4] = [
    PREFIX,
    "application/grpc-web+proto",
    "application/grpc-web-text",
    "application/grpc-web-text+proto",
];

impl Protocol {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        match kind.filter(|kind| kind.starts_with(PREFIX)) {
            Some(_) if request.headers().contains_key(ORIGIN) => Self::Unsupported,
            Some(kind) => {
                let kind = kind.split(';').next().unwrap_or_default().trim_end();
                let known = CONTENT_TYPES.into_iter().find(|known| *known == kind);
                known.map_or(Self::Unsupported, Self::Web)
            }
            None if request.version() < Version::HTTP_2 => Self::Unsupported,
            None => Self::Grpc,
        }
    }
}

/// Answers a call of gRPC-Web, in the form in which it came.
pub(super) async fn answer<B>(
    gate: GrpcService,
    request: Request<B>,
    kind: &'static str,
) -> Result<Response<ObservedBody>, Infallible>
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<StdError> + Display,
{
    let mut request = request.map(|body| Drained(Some(body)));
    for name in [CONTENT_TYPE, ACCEPT] {
        request.headers_mut().insert(name, HeaderValue::from_static(kind));
    }
    let grpc = service_fn(move |request: Request<Body>| {
        let answering = gate.call(request);
        async { answering.await.map(with_trailers) }
    });
    let response = GrpcWebLayer::new().layer(grpc).oneshot(request).await?;
    Ok(with_version(response.map(ObservedBody::from)))
}

/// The body of a request, which is read to its end even if the call needs no more of it, within
/// a bound: a connection over HTTP/1.1 is closed if it is not, and the system of a caller that
/// still sends then drops the answer.
struct Drained<B: HttpBody<Data = Bytes> + Send + Unpin + 'static>(Option<B>);

/// How much is read, in bytes, and for how long.
const MAX_DRAINED: usize = 4 * MAX_REQUEST_BYTES;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

impl<B: HttpBody<Data = Bytes> + Send + Unpin + 'static> HttpBody for Drained<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.0 = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(HttpBody::is_end_stream)
    }
}

impl<B: HttpBody<Data = Bytes> + Send + Unpin + 'static> Drop for Drained<B> {
    fn drop(&mut self) {
        let body = self.0.take().filter(|body| !body.is_end_stream());
        let (Some(mut body), Ok(runtime)) = (body, Handle::try_current()) else { return };
        let draining = async move {
            let mut drained = 0;
            while drained < MAX_DRAINED
                && let Some(Ok(frame)) =
                    poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
            {
                drained += frame.data_ref().map_or(0, Bytes::len);
            }
        };
        runtime.spawn(tokio::time::timeout(DRAIN_TIMEOUT, draining));
    }
}

/// The answer to what is no call.
pub(super) fn unsupported() -> Response<ObservedBody> {
    let mut refusal = Response::new(Body::empty().into());
    *refusal.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    with_version(refusal)
}

/// Moves the status of an answer without a message from the headers to the trailers, which
/// gRPC-Web has in the body: not every caller looks for it in both.
fn with_trailers(mut response: Response<ObservedBody>) -> Response<Body> {
    if !response.headers().contains_key(Status::GRPC_STATUS) {
        return response.map(Body::new);
    }
    let headers = std::mem::take(response.headers_mut());
    let (trailers, kept) = headers
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()))
        .partition(|(name, _): &(http::HeaderName, _)| name.as_str().starts_with("grpc-"));
    *response.headers_mut() = kept;
    response.map(|body| Body::new(Ended { body, trailers: Some(trailers) }))
}

/// A body without a message.
struct Ended {
    /// Counts the call when it is dropped.
    body: ObservedBody,
    trailers: Option<HeaderMap>,
}

impl HttpBody for Ended {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.trailers.take() {
            Some(trailers) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            None => Pin::new(&mut self.body).poll_frame(context),
        }
    }
}
