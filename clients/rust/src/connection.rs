//! Connections for calls that the library has no method for.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, header};
use tokio::time::timeout;
use tonic::{Status, transport::Channel};
use tower_service::Service;

use crate::{
    Body, Error, Gate,
    access::{Access, Credentials},
    connector::Connector,
    errors::BoxError,
    failure::Failure,
    locked,
    rotation::Certificates,
};

/// A connection of its own to a gate's server, with the gate's certificates and token: for stubs that
/// are generated from the contract, such as the administration's. It repeats nothing, and connects
/// again by itself after a break, and if its files of certificates have changed. [`Gate::close`] does not end
/// its calls. [`Gate::connect`] makes one; a clone is the same connection.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    access: Arc<Access>,
    connector: Connector,
    open: Mutex<Open>,
}

struct Open {
    certificates: Option<Arc<Certificates>>,
    channel: Channel,
}

impl Gate {
    /// Connects to the server once, for at most this time.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if there is no connection, or [`Error::Misconfigured`] if an option
    /// cannot be used.
    pub async fn connect(&self, time: Duration) -> Result<Connection, Error> {
        let access = self.inner.link.access().clone();
        let credentials = access.credentials(true).await?;
        let connector = Connector::new(access.target.clone()).within(time);
        let connecting = access.endpoint(&credentials).connect_with_connector(connector.clone());
        let connected = timeout(time, connecting).await;
        let failure = match connected {
            Ok(Ok(channel)) => {
                let open = Mutex::new(Open { certificates: credentials.certificates, channel });
                return Ok(Connection { shared: Arc::new(Shared { access, connector, open }) });
            }
            Ok(Err(error)) => Failure::read(Status::from_error(error.into())),
            Err(_) => Failure::unavailable(format!("there is no connection within {time:?}")),
        };
        Err(failure.public())
    }
}

impl Shared {
    /// The channel of these certificates. That of older ones closes with its last call.
    fn channel(&self, credentials: &Credentials) -> Channel {
        let address = |found: &Option<Arc<Certificates>>| found.as_ref().map(Arc::as_ptr);
        let mut open = locked(&self.open);
        if address(&open.certificates) != address(&credentials.certificates) {
            let endpoint = self.access.endpoint(credentials);
            open.channel = endpoint.connect_with_connector_lazy(self.connector.clone());
            open.certificates.clone_from(&credentials.certificates);
        }
        open.channel.clone()
    }

    async fn call<B>(&self, mut request: Request<B>) -> Result<Response<Body>, BoxError>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let credentials = self.access.credentials(false).await?;
        if let Some(token) = credentials.header() {
            request.headers_mut().insert(header::AUTHORIZATION, token);
        }
        let mut channel = self.channel(&credentials);
        let answer = async {
            poll_fn(|context| channel.poll_ready(context)).await?;
            channel.call(request.map(tonic::body::Body::new)).await
        };
        match answer.await {
            Ok(answer) => Ok(answer.map(Body)),
            Err(error) => {
                self.access.look_soon(); // the server may not accept the certificates any more
                Err(error.into())
            }
        }
    }
}

impl<B> Service<Request<B>> for Connection
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    /// A call itself waits until its channel is ready: it may be another one.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let shared = self.shared.clone();
        Box::pin(async move { shared.call(request).await })
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("server", &self.shared.access.target.name())
            .finish_non_exhaustive()
    }
}
