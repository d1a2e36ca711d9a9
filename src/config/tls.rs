//! TLS on the server's TCP addresses.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Whether clients must have a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TlsClient {
    /// A client may connect without one; one that it has must be valid.
    Optional,
    /// A client without a valid one cannot connect.
    Required,
}

/// Certificates, as files.
#[derive(Debug, Clone, Default, Args)]
pub struct TlsConfig {
    /// PEM file with the server's certificate, followed by its intermediates;
    /// enables TLS on every TCP address of --listen. Read again when it changes
    #[arg(long, env = "ONCEGATE_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the private key of --tls-cert. Read again when it changes
    #[arg(long, env = "ONCEGATE_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// PEM file with the authorities that sign client certificates; unset: the
    /// server asks clients for none. Read again when it changes
    #[arg(long, env = "ONCEGATE_TLS_CLIENT_CA", value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,
    /// Whether a client must have a certificate of --tls-client-ca; unset: required
    #[arg(long, env = "ONCEGATE_TLS_CLIENT", value_enum, requires = "tls_client_ca")]
    pub tls_client: Option<TlsClient>,
    /// Use TLS on --ops-listen too, with the same certificates
    #[arg(long, env = "ONCEGATE_OPS_TLS", requires = "tls_cert")]
    pub ops_tls: bool,
}

impl TlsConfig {
    /// The files of the server's certificate and its key, if it uses TLS.
    #[must_use]
    pub fn pair(&self) -> Option<(&PathBuf, &PathBuf)> {
        self.tls_cert.as_ref().zip(self.tls_key.as_ref())
    }

    /// What clients need.
    #[must_use]
    pub fn client(&self) -> TlsClient {
        self.tls_client.unwrap_or(TlsClient::Required)
    }
}
