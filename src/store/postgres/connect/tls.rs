//! TLS to PostgreSQL: which servers need it, what it is checked against, and what its errors mean.
//!
//! Architecture Invariant: no error here contains a part of a file. A PEM parser quotes the line that
//! it could not read, which may be a key.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read as _},
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio_rustls::rustls::{
    self, CertificateError,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use super::{
    is_code, parameters,
    source::Problem,
    url::{Host, Target, Tls, TlsMode},
};

/// The longest file with certificates or a key.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A server, and how its connections are to be secured.
#[derive(Debug, Clone)]
pub(super) struct Security {
    server: Host,
    is_off_host: bool,
    pub(super) mode: TlsMode,
    /// Whether the mode was not configured.
    is_default: bool,
    has_root: bool,
}

impl Security {
    pub(super) fn of(target: &Target, options: &PgConnectOptions) -> Self {
        let (name, port) = (options.get_host().to_owned(), Some(options.get_port()));
        let (is_socket, is_off_host) = (is_socket(options), is_off_host(options));
        let mode = match target.tls.mode {
            // A Unix socket has no TLS, whatever is configured.
            _ if is_socket => TlsMode::Disable,
            Some(mode) => mode,
            None if is_off_host => TlsMode::VerifyFull,
            None => TlsMode::Prefer,
        };
        Self {
            server: Host { name, port },
            is_off_host,
            mode,
            is_default: target.tls.mode.is_none(),
            has_root: target.tls.root.is_some(),
        }
    }

    /// The mode that connecting begins with, and the one to fall back to if TLS fails, as in libpq.
    pub(super) fn modes(&self) -> (PgSslMode, Option<PgSslMode>) {
        match self.mode {
            TlsMode::Disable => (PgSslMode::Disable, None),
            TlsMode::Allow => (PgSslMode::Disable, Some(PgSslMode::Require)),
            // In two steps, so that it is known which of them succeeded.
            TlsMode::Prefer if self.is_off_host => (PgSslMode::Require, Some(PgSslMode::Disable)),
            TlsMode::Prefer => (PgSslMode::Prefer, Some(PgSslMode::Disable)),
            TlsMode::Require if self.has_root => (PgSslMode::VerifyCa, None),
            TlsMode::Require => (PgSslMode::Require, None),
            TlsMode::VerifyCa => (PgSslMode::VerifyCa, None),
            TlsMode::VerifyFull => (PgSslMode::VerifyFull, None),
        }
    }

    /// Adds the certificates and the key, which are read again for each connection.
    pub(super) async fn with_files(
        &self,
        tls: &Tls,
        mut options: PgConnectOptions,
    ) -> Result<PgConnectOptions, Problem> {
        let (first, fallback) = self.modes();
        let modes = [Some(first), fallback];
        let is_any = |wanted: &dyn Fn(PgSslMode) -> bool| modes.into_iter().flatten().any(wanted);
        if is_any(&|mode| matches!(mode, PgSslMode::VerifyCa | PgSslMode::VerifyFull)) {
            options = match tls.root.as_deref() {
                // None beside the system's, whatever the environment names.
                Some("system") => options.ssl_root_cert_from_pem(Vec::new()),
                Some(root) => options.ssl_root_cert_from_pem(read("sslrootcert", root).await?),
                None => options,
            };
        }
        if let (Some(certificate), Some(key)) = (&tls.certificate, &tls.key)
            && is_any(&|mode| !matches!(mode, PgSslMode::Disable))
        {
            options = options
                .ssl_client_cert_from_pem(read("sslcert", certificate).await?)
                .ssl_client_key_from_pem(read("sslkey", key).await?);
        }
        Ok(options)
    }

    /// Says what is wrong, with the parameter that decides it, if TLS is why connecting failed.
    pub(super) fn explain(&self, error: sqlx::Error) -> sqlx::Error {
        let Self { server, .. } = self;
        let mode = parameters::mode_name(self.mode);
        let because = match (self.is_default, self.is_off_host) {
            (true, true) => format!("sslmode is {mode}, the default for a server on another host"),
            _ => format!("sslmode is {mode}"),
        };
        let text = match (&error, of_rustls(&error)) {
            (_, Some(rustls::Error::InvalidCertificate(problem))) => match problem {
                CertificateError::UnknownIssuer => format!(
                    "no trusted authority has signed the certificate of {server}: name the \
                     authority's certificate in sslrootcert ({because})"
                ),
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => format!(
                    "the certificate of {server} is for another name: connect by a name in the \
                     certificate, or set sslmode=verify-ca, which does not check the name \
                     ({because}; {problem})"
                ),
                _ => format!("the certificate of {server} is not valid ({because}; {problem})"),
            },
            (_, Some(rustls::Error::AlertReceived(alert))) => format!(
                "{server} refused TLS with the alert {alert:?}: if it needs a client certificate, \
                 check sslcert and sslkey ({because})"
            ),
            (_, Some(rustls::Error::InconsistentKeys(_))) => {
                "the key in sslkey is not the key of the certificate in sslcert".to_owned()
            }
            (_, Some(problem)) => format!("TLS with {server} failed: {problem} ({because})"),
            (sqlx::Error::Tls(cause), None) if is_missing(cause.as_ref()) => format!(
                "{server} does not support TLS: set ssl = on in the server, or, in a network that \
                 you trust, sslmode=disable ({because})"
            ),
            (sqlx::Error::Tls(cause), None) => {
                format!("TLS with {server} failed: {cause} ({because})")
            }
            _ => return error,
        };
        sqlx::Error::Tls(Box::new(Problem(text)))
    }
}

fn is_socket(options: &PgConnectOptions) -> bool {
    options.get_socket().is_some() || options.get_host().starts_with('/')
}

/// Whether a connection may lead to another host.
pub(in super::super) fn is_off_host(options: &PgConnectOptions) -> bool {
    !is_socket(options) && !is_loopback(options.get_host())
}

/// Whether a name can only lead to this host. Any name but `localhost` may be resolved elsewhere
/// tomorrow.
fn is_loopback(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// What sqlx says of a server that answers the request for TLS with no.
fn is_missing(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.to_string() == "server does not support TLS"
}

fn of_rustls(error: &sqlx::Error) -> Option<&rustls::Error> {
    match error {
        sqlx::Error::Io(error) => error.get_ref()?.downcast_ref(),
        sqlx::Error::Tls(error) => error.downcast_ref(),
        _ => None,
    }
}

/// Whether TLS is to blame, or its absence: 28000 is `pg_hba.conf` refusing the connection.
pub(super) fn is_about_tls(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Tls(_)) || of_rustls(error).is_some() || is_code(error, "28000")
}

/// Reads a file with certificates or a key, away from the runtime: it may be on a mount that hangs.
async fn read(parameter: &'static str, path: &str) -> Result<Vec<u8>, Problem> {
    let file = path.to_owned();
    let read = tokio::task::spawn_blocking(move || read_file(Path::new(&file))).await;
    let problem = |cause: &str| Problem(format!("{parameter}: {path} {cause}"));
    let pem = read
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(|error| problem(&format!("cannot be read: {error}")))?;
    if parameter == "sslkey" {
        let key = PrivateKeyDer::from_pem_slice(&pem);
        key.map_err(|_| problem("has no private key in PEM that is not encrypted"))?;
    } else {
        let mut certificates = CertificateDer::pem_slice_iter(&pem).peekable();
        if certificates.peek().is_none() || !certificates.all(|certificate| certificate.is_ok()) {
            return Err(problem("has no certificates in PEM, or damaged ones"));
        }
    }
    Ok(pem)
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    // Before it is opened, which would wait for the writer of a pipe.
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut content = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(content)
}

/// Warns of servers on other hosts whose connections are not, or need not be, encrypted: once for
/// each, however many connections are opened.
#[derive(Clone, Default)]
pub(super) struct Warnings(Arc<Mutex<HashSet<String>>>);

impl Warnings {
    /// Before a connection is opened, which may send a password.
    pub(super) fn configured(&self, security: &Security) {
        let Security { server, is_off_host: true, mode, .. } = security else { return };
        let sslmode = parameters::mode_name(*mode);
        match mode {
            TlsMode::Disable if self.is_new(format!("plain {server}")) => tracing::warn!(
                %server,
                sslmode,
                "connections to PostgreSQL on another host are not encrypted; use \
                 sslmode=verify-full"
            ),
            TlsMode::Allow | TlsMode::Prefer if self.is_new(format!("weak {server}")) => {
                tracing::warn!(
                    %server,
                    sslmode,
                    "sslmode allows connections to PostgreSQL on another host without \
                     encryption; use sslmode=verify-full"
                );
            }
            _ => {}
        }
    }

    /// After one was opened.
    pub(super) fn opened(&self, security: &Security, mode: PgSslMode) {
        let Security { server, is_off_host: true, .. } = security else { return };
        if matches!(mode, PgSslMode::Disable) && self.is_new(format!("plain {server}")) {
            tracing::warn!(
                %server,
                sslmode = parameters::mode_name(security.mode),
                "a connection to PostgreSQL on another host is not encrypted; use \
                 sslmode=verify-full"
            );
        }
    }

    fn is_new(&self, warning: String) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(warning)
    }
}
