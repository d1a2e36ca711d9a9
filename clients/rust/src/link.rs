//! A gate's connections.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::Reason;
use http::{HeaderValue, header};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Code, Status, body::Body, transport::Channel};
use tower_service::Service;

use crate::{
    Error,
    access::{Access, Credentials},
    clock::{Moment, Pauses, now},
    connector::Connector,
    failure::{Failure, Problem},
    locked,
    rotation::Certificates,
};

/// The server allows 1,024 calls on a connection.
const STREAMS_PER_CONNECTION: usize = 900;

pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The least time for the last attempt of a call.
pub(crate) const SHORTEST: Duration = Duration::from_millis(100);

/// A gate's connections: streams apart from calls, which must not wait behind them.
pub(crate) struct Link {
    access: Arc<Access>,
    /// Ends all calls when the gate is closed.
    pub(crate) closed: CancellationToken,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    /// Of the connections that are open.
    certificates: Option<Arc<Certificates>>,
    streams: Vec<Arc<Pooled>>,
    calls: Option<Arc<Pooled>>,
}

/// One channel of gRPC, with the number of its calls and streams. Once it is out of use, it closes with its
/// last call.
struct Pooled {
    channel: Channel,
    /// It was connected once.
    is_established: Arc<AtomicBool>,
    live: AtomicUsize,
}

/// One call or stream of a connection.
pub(crate) struct Usage {
    connection: Arc<Pooled>,
    pub(crate) credentials: Credentials,
}

impl Drop for Usage {
    fn drop(&mut self) {
        self.connection.live.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Usage {
    /// What sends one request.
    pub(crate) fn transport(&self) -> Transport {
        Transport {
            channel: self.connection.channel.clone(),
            authorization: self.credentials.header(),
            timeout: None,
            cancelled: None,
        }
    }
}

impl Link {
    pub(crate) fn new(access: Access) -> Self {
        let access = Arc::new(access);
        Self { access, closed: CancellationToken::new(), connections: Mutex::default() }
    }

    /// A connection for one more call or stream: another one if the certificates have changed.
    pub(crate) async fn acquire(&self, for_stream: bool) -> Result<Usage, Error> {
        let credentials = self.access.credentials(false).await?;
        let mut open = locked(&self.connections);
        if self.closed.is_cancelled() {
            return Err(Error::Closed);
        }
        let address = |found: &Option<Arc<Certificates>>| found.as_ref().map(Arc::as_ptr);
        if address(&credentials.certificates) != address(&open.certificates) {
            // Those that are in use close after their last call.
            *open = Connections {
                certificates: credentials.certificates.clone(),
                ..Connections::default()
            };
        }
        let connection = if let Some(found) = open.room_for(for_stream) {
            found
        } else {
            let made = Arc::new(self.dial(&credentials));
            if for_stream {
                open.streams.push(made.clone());
            } else {
                open.calls = Some(made.clone());
            }
            made
        };
        connection.live.fetch_add(1, Ordering::Relaxed);
        Ok(Usage { connection, credentials })
    }

    /// Takes a connection that was silent out of use: it may be dead without a notice. One that is still
    /// being made stays, or none would be in time.
    pub(crate) fn suspect(&self, usage: &Usage) {
        if usage.connection.is_established.load(Ordering::Relaxed) {
            self.discard(usage);
        }
    }

    /// Takes a connection out of use that failed by itself: what runs it may have ended with its runtime.
    fn discard_broken(&self, usage: &Usage, failure: &Failure) {
        let is_own = matches!(failure.code, Code::Unknown | Code::Internal);
        if is_own && failure.reason.is_empty() {
            self.discard(usage);
        }
    }

    fn discard(&self, usage: &Usage) {
        let mut open = locked(&self.connections);
        let is_other = |connection: &Arc<Pooled>| !Arc::ptr_eq(connection, &usage.connection);
        open.calls = open.calls.take().filter(is_other);
        open.streams.retain(is_other);
    }

    /// Ends all calls, and closes the connections with their last use.
    pub(crate) fn close(&self) {
        self.closed.cancel();
        *locked(&self.connections) = Connections::default();
    }

    pub(crate) fn access(&self) -> &Arc<Access> {
        &self.access
    }

    pub(crate) async fn judge(&self, usage: &Usage, failure: Failure) -> Failure {
        self.discard_broken(usage, &failure);
        self.access.judge(&usage.credentials, failure).await
    }

    fn dial(&self, credentials: &Credentials) -> Pooled {
        let connector = Connector::new(self.access.target.clone());
        let is_established = connector.is_established.clone();
        let endpoint = self.access.endpoint(credentials);
        let channel = endpoint.connect_with_connector_lazy(connector);
        Pooled { channel, is_established, live: AtomicUsize::new(0) }
    }

    /// Makes one call.
    async fn call<R, F>(&self, time: Duration, make: &impl Fn(Transport) -> F) -> Result<R, Problem>
    where
        F: Future<Output = Result<tonic::Response<R>, Status>>,
    {
        let usage = self.acquire(false).await?;
        let transport = Transport { timeout: Some(time), ..usage.transport() };
        let answer = tokio::select! {
            biased;
            answer = timeout(time, make(transport)) => answer,
            () = self.closed.cancelled() => return Err(Error::Closed.into()),
        };
        let failure = match answer {
            Ok(Ok(response)) => return Ok(response.into_inner()),
            Ok(Err(status)) => Failure::read(status),
            Err(_) => Failure::new(Code::DeadlineExceeded, "the server did not answer in time"),
        };
        if failure.code == Code::DeadlineExceeded {
            self.suspect(&usage);
        }
        Err(self.judge(&usage, failure).await.into())
    }

    /// Repeats a call that is safe to repeat until it has an answer. The last attempt is at `until`.
    /// Returns the answer, and when the call that got it was sent; or the last failure that says more
    /// than that the time was over.
    pub(crate) async fn call_until<R, F>(
        &self,
        until: Moment,
        time: Duration,
        make: impl Fn(Transport) -> F,
    ) -> Result<(R, Moment), Problem>
    where
        F: Future<Output = Result<tonic::Response<R>, Status>>,
    {
        let mut pauses = Pauses::default();
        let mut cause: Option<Box<Failure>> = None;
        let mut is_renewed = false;
        loop {
            let sent = now();
            let time = time.min(until - sent).max(SHORTEST);
            let failure = match self.call(time, &make).await {
                Ok(answer) => return Ok((answer, sent)),
                Err(Problem::Failed(failure)) => failure,
                Err(problem) => return Err(problem),
            };
            if failure.outdated && !is_renewed {
                is_renewed = true;
                continue;
            }
            let left = until.left();
            let delay = failure.retry_after.unwrap_or_else(|| pauses.next().min(left));
            let is_final = !failure.retryable() || left.is_zero() || delay > left;
            if failure.code != Code::DeadlineExceeded || cause.is_none() {
                cause = Some(failure);
            }
            if is_final && let Some(cause) = cause {
                return Err(Problem::Failed(cause));
            }
            tokio::select! {
                () = sleep(delay) => {}
                () = self.closed.cancelled() => return Err(Error::Closed.into()),
            }
        }
    }
}

impl Connections {
    fn room_for(&self, for_stream: bool) -> Option<Arc<Pooled>> {
        if !for_stream {
            return self.calls.clone();
        }
        let has_room = |connection: &&Arc<Pooled>| {
            connection.live.load(Ordering::Relaxed) < STREAMS_PER_CONNECTION
        };
        self.streams.iter().find(has_room).cloned()
    }
}

/// Sends a request with the token, and cancels its stream if it is asked to.
#[derive(Clone)]
pub(crate) struct Transport {
    channel: Channel,
    authorization: Option<HeaderValue>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) cancelled: Option<CancellationToken>,
}

impl Service<http::Request<Body>> for Transport {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = <Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        if let Some(value) = &self.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, value.clone());
        }
        if let Some(timeout) = self.timeout {
            // At most 8 digits, of milliseconds.
            let millis = timeout.as_millis().min(99_999_999);
            if let Ok(value) = HeaderValue::from_str(&format!("{millis}m")) {
                request.headers_mut().insert("grpc-timeout", value);
            }
        }
        if let Some(token) = &self.cancelled {
            let cancelled = Box::pin(token.clone().cancelled_owned());
            request = request.map(|body| Body::new(CancellableBody { body, cancelled }));
        }
        self.channel.call(request)
    }
}

/// The messages of a stream. hyper ends a stream that was dropped only once its messages end; and
/// their usual end is a half-close, which fails a turn. A reset leaves it to its holder.
struct CancellableBody {
    body: Body,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl http_body::Body for CancellableBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        if self.cancelled.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(h2::Error::from(Reason::CANCEL).into())));
        }
        Pin::new(&mut self.body).poll_frame(context).map_err(Into::into)
    }
}
