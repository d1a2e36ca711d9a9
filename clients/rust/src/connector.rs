//! How a connection is made.

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use rand::seq::SliceRandom as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tower_service::Service;

use crate::address::Target;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For an address that is not the last one.
const NEXT_ADDRESS: Duration = Duration::from_secs(1);

/// Connects to the server: to any of its addresses that answers.
#[derive(Clone)]
pub(crate) struct Connector {
    target: Target,
    /// It has connected once.
    pub(crate) is_established: Arc<AtomicBool>,
    time: Duration,
}

impl Connector {
    pub(crate) fn new(target: Target) -> Self {
        Self { target, is_established: Arc::default(), time: CONNECT_TIMEOUT }
    }

    /// With another time for the last address.
    pub(crate) fn within(self, time: Duration) -> Self {
        Self { time, ..self }
    }
}

pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Io>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { target, is_established, time } = self.clone();
        Box::pin(async move {
            let connected = match &target {
                Target::Socket(path) => timeout(time, UnixStream::connect(path))
                    .await
                    .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                    .map(|stream| Box::new(stream) as Box<dyn Io>),
                Target::Hosts { hosts, .. } => {
                    connect_to_any(hosts, time).await.map(|stream| Box::new(stream) as _)
                }
            };
            is_established.fetch_or(connected.is_ok(), Ordering::Relaxed);
            connected.map(TokioIo::new).map_err(|error| {
                io::Error::new(error.kind(), NotConnected { target: target.name(), cause: error })
            })
        })
    }
}

#[derive(Debug)]
struct NotConnected {
    target: String,
    cause: io::Error,
}

impl fmt::Display for NotConnected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot connect to {}", self.target)
    }
}

impl std::error::Error for NotConnected {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

async fn connect_to_any(hosts: &[String], time: Duration) -> io::Result<TcpStream> {
    let mut addresses = Vec::new();
    let mut problem = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for host in hosts {
        match timeout(time, tokio::net::lookup_host(host)).await {
            Ok(Ok(found)) => addresses.extend(found),
            Ok(Err(error)) => problem = error,
            Err(_) => problem = io::ErrorKind::TimedOut.into(),
        }
    }
    // Each connection takes another one, so that replicas share the load.
    addresses.shuffle(&mut rand::rng());
    let count = addresses.len();
    for (index, address) in addresses.into_iter().enumerate() {
        let time = if index + 1 < count { NEXT_ADDRESS } else { time };
        match timeout(time, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true); // it works without
                return Ok(stream);
            }
            Ok(Err(error)) => problem = error,
            Err(_) => problem = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(problem)
}
