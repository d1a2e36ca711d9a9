//! Connections for calls that the library has no word for.

use std::{
    error::Error as StdError,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response, header};
use tonic::{Status, body::Body, transport::Channel};
use tower_service::Service;

use crate::{Error, Gate, access::Access, failure::Failure, link};

/// A connection of its own to a gate's server, with the gate's certificates and token: for stubs that
/// are generated from the contract, such as the administration's. It repeats nothing, and connects
/// again by itself after a break. [`Gate::close`] does not end its calls. [`Gate::connect`] makes one.
#[derive(Clone)]
pub struct Connection {
    channel: Channel,
    access: Arc<Access>,
}

impl Gate {
    /// Connects to the server, without repetition.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if there is no connection, or [`Error::Misconfigured`] if an option
    /// cannot be used.
    pub async fn connect(&self) -> Result<Connection, Error> {
        let access = self.inner.link.access();
        let credentials = access.credentials(true)?;
        let (endpoint, connector) = link::dial(access, credentials.certificates.as_deref())?;
        let channel = endpoint
            .connect_with_connector(connector)
            .await
            .map_err(|error| Failure::read(Status::from_error(error.into())).public())?;
        Ok(Connection { channel, access: access.clone() })
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
        let token = match self.access.credentials(false) {
            Ok(credentials) => credentials.header(),
            Err(error) => return Box::pin(async { Err(error.into()) }),
        };
        if let Some(token) = token {
            request.headers_mut().insert(header::AUTHORIZATION, token);
        }
        let answer = self.channel.call(request);
        Box::pin(async { Ok(answer.await?) })
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("server", &self.access.target.name())
            .finish_non_exhaustive()
    }
}
