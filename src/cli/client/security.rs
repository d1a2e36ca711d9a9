//! How a command proves who it is, and makes sure of the server.

use std::path::PathBuf;

use clap::Args;
use oncegate_client::GateBuilder;

/// Certificates and the token. Their ids differ from those of the server's own options.
#[derive(Debug, Clone, Default, Args)]
pub(in crate::cli) struct SecurityArgs {
    /// PEM file with the authorities that sign the server's certificate; unset: those
    /// that this system trusts
    #[arg(long, env = "ONCEGATE_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// PEM file with a client certificate, followed by its intermediates
    #[arg(
        long = "tls-cert",
        env = "ONCEGATE_CLIENT_CERT",
        value_name = "FILE",
        requires = "client_key"
    )]
    client_cert: Option<PathBuf>,
    /// PEM file with the private key of --tls-cert
    #[arg(
        long = "tls-key",
        env = "ONCEGATE_CLIENT_KEY",
        value_name = "FILE",
        requires = "client_cert"
    )]
    client_key: Option<PathBuf>,
    /// Name that the server's certificate must have; unset: the host of --server
    #[arg(long, env = "ONCEGATE_TLS_SERVER_NAME", value_name = "NAME")]
    tls_server_name: Option<String>,
    /// File with the token that is sent with every call, read again for each; without
    /// --insecure it is sent only over TLS, to this machine, or over a Unix socket
    #[arg(long, env = "ONCEGATE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Send the token in plaintext to another machine, such as behind a proxy that adds TLS
    #[arg(long = "insecure")]
    plaintext_token: bool,
}

impl SecurityArgs {
    /// Sets what is given here.
    pub(super) fn apply(&self, mut gate: GateBuilder) -> GateBuilder {
        if let Some(file) = &self.tls_ca {
            gate = gate.tls_ca(file);
        }
        if let (Some(certificate), Some(key)) = (&self.client_cert, &self.client_key) {
            gate = gate.tls_cert(certificate, key);
        }
        if let Some(name) = &self.tls_server_name {
            gate = gate.tls_server_name(name);
        }
        if let Some(file) = &self.token_file {
            gate = gate.token_file(file);
        }
        if self.plaintext_token { gate.insecure() } else { gate }
    }
}

/// What is wrong with an option of the library, under the names of the flags.
pub(super) fn misconfigured(
    option: &str,
    problem: &str,
    allowed_by: Option<&str>,
) -> anyhow::Error {
    let flag = |option: &str| format!("--{}", option.replace('_', "-"));
    let other = allowed_by.map(|other| format!(", or set {}", flag(other))).unwrap_or_default();
    anyhow::anyhow!("{}: {problem}{other}", flag(option))
}

/// What to do about a connection that failed for `cause`, if that shows.
pub(super) fn hint(cause: &str) -> Option<&'static str> {
    /// What rustls and h2 say, and what it means here.
    const MEANINGS: [(&[&str], &str); 6] = [
        (
            &["UnknownIssuer", "CaUsedAsEndEntity"],
            "the server's certificate is not signed by an authority that is trusted here; set \
             --tls-ca",
        ),
        (
            &["not valid for name", "NotValidForName"],
            "the server's certificate has another name; set --tls-server-name, or that name in \
             --server",
        ),
        (
            &["InvalidContentType", "corrupt message"],
            "the server does not use TLS on this port; use --server http://HOST:PORT",
        ),
        (
            &["CertificateRequired"],
            "the server needs a client certificate; set --tls-cert and --tls-key",
        ),
        (
            &["received fatal alert"],
            "the server refuses the TLS handshake; it may not accept the client certificate of \
             --tls-cert",
        ),
        (
            &["FRAME_SIZE_ERROR", "frame with invalid size"],
            "the server may use TLS on this port; use --server https://HOST:PORT",
        ),
    ];
    let meaning = |(signs, meaning): &(&[&str], &'static str)| {
        signs.iter().any(|sign| cause.contains(sign)).then_some(*meaning)
    };
    MEANINGS.iter().find_map(meaning)
}
