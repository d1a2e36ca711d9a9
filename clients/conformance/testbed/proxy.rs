//! The proxy before a replica, which breaks connections as networks do.

use std::{
    mem,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::Deserialize;
use tokio::{
    io::{self, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::armed::{Armed, Frames};

/// An end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Client,
    Server,
}

/// A direction of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    ToClient,
    ToServer,
}

pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    server: PathBuf,
    refuses: AtomicBool,
    to_client: Lane,
    to_server: Lane,
    connections: Mutex<Connections>,
}

/// What applies to one direction of all connections.
#[derive(Default)]
struct Lane {
    is_held: watch::Sender<bool>,
    armed: Mutex<Armed>,
}

/// The open connections. All are closed when this is dropped.
#[derive(Default)]
struct Connections {
    /// Each returns its ends if it is parted, and none if it closes.
    whole: JoinSet<Option<Ends>>,
    /// Ends the carrying of bytes.
    part: CancellationToken,
    /// Of these, one end is closed, and the other is open and silent.
    half_open: JoinSet<()>,
}

/// Both ends of a connection.
struct Ends {
    client: TcpStream,
    server: UnixStream,
}

impl Proxy {
    /// Starts a proxy to the server that listens on the socket `server`.
    pub async fn start(server: &Path) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            server: server.to_owned(),
            refuses: AtomicBool::default(),
            to_client: Lane::default(),
            to_server: Lane::default(),
            connections: Mutex::default(),
        });
        tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared })
    }

    /// Whether new connections are closed at once.
    pub fn refuse(&self, refuses: bool) {
        self.shared.refuses.store(refuses, Ordering::SeqCst);
    }

    /// Keeps the bytes of a direction back, or forwards them.
    pub fn hold(&self, direction: Direction, is_held: bool) {
        self.shared.lane(direction).is_held.send_replace(is_held);
    }

    /// Closes all connections, and drops the cuts that were to come.
    pub async fn cut(&self) {
        for lane in [&self.shared.to_client, &self.shared.to_server] {
            lane.armed().disarm();
        }
        let mut connections = self.shared.take();
        connections.whole.shutdown().await;
        connections.half_open.shutdown().await;
    }

    /// Closes one end of all connections. The other end stays open and silent.
    pub async fn cut_half(&self, end: End) {
        let Connections { mut whole, part, mut half_open } = self.shared.take();
        part.cancel();
        while let Some(ends) = whole.join_next().await {
            let Ok(Some(Ends { client, server })) = ends else { continue };
            match end {
                End::Client => half_open.spawn(be_silent(server)),
                End::Server => half_open.spawn(be_silent(client)),
            };
        }
        while half_open.try_join_next().is_some() {}
        // A cut at the same time may have closed what these replace.
        self.shared.connections().half_open = half_open;
    }

    /// Passes `skip` more DATA frames, and cuts all connections instead of passing the next one.
    pub fn cut_before_data(&self, direction: Direction, skip: u64) {
        self.shared.lane(direction).armed().cut_before_data(skip);
    }
}

impl Shared {
    fn lane(&self, direction: Direction) -> &Lane {
        match direction {
            Direction::ToClient => &self.to_client,
            Direction::ToServer => &self.to_server,
        }
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Connections {
        mem::take(&mut *self.connections())
    }

    /// Carries bytes until both directions have closed, or one breaks; or until `part`.
    async fn carry(
        self: Arc<Self>,
        mut client: TcpStream,
        part: CancellationToken,
    ) -> Option<Ends> {
        let mut server = UnixStream::connect(&self.server).await.ok()?;
        // Otherwise a small packet may be sent late.
        client.set_nodelay(true).ok()?;
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let requests =
            self.pass(&self.to_server, Frames::to_server(), &mut from_client, &mut to_server);
        let answers =
            self.pass(&self.to_client, Frames::to_client(), &mut from_server, &mut to_client);
        tokio::select! {
            () = part.cancelled() => {}
            _ = async { tokio::try_join!(requests, answers) } => return None,
        }
        Some(Ends { client, server })
    }

    /// Forwards the bytes of one direction.
    async fn pass(
        &self,
        lane: &Lane,
        mut frames: Frames,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        let mut is_held = lane.is_held.subscribe();
        let mut bytes = vec![0; 16 * 1024];
        loop {
            let count = from.read(&mut bytes).await?;
            // The sender lives as long as the proxy.
            let _ = is_held.wait_for(|is_held| !is_held).await;
            if count == 0 {
                return to.shutdown().await;
            }
            let cut = lane.armed().count(&mut frames, &bytes[..count]);
            to.write_all(&bytes[..cut.unwrap_or(count)]).await?;
            if cut.is_some() {
                // This connection as well, at its next wait.
                drop(self.take());
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Lane {
    fn armed(&self) -> MutexGuard<'_, Armed> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        // An error is that of one connection.
        let Ok((client, _)) = listener.accept().await else { continue };
        if shared.refuses.load(Ordering::SeqCst) {
            continue;
        }
        let mut connections = shared.connections();
        while connections.whole.try_join_next().is_some() {}
        let carry = Arc::clone(&shared).carry(client, connections.part.clone());
        connections.whole.spawn(carry);
    }
}

/// Reads and drops what comes from a peer whose own peer has vanished, until it closes.
async fn be_silent(mut peer: impl AsyncRead + Unpin) {
    // A socket that fails has closed.
    let _ = io::copy(&mut peer, &mut io::sink()).await;
}
