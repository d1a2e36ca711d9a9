//! Connections for calls that the library has no method for.

use std::{
    error::Error as StdError,
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response, header};
use tokio::time::timeout;
use tonic::{Status, body::Body, transport::Channel};
use tower_service::Service;

use crate::{Error, Gate, access::Access, failure::Failure, link::Connector};

/// A connection of its own to a gate's server, with the gate's certificates and token: for stubs that
/// are generated from the contract, such as the administration's. It repeats nothing, and connects
/// again by itself after a break, with the certificates of its beginning: after they were replaced, make another
/// one. [`Gate::close`] does not end its calls. [`Gate::connect`] makes one.
#[derive(Clone)]
pub struct Connection {
    channel: Channel,
    access: Arc<Access>,
}

impl Gate {
    /// Connects to the server once, for at most this time.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if there is no connection, or [`Error::Misconfigured`] if an option
    /// cannot be used.
    pub async fn connect(&self, time: Duration) -> Result<Connection, Error> {
        let access = self.inner.link.access();
        let credentials = access.credentials(true).await?;
        let connector = Connector::new(access.target.clone()).within(time);
        let connecting = access.endpoint(&credentials).connect_with_connector(connector);
        let connected = timeout(time, connecting).await;
        let failure = match connected {
            Ok(Ok(channel)) => return Ok(Connection { channel, access: access.clone() }),
            Ok(Err(error)) => Failure::read(Status::from_error(error.into())),
            Err(_) => Failure::unavailable(format!("there is no connection within {time:?}")),
        };
        Err(failure.public())
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Body>;
    type Error = Box<dyn StdError + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let access = self.access.clone();
        // What is ready is this channel, not its copy.
        let next = self.channel.clone();
        let mut channel = mem::replace(&mut self.channel, next);
        Box::pin(async move {
            if let Some(token) = access.credentials(false).await?.header() {
                request.headers_mut().insert(header::AUTHORIZATION, token);
            }
            Ok(channel.call(request).await?)
        })
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("server", &self.access.target.name())
            .finish_non_exhaustive()
    }
}
