//! Where callers connect: a TCP port or a Unix socket, and the bounds of one
//! connection.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    net::SocketAddr,
    ops::Range,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::{Instant, Sleep, sleep_until, timeout_at},
};
use tokio_rustls::{rustls::pki_types::CertificateDer, server::TlsStream};

use crate::config::{Address, LimitConfig};

mod authority;
mod tls;
mod validity;

use authority::AnyAuthority;
use tls::Handshake;
pub use tls::{ClientTrust, HandshakeError, Tls, TlsMaterial};
pub use validity::Validity;

/// The mode of the socket: its owner and group may connect, for a sidecar's
/// neighbours often run as another user of one group.
const SOCKET_MODE: u32 = 0o660;
/// The mode of a directory made for the socket.
const DIRECTORY_MODE: u32 = 0o750;
/// What an HTTP/2 connection begins with:
/// <https://www.rfc-editor.org/rfc/rfc9113.html#section-3.4>. A request over HTTP/1.1 is longer.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What TCP's own probes can be set to: <https://man7.org/linux/man-pages/man7/tcp.7.html>.
const KEEPALIVE_SPAN: Range<Duration> = Duration::from_secs(1)..Duration::from_secs(32_767);

/// A bound port or socket.
#[derive(Debug)]
pub enum Listener {
    /// A TCP port.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener, SocketFile),
}

/// A socket's place in the file system, removed with the listener.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
    /// Held while the socket is in use, so that no second server takes it.
    lock: File,
}

impl Listener {
    /// Binds `address`.
    ///
    /// # Errors
    /// When it is taken, or may not be used.
    pub async fn bind(address: &Address) -> anyhow::Result<Self> {
        match address {
            Address::Tcp(address) => {
                let listener = TcpListener::bind(address)
                    .await
                    .with_context(|| format!("cannot listen on {address}"))?;
                Ok(Self::Tcp(listener))
            }
            Address::Unix(path) => bind_unix(path)
                .await
                .with_context(|| format!("cannot listen on unix:{}", path.display())),
        }
    }

    /// Where it listens, with the port that the system chose.
    ///
    /// # Errors
    /// When the system cannot name it.
    pub fn address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Self::Unix(_, file) => Ok(Address::Unix(file.path.clone())),
        }
    }

    /// Waits for the next connection. It belongs to no runtime yet: another
    /// thread may serve it.
    ///
    /// # Errors
    /// When the system has no more to give, as of file descriptors.
    pub async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Answers are small and must not wait for more to send.
                stream.set_nodelay(true)?;
                stream.into_std().map(Socket::Tcp)
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                stream.into_std().map(Socket::Unix)
            }
        }
    }
}

async fn bind_unix(path: &Path) -> anyhow::Result<Listener> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory)?;
    let mode = fs::metadata(directory)?.permissions().mode();
    if mode & 0o002 != 0 && mode & 0o1000 == 0 {
        // As kubelet makes an `emptyDir`, which only the pod's containers have.
        let directory = directory.display();
        tracing::warn!(%directory, "directory is world-writable; other users can replace the socket");
    }

    let lock = with_suffix(path, ".lock");
    let lock = File::options().create(true).truncate(false).write(true).open(lock)?;
    if lock.try_lock().is_err() {
        bail!("another oncegate server is listening there");
    }
    if let Ok(found) = fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            bail!("the path exists and is not a socket");
        }
        if UnixStream::connect(path).await.is_ok() {
            bail!("another program is listening there");
        }
    }

    // Bound under another name and renamed once its mode is set, so that nobody
    // meets a socket with the wrong mode, or none where a stale one was.
    let fresh = with_suffix(path, ".new");
    let _ = fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh)?;
    fs::set_permissions(&fresh, Permissions::from_mode(SOCKET_MODE))?;
    let inode = fs::symlink_metadata(&fresh)?.ino();
    fs::rename(&fresh, path)?;
    Ok(Listener::Unix(listener, SocketFile { path: path.to_owned(), inode, lock }))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Unless somebody put another one there.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
        // A child that was forked, and has not executed its program yet, has the file as well.
        let _ = self.lock.unlock();
    }
}

/// A connection that nobody serves yet.
#[derive(Debug)]
pub enum Socket {
    /// Over TCP.
    Tcp(std::net::TcpStream),
    /// Over a Unix socket.
    Unix(std::os::unix::net::UnixStream),
}

enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream, AnyAuthority),
}

/// What the server knows of the other end of a connection, from the connection itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Over TCP: the address from which the peer connected.
    pub address: Option<SocketAddr>,
    /// Over a Unix socket: the user that the peer ran as when it connected.
    pub uid: Option<u32>,
    /// The peer's own certificate, verified at the handshake.
    pub certificate: Option<CertificateDer<'static>>,
    /// When that certificate ends, which the handshake alone looks at.
    pub certificate_ends: Option<SystemTime>,
    /// Whether the connection uses TLS.
    pub encrypted: bool,
}

/// One connection, on the runtime that serves it.
pub struct Peer {
    stream: Stream,
    identity: PeerIdentity,
    trust: Option<ClientTrust>,
    /// What is still to come of the preface, in bytes, and until when: nobody
    /// pings a peer that has not sent it.
    preface: Option<(usize, Pin<Box<Sleep>>)>,
}

/// Has the system close a connection whose peer has vanished: over HTTP/1.1 nobody pings it.
fn close_if_mute(stream: &std::net::TcpStream, limits: &LimitConfig) -> io::Result<()> {
    let [idle, timeout] = [limits.keepalive_interval, limits.keepalive_timeout]
        .map(|span| span.clamp(KEEPALIVE_SPAN.start, KEEPALIVE_SPAN.end));
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, idle)?;
    sockopt::set_tcp_keepintvl(stream, timeout)?;
    sockopt::set_tcp_keepcnt(stream, 1)?;
    // What was sent and is not acknowledged keeps the probes from being sent.
    #[cfg(target_os = "linux")]
    {
        let most = u32::try_from((idle + timeout).as_millis()).unwrap_or(u32::MAX);
        sockopt::set_tcp_user_timeout(stream, most)?;
    }
    Ok(())
}

impl Peer {
    /// Takes `socket` over to the current runtime, within `limits`: with `tls`, once the
    /// handshake is complete, unless it is a Unix socket. The time for the preface begins here.
    ///
    /// # Errors
    /// When the handshake fails, or the system does not let the runtime have the socket.
    pub async fn accept(
        socket: Socket,
        limits: &LimitConfig,
        tls: Option<&Tls>,
    ) -> Result<Self, HandshakeError> {
        let until = Instant::now() + limits.preface_timeout;
        let opened = Self::open(socket, limits, until).map_err(|error| HandshakeError::by(&error));
        let Self { stream, mut identity, preface, .. } = opened?;
        let (stream, trust) = match (stream, tls) {
            (Stream::Tcp(stream), Some(tls)) => {
                let shaken = timeout_at(until, tls.handshake(stream)).await;
                let Handshake { stream, trust } =
                    shaken.unwrap_or(Err(HandshakeError::TimedOut))?;
                identity.certificate = trust.certificate();
                identity.certificate_ends =
                    identity.certificate.as_deref().and_then(|of| Validity::of(of)?.end());
                identity.encrypted = true;
                (Stream::Tls(stream), Some(trust))
            }
            (stream, _) => (stream, None),
        };
        Ok(Self { stream, identity, trust, preface })
    }

    fn open(socket: Socket, limits: &LimitConfig, until: Instant) -> io::Result<Self> {
        let mut identity = PeerIdentity::default();
        let stream = match socket {
            Socket::Tcp(stream) => {
                close_if_mute(&stream, limits)?;
                identity.address = Some(stream.peer_addr()?);
                Stream::Tcp(TcpStream::from_std(stream)?)
            }
            Socket::Unix(stream) => {
                let stream = UnixStream::from_std(stream)?;
                identity.uid = Some(stream.peer_cred()?.uid());
                Stream::Unix(stream, AnyAuthority::new())
            }
        };
        let preface = Some((PREFACE.len(), Box::pin(sleep_until(until))));
        Ok(Self { stream, identity, trust: None, preface })
    }

    /// Whether its client's certificate is still accepted; none without TLS, and once taken.
    pub fn take_trust(&mut self) -> Option<ClientTrust> {
        self.trust.take()
    }

    /// Who is at the other end.
    #[must_use]
    pub fn identity(&self) -> &PeerIdentity {
        &self.identity
    }
}

impl AsyncRead for Peer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Unix(stream, any_authority) => {
                any_authority.poll_read(Pin::new(stream), context, buffer)
            }
        };
        if let Some((missing, until)) = &mut self.preface {
            *missing = missing.saturating_sub(buffer.filled().len() - before);
            if *missing == 0 {
                self.preface = None;
            } else if until.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl AsyncWrite for Peer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Unix(stream, _) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Stream::Unix(stream, _) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
            Stream::Unix(stream, _) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Unix(stream, _) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_free_though_a_process_that_was_forked_has_its_lock() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("oncegate.sock");
        let Listener::Unix(listener, file) = bind_unix(&path).await.unwrap() else {
            panic!("it is a Unix socket")
        };
        // As a child has it until it executes its program.
        let _of_child = file.lock.try_clone().unwrap();
        drop((listener, file));
        bind_unix(&path).await.unwrap();
    }
}
