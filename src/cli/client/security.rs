//! How a command proves who it is, and makes sure of the server.

use std::{
    fs::File,
    io::Read as _,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, ensure};
use clap::Args;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
    transport::{Certificate, ClientTlsConfig, Identity, Uri},
};

/// The longest token, in bytes. Longer metadata is refused by the server.
const MAX_TOKEN_BYTES: usize = 8 * 1024;

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
    /// File with the token that is sent with every call, read again for each; it is
    /// sent only over TLS, to this machine, or over a Unix socket
    #[arg(long, env = "ONCEGATE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl SecurityArgs {
    /// What TLS needs for a server at `uri`; none if it does not use TLS.
    pub(super) fn tls(&self, uri: &Uri) -> anyhow::Result<Option<ClientTlsConfig>> {
        if uri.scheme_str() != Some("https") {
            for (flag, is_given) in [
                ("--tls-ca", self.tls_ca.is_some()),
                ("--tls-cert", self.client_cert.is_some()),
                ("--tls-server-name", self.tls_server_name.is_some()),
            ] {
                ensure!(!is_given, "{flag} needs TLS: use --server https://HOST:PORT");
            }
            return Ok(None);
        }
        let mut tls = match &self.tls_ca {
            Some(path) => {
                let authorities = Certificate::from_pem(read(path, "--tls-ca")?);
                ClientTlsConfig::new().ca_certificate(authorities)
            }
            None => ClientTlsConfig::new().with_native_roots(),
        };
        if let (Some(certificate), Some(key)) = (&self.client_cert, &self.client_key) {
            let [certificate, key] = [read(certificate, "--tls-cert")?, read(key, "--tls-key")?];
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        if let Some(name) = &self.tls_server_name {
            tls = tls.domain_name(name);
        }
        Ok(Some(tls))
    }

    /// The token for a server at `uri`.
    pub(super) fn token(&self, uri: &Uri) -> anyhow::Result<Token> {
        let token = Token(self.token_file.as_deref().map(Arc::from));
        // Only to find a mistake before the first call.
        if token.read()?.is_some() && uri.scheme_str() == Some("http") {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
            let is_local = host == "localhost"
                || host.parse().is_ok_and(|ip: IpAddr| ip.to_canonical().is_loopback());
            ensure!(
                is_local,
                "--token-file: a token is not sent to {host} without TLS: use --server \
                 https://HOST:PORT"
            );
        }
        Ok(token)
    }
}

fn read(path: &Path, flag: &str) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{flag}: cannot read {}", path.display()))
}

/// Adds the token to each call, if there is one: as its file holds it then.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Token(Option<Arc<Path>>);

impl Token {
    fn read(&self) -> anyhow::Result<Option<MetadataValue<Ascii>>> {
        let Some(path) = &self.0 else { return Ok(None) };
        let shown = path.display();
        let mut text = String::new();
        let limit = u64::try_from(MAX_TOKEN_BYTES)? + 1;
        File::open(path)
            .and_then(|file| file.take(limit).read_to_string(&mut text))
            .with_context(|| format!("--token-file: cannot read {shown}"))?;
        let token = text.trim();
        let is_fit = !token.is_empty()
            && text.len() <= MAX_TOKEN_BYTES
            && token.bytes().all(|byte| byte.is_ascii_graphic());
        ensure!(is_fit, "--token-file: {shown} does not hold one token");
        let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse()?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        // With a source, as what no server has said.
        let token = self.read().map_err(|error| Status::from_error(error.into()))?;
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", token);
        }
        Ok(request)
    }
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn with_token(text: &str) -> (tempfile::TempDir, SecurityArgs) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(&path, text).unwrap();
        (directory, SecurityArgs { token_file: Some(path), ..Default::default() })
    }

    #[test]
    fn a_token_leaves_this_machine_only_over_tls() {
        let (_directory, args) = with_token("s3cret\n");
        for uri in ["http://localhost:1", "http://127.0.0.1:1", "http://[::1]:1", "https://a.b:1"] {
            assert!(args.token(&uri.parse().unwrap()).is_ok(), "{uri}");
        }
        for uri in ["http://10.0.0.1:1", "http://a.b:1", "http://localhost.a:1", "http://[::]:1"] {
            let error = args.token(&uri.parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains("https://") && !error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_token_is_read_again_for_each_call() {
        let (_directory, args) = with_token("\n first \r\n");
        let mut token = args.token(&"http://localhost:1".parse().unwrap()).unwrap();
        let mut sent = || {
            let request = token.call(Request::new(()));
            request.map(|request| request.metadata().get("authorization").unwrap().clone())
        };
        assert_eq!(sent().unwrap(), "Bearer first");
        let path = args.token_file.clone().unwrap();
        fs::write(&path, "second").unwrap();
        assert_eq!(sent().unwrap(), "Bearer second");
        assert!(sent().unwrap().is_sensitive());
        for bad in ["", " \n", "two words", "a\nb", "caf\u{e9}", &"x".repeat(MAX_TOKEN_BYTES + 1)] {
            fs::write(&path, bad).unwrap();
            let status = sent().unwrap_err();
            assert!(std::error::Error::source(&status).is_some(), "{status:?}");
        }
        fs::remove_file(&path).unwrap();
        assert!(sent().is_err());
    }

    #[test]
    fn options_of_tls_need_tls() {
        let args = SecurityArgs { tls_ca: Some("ca.pem".into()), ..Default::default() };
        let error = args.tls(&"http://a.b:1".parse().unwrap()).unwrap_err().to_string();
        assert_eq!(error, "--tls-ca needs TLS: use --server https://HOST:PORT");
        let args = SecurityArgs::default();
        assert!(args.tls(&"http://a.b:1".parse().unwrap()).unwrap().is_none());
        assert!(args.tls(&"https://a.b:1".parse().unwrap()).unwrap().is_some());
    }
}
