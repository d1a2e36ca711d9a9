//! A real server of this process, with the store in memory, on a TCP port and a Unix socket.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use clap::Parser as _;
use h2::{
    RecvStream,
    client::{self, SendRequest},
};
use http::{HeaderMap, Request};
use oncegate::{
    config::{Address, ServeConfig},
    server::Server,
    store::Clock,
};
use prost_reflect::prost::bytes::Bytes;
use tempfile::TempDir;
use tokio::{net::UnixStream, time::timeout};
use tonic::Status;

/// How long anything may take that must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Running {
    server: Server,
    pub tcp: SocketAddr,
    pub unix: PathBuf,
    _folder: TempDir,
}

impl Running {
    pub async fn start() -> Self {
        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            serve: ServeConfig,
        }
        let folder = tempfile::tempdir().expect("a folder");
        let unix = folder.path().join("fuzz.sock");
        let listen = format!("127.0.0.1:0,unix:{}", unix.display());
        let mut flags = vec!["fuzz", "--database-url", "memory:", "--listen", &listen];
        // A body that never becomes whole holds up the others of its block.
        flags.extend(["--workers", "1", "--preface-timeout", "250ms"]);
        let config = Flags::parse_from(flags).serve;
        let server = Server::start(config, Clock::Store).await.expect("a server");
        let Address::Tcp(tcp) = *server.address() else { panic!("not TCP") };
        Self { server, tcp, unix, _folder: folder }
    }

    /// Drains it: every call and connection ends.
    pub async fn stop(self) {
        let stopped = timeout(PATIENCE, self.server.stop()).await;
        stopped.expect("the server does not end").expect("a drain");
    }

    pub async fn connect(&self) -> io::Result<Caller> {
        let socket = UnixStream::connect(&self.unix).await?;
        let (requests, connection) = client::handshake(socket).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        Ok(Caller(requests))
    }
}

/// One connection. Cheap to clone.
#[derive(Clone)]
pub struct Caller(SendRequest<Bytes>);

/// How a call ended.
pub struct Answer {
    pub http: u16,
    /// What was received of its body.
    pub body: Vec<u8>,
    /// Its status; none for what is not gRPC, or where the rest was not awaited.
    pub status: Option<Status>,
}

impl Caller {
    /// Sends a call, and reads its answer: with `first`, to the end of its first message.
    pub async fn call(
        &self,
        path: &str,
        metadata: &[(&'static str, &str)],
        body: Vec<u8>,
        is_whole: bool,
        first: bool,
    ) -> Result<Answer, h2::Error> {
        let mut request = Request::post(format!("http://fuzz{path}"));
        for (name, value) in metadata {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("a path of the contract");
        let mut requests = self.0.clone().ready().await?;
        let (answer, mut sending) = requests.send_request(request, false)?;
        // An error says that the call has ended, which its answer does as well.
        let _ = sending.send_data(body.into(), is_whole);
        let (head, rest) = answer.await?.into_parts();
        let status = Status::from_header_map(&head.headers);
        let mut answer = Answer { http: head.status.as_u16(), body: Vec::new(), status };
        if answer.status.is_none() {
            read(rest, first, &mut answer).await?;
        }
        drop(sending);
        Ok(answer)
    }
}

async fn read(mut rest: RecvStream, first: bool, answer: &mut Answer) -> Result<(), h2::Error> {
    while let Some(data) = rest.data().await {
        let data = data?;
        let _ = rest.flow_control().release_capacity(data.len());
        answer.body.extend_from_slice(&data);
        // Base64 is not looked into.
        let is_text = answer.body.first().is_some_and(u8::is_ascii_alphanumeric);
        if first && (is_text || message(&answer.body).is_some()) {
            return Ok(());
        }
    }
    let trailers: HeaderMap = rest.trailers().await?.unwrap_or_default();
    answer.status = Status::from_header_map(&trailers);
    Ok(())
}

/// The first message of a body.
pub fn message(body: &[u8]) -> Option<&[u8]> {
    let length = u32::from_be_bytes(body.get(1..5)?.try_into().ok()?);
    body.get(5..5 + usize::try_from(length).ok()?)
}

/// A message with its prefix.
pub fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[flag], &length[..], message].concat()
}
