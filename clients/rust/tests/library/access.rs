//! TLS, client certificates and tokens.

use std::{fs, net::TcpListener, path::PathBuf, process::Command, time::Duration};

use oncegate_client::{Delivery, Error, Gate, GateBuilder, testing::Server};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tempfile::TempDir;

/// Issues certificates.
struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("ca.pem"), issuer.pem()).expect("it is written");
        Self { folder, issuer }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate for 127.0.0.1, or for a client, and its key.
    fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            vec![SanType::IpAddress("127.0.0.1".parse().expect("an address"))];
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        let path = |suffix| self.folder.path().join(format!("{name}.{suffix}"));
        fs::write(path("pem"), cert.pem()).expect("it is written");
        fs::write(path("key"), key.serialize_pem()).expect("it is written");
        (path("pem"), path("key"))
    }
}

/// A token, and its line in the file of `--auth`.
fn new_token() -> (String, String) {
    #[expect(clippy::disallowed_methods, reason = "the settings of a test")]
    let binary = std::env::var("ONCEGATE_BINARY").unwrap_or_else(|_| "oncegate".to_owned());
    let output = Command::new(binary).args(["token", "new"]).output().expect("a token");
    let output = String::from_utf8(output.stdout).expect("a text");
    let (token, line) = output.trim().split_once('\n').expect("two lines");
    (token.to_owned(), line.to_owned())
}

/// A server with two principals, each with a token and a team of its own.
struct Secured {
    ca: Authority,
    address: String,
    first: String,
    second: String,
    _server: Server,
}

impl Secured {
    async fn start(asks_for_certificates: bool) -> Self {
        let ca = Authority::new();
        let ((first, first_line), (second, second_line)) = (new_token(), new_token());
        let principals = [("first", "T1", first_line), ("second", "T2", second_line)];
        let principals = principals.map(|(name, team, line)| {
            format!(
                "[[principal]]\nname = \"{name}\"\nrole = \"bot\"\nteams = [\"{team}\"]\n{line}\n"
            )
        });
        let auth = ca.folder.path().join("auth.toml");
        fs::write(&auth, principals.concat()).expect("it is written");
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("an address").to_string();
        drop(free);
        let (cert, key) = ca.issue("server");
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let (cert, key, auth, file) = (text(cert), text(key), text(auth), text(ca.file()));
        let mut arguments = vec!["--listen", &address, "--tls-cert", &cert, "--tls-key", &key];
        arguments.extend(["--auth", &auth]);
        if asks_for_certificates {
            arguments.extend(["--tls-client-ca", &file]);
        }
        let server = Server::start(arguments).await;
        Self { ca, address: format!("https://{address}"), first, second, _server: server }
    }

    fn builder(&self) -> GateBuilder {
        let builder = Gate::builder().server(&self.address).tls_ca(self.ca.file());
        builder.patience(Duration::from_secs(1))
    }
}

fn delivery(team: &str) -> Delivery {
    Delivery::new(team, "E1")
}

#[track_caller]
fn assert_denied<T>(result: Result<T, Error>, expected: &str) {
    match result {
        Err(Error::Denied { reason, .. }) => assert_eq!(reason, expected),
        Err(error) => panic!("{error}, expected {expected}"),
        Ok(_) => panic!("it is not denied, expected {expected}"),
    }
}

#[tokio::test]
async fn tokens_over_tls() {
    let secured = Secured::start(false).await;
    let file = secured.ca.folder.path().join("token");
    fs::write(&file, format!("{}\n", secured.first)).expect("it is written");
    let gate = secured.builder().token_file(&file).build().expect("a gate");
    assert!(gate.mark(delivery("T1")).await.expect("it is allowed").first);
    assert_denied(gate.mark(delivery("T2")).await, "TEAM_DENIED");

    fs::write(&file, &secured.second).expect("it is written");
    let turn = gate.turn(delivery("T2")).begin().await.expect("the new token is used");
    turn.succeed(&()).await.expect("it succeeds");
    let other = secured.builder().token("unknown").build().expect("a gate");
    assert_denied(other.seen(&delivery("T1")).await, "UNAUTHENTICATED");
    gate.close().await;
}

#[tokio::test]
async fn a_server_that_is_not_trusted() {
    let secured = Secured::start(false).await;
    let others = Authority::new();
    let gate = secured.builder().tls_ca(others.file()).token(&secured.first).build();
    let error = gate.expect("a gate").mark(delivery("T1")).await.expect_err("it is not trusted");
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("tls_ca"), "{error}");
}

#[tokio::test]
async fn client_certificates() {
    let secured = Secured::start(true).await;
    let without = secured.builder().token(&secured.first).build().expect("a gate");
    let error = without.mark(delivery("T1")).await.expect_err("it has no certificate");
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("tls_cert"), "{error}");

    let (cert, key) = secured.ca.issue("client");
    let gate = secured.builder().tls_cert(&cert, &key).token(&secured.first).build();
    let marked = gate.expect("a gate").mark(delivery("T1")).await;
    assert!(marked.expect("it is allowed").first);

    let (other, _) = secured.ca.issue("other");
    let mixed = secured.builder().tls_cert(other, key).build().expect("a gate");
    let error = mixed.mark(delivery("T1")).await.expect_err("the key is another one's");
    assert!(matches!(error, Error::Misconfigured { option: "tls_cert", .. }), "{error}");
}

#[tokio::test]
async fn a_client_certificate_that_is_replaced() {
    let secured = Secured::start(true).await;
    let strangers = Authority::new();
    let (cert, key) = strangers.issue("client"); // which the server does not trust
    let builder = secured.builder().tls_cert(&cert, &key).token(&secured.first);
    let gate = builder.patience(Duration::from_secs(20)).build().expect("a gate");
    let marking = tokio::spawn(async move { gate.mark(delivery("T1")).await });
    // The first attempts fail, and are repeated.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!marking.is_finished(), "a certificate of another authority is taken, or is final");
    let (new_cert, new_key) = secured.ca.issue("client");
    fs::rename(new_cert, cert).expect("it is renamed");
    fs::rename(new_key, key).expect("it is renamed");
    assert!(marking.await.expect("no panic").expect("the new certificate is used").first);
}
