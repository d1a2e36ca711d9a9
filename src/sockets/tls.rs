//! TLS: what the server shows and asks for, and the handshake of one connection.

use std::{io, sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        Error as TlsError, HandshakeKind, RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
        server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    },
    server::TlsStream,
};

use super::validity::Validity;
use crate::config::TlsClient;

/// HTTP/2 for gRPC; HTTP/1.1 for gRPC-Web and pages.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// How long a client may take to close after its handshake failed.
const LINGER: Duration = Duration::from_millis(500);

/// The server's certificate and key, and what it asks of clients.
#[derive(Debug)]
pub struct TlsMaterial {
    config: Arc<ServerConfig>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    /// When the certificate is valid, if that can be read.
    pub validity: Option<Validity>,
}

impl TlsMaterial {
    /// Reads the certificate with its intermediates, its key and the authorities of clients, each
    /// in PEM. An error never quotes them.
    ///
    /// # Errors
    /// When one cannot be used, or the key is not the certificate's.
    pub fn read(
        certificate: &[u8],
        key: &[u8],
        clients: Option<(&[u8], TlsClient)>,
    ) -> anyhow::Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let chain = certificates(certificate).context("--tls-cert")?;
        let validity = Validity::of(&chain[0]);
        let Ok(key) = PrivateKeyDer::from_pem_slice(key) else {
            bail!("--tls-key: no private key in PEM form");
        };
        let clients = match clients {
            Some((authorities, need)) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(authorities).context("--tls-client-ca")? {
                    roots.add(authority).context("--tls-client-ca")?;
                }
                let builder = WebPkiClientVerifier::builder_with_provider(
                    Arc::new(roots),
                    Arc::clone(&provider),
                );
                let builder = match need {
                    TlsClient::Optional => builder.allow_unauthenticated(),
                    TlsClient::Required => builder,
                };
                Some(builder.build().context("--tls-client-ca")?)
            }
            None => None,
        };
        let builder =
            ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = match &clients {
            Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
            None => builder.with_no_client_auth(),
        };
        // Fails for a key of another certificate.
        let mut config =
            builder.with_single_cert(chain, key).context("--tls-cert and --tls-key")?;
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        // Tickets of before a change are not taken: their holders make a whole handshake.
        config.ticketer = ring::Ticketer::new()?;
        Ok(Self { config: Arc::new(config), clients, validity })
    }

    /// Checks a client's certificates.
    fn verify(&self, chain: &[CertificateDer<'static>]) -> Result<(), TlsError> {
        match (&self.clients, chain.split_first()) {
            (Some(verifier), Some((own, intermediates))) => {
                verifier.verify_client_cert(own, intermediates, UnixTime::now()).map(drop)
            }
            _ => Ok(()),
        }
    }
}

/// The certificates of a PEM file, at least one.
fn certificates(pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let Ok(found) = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>() else {
        bail!("a certificate is not in PEM form");
    };
    ensure!(!found.is_empty(), "no certificate in PEM form");
    Ok(found)
}

/// TLS with the certificates that are in use now. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tls {
    in_use: Arc<watch::Sender<Arc<TlsMaterial>>>,
    needs_protocol: bool,
}

impl Tls {
    /// Begins with `material`.
    #[must_use]
    pub fn new(material: TlsMaterial) -> Self {
        Self { in_use: Arc::new(watch::Sender::new(Arc::new(material))), needs_protocol: true }
    }

    /// The same for clients that need not say which protocol they speak, as probes and scrapers.
    #[must_use]
    pub fn for_pages(&self) -> Self {
        Self { needs_protocol: false, ..self.clone() }
    }

    /// Uses `new` from now on. Connections stay open, except those whose client certificate it
    /// does not accept.
    ///
    /// # Errors
    /// When its certificate is not valid now, while the one in use is.
    pub fn replace(&self, new: TlsMaterial) -> anyhow::Result<()> {
        let is_valid = |of: &TlsMaterial| of.validity.is_none_or(|it| it.contains(UnixTime::now()));
        ensure!(
            is_valid(&new) || !is_valid(&self.in_use.borrow()),
            "--tls-cert has expired or is not valid yet, while the certificate in use is valid"
        );
        self.in_use.send_replace(Arc::new(new));
        Ok(())
    }

    /// Answers a client's handshake.
    pub(super) async fn handshake(&self, stream: TcpStream) -> Result<Handshake, HandshakeError> {
        let material = Arc::clone(&self.in_use.borrow());
        let accepting = TlsAcceptor::from(Arc::clone(&material.config)).accept(stream);
        // It is large, and most connections are past it.
        let stream = match Box::pin(accepting.into_fallible()).await {
            Ok(stream) => stream,
            Err((error, stream)) => {
                let _ = timeout(LINGER, linger(stream)).await;
                return Err(HandshakeError::by(&error));
            }
        };
        let (_, session) = stream.get_ref();
        if self.needs_protocol && session.alpn_protocol().is_none() {
            return Err(HandshakeError::Protocol);
        }
        let chain = session.peer_certificates().unwrap_or_default();
        let chain: Vec<_> = chain.iter().map(|one| one.clone().into_owned()).collect();
        // A ticket outlives what it was given for: a certificate may have expired since.
        if session.handshake_kind() == Some(HandshakeKind::Resumed)
            && material.verify(&chain).is_err()
        {
            return Err(HandshakeError::ClientCertificate);
        }
        let in_use = self.in_use.subscribe();
        Ok(Handshake { stream: Box::new(stream), trust: ClientTrust { chain, material, in_use } })
    }
}

/// Reads on after the alert that says what is wrong: a socket that is closed with something
/// unread in it takes the alert back.
async fn linger(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut bytes = [0; 1024];
    while stream.read(&mut bytes).await? > 0 {}
    Ok(())
}

/// A handshake that has succeeded.
pub(super) struct Handshake {
    pub(super) stream: Box<TlsStream<TcpStream>>,
    pub(super) trust: ClientTrust,
}

/// The certificates of one client, and whether they are still accepted.
pub struct ClientTrust {
    chain: Vec<CertificateDer<'static>>,
    /// What accepted them.
    material: Arc<TlsMaterial>,
    in_use: watch::Receiver<Arc<TlsMaterial>>,
}

impl ClientTrust {
    /// The client's own certificate.
    pub(super) fn certificate(&self) -> Option<CertificateDer<'static>> {
        self.chain.first().cloned()
    }

    /// Returns once the server has authorities that do not accept the client's certificate.
    pub async fn lost(mut self) {
        if self.chain.is_empty() {
            return std::future::pending().await;
        }
        let is_lost = |in_use: &Arc<TlsMaterial>| {
            !Arc::ptr_eq(in_use, &self.material) && in_use.verify(&self.chain).is_err()
        };
        if self.in_use.wait_for(is_lost).await.is_err() {
            // The server has ended, and says so elsewhere.
            std::future::pending::<()>().await;
        }
    }
}

/// Why a connection was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeError {
    /// It took too long.
    TimedOut,
    /// The client went away, as those do that only look whether the port is open.
    Closed,
    /// The client does not speak TLS, or an unreadable one.
    NotTls,
    /// No common version of TLS, or no common cipher.
    Incompatible,
    /// The client did not say that it speaks HTTP/2 or HTTP/1.1 (ALPN).
    Protocol,
    /// The client has no certificate, or one that is not valid.
    ClientCertificate,
    /// The client does not trust this server's certificate.
    Distrusted,
    /// Anything else.
    Other,
}

impl HandshakeError {
    /// Every reason.
    pub const ALL: [Self; 8] = [
        Self::TimedOut,
        Self::Closed,
        Self::NotTls,
        Self::Incompatible,
        Self::Protocol,
        Self::ClientCertificate,
        Self::Distrusted,
        Self::Other,
    ];

    /// Its name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TimedOut => "timed_out",
            Self::Closed => "closed",
            Self::NotTls => "not_tls",
            Self::Incompatible => "incompatible",
            Self::Protocol => "no_alpn",
            Self::ClientCertificate => "client_certificate",
            Self::Distrusted => "distrusted",
            Self::Other => "failed",
        }
    }

    pub(super) fn by(error: &io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
        match tls {
            Some(TlsError::InvalidMessage(_)) => Self::NotTls,
            Some(TlsError::PeerIncompatible(_)) => Self::Incompatible,
            Some(TlsError::NoApplicationProtocol) => Self::Protocol,
            Some(TlsError::NoCertificatesPresented | TlsError::InvalidCertificate(_)) => {
                Self::ClientCertificate
            }
            Some(TlsError::AlertReceived(_)) => Self::Distrusted,
            Some(_) => Self::Other,
            None => match error.kind() {
                io::ErrorKind::TimedOut => Self::TimedOut,
                _ => Self::Closed,
            },
        }
    }
}
