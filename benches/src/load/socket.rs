//! The connection below HTTP/2: a TCP socket, with TLS or without.

use std::{
    fs,
    io::{self, ErrorKind, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use serde::{Deserialize, Serialize};

/// A client's files for mutual TLS, in PEM form.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tls {
    /// What signs the server's certificate.
    pub ca: PathBuf,
    /// The client's own certificate.
    pub cert: PathBuf,
    /// And its key.
    pub key: PathBuf,
}

impl Tls {
    fn config(&self) -> anyhow::Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&read(&self.ca)?)?)?;
        let chain = vec![CertificateDer::from_pem_slice(&read(&self.cert)?)?];
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?)?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// A blocking socket.
pub enum Socket {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Socket {
    /// Connects to `target`, `HOST:PORT`.
    pub fn connect(target: &str, tls: Option<&Tls>) -> anyhow::Result<Self> {
        let mut socket =
            TcpStream::connect(target).with_context(|| format!("connect to {target}"))?;
        socket.set_nodelay(true)?;
        let Some(tls) = tls else { return Ok(Self::Plain(socket)) };
        let (host, _) = target.rsplit_once(':').context("a target without a port")?;
        let name = ServerName::try_from(host.to_owned())?;
        let mut connection = ClientConnection::new(Arc::new(tls.config()?), name)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket).context("TLS handshake")?;
        }
        ensure!(connection.alpn_protocol() == Some(b"h2"), "the server did not choose h2");
        Ok(Self::Tls(Box::new(StreamOwned::new(connection, socket))))
    }

    /// Sends `output`, and waits for something to come; until `patience` ends, if that is given.
    /// Returns how many bytes of `input` it filled.
    pub fn exchange(
        &mut self,
        output: &[u8],
        input: &mut [u8],
        patience: Option<Duration>,
    ) -> anyhow::Result<usize> {
        let socket = match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &stream.sock,
        };
        socket.set_read_timeout(patience)?;
        let count = match self {
            Self::Plain(socket) => socket.write_all(output).and_then(|()| socket.read(input)),
            Self::Tls(stream) => stream
                .write_all(output)
                .and_then(|()| stream.flush())
                .and_then(|()| stream.read(input)),
        };
        match count {
            Ok(count) => {
                ensure!(count > 0, "the peer closed the connection");
                Ok(count)
            }
            Err(error) if is_timeout(&error) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
