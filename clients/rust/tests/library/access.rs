//! TLS, client certificates and tokens.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use oncegate_client::{Delivery, Error, Gate, GateBuilder, testing::Server};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tempfile::TempDir;
use tokio::{
    io::copy,
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tower::{Service as _, ServiceExt};

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
    /// What the server trusts for clients.
    client_ca: PathBuf,
    server: Server,
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
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("an address").to_string();
        drop(free);
        let (cert, key) = ca.issue("server");
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let client_ca = ca.folder.path().join("client-ca.pem");
        fs::copy(ca.file(), &client_ca).expect("it is copied");
        let (cert, key, auth) = (text(cert), text(key), text(auth));
        let file = text(client_ca.clone());
        let mut arguments = vec!["--listen", &address, "--tls-cert", &cert, "--tls-key", &key];
        arguments.extend(["--auth", &auth]);
        if asks_for_certificates {
            arguments.extend(["--tls-client-ca", &file]);
        }
        let server = Server::start(arguments).await;
        Self { ca, address: format!("https://{address}"), first, second, client_ca, server }
    }

    fn builder(&self) -> GateBuilder {
        let builder = Gate::builder().server(&self.address).tls_ca(self.ca.file());
        builder.patience(Duration::from_secs(1))
    }
}

/// Passes connections on to a server, and reports each one that the server has ended.
struct Relay {
    address: String,
    has_closed: mpsc::Receiver<()>,
}

impl Relay {
    async fn start(server: &str) -> Self {
        let server = server.trim_start_matches("https://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = format!("https://{}", listener.local_addr().expect("an address"));
        let (closed, has_closed) = mpsc::channel(1000);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let onward = TcpStream::connect(&server).await.expect("the server listens");
                let closed = closed.clone();
                tokio::spawn(async move {
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = onward.into_split();
                    let asking = tokio::spawn(async move {
                        let _ = copy(&mut from_client, &mut to_server).await; // or it is broken
                    });
                    let _ = copy(&mut from_server, &mut to_client).await;
                    asking.abort();
                    let _ = closed.send(()).await; // the test may be over
                });
            }
        });
        Self { address, has_closed }
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
    let mut relay = Relay::start(&secured.address).await;
    let strangers = Authority::new();
    let (cert, key) = strangers.issue("client"); // which the server does not trust
    let builder = secured.builder().server(&relay.address).tls_cert(&cert, &key);
    let builder = builder.token(&secured.first).patience(Duration::from_secs(60));
    let gate = builder.build().expect("a gate");
    let mut marking = tokio::spawn(async move { gate.mark(delivery("T1")).await });
    // The first attempt fails, and is repeated.
    for _ in 0..2 {
        tokio::select! {
            _ = relay.has_closed.recv() => {}
            marked = &mut marking => panic!("with a certificate of another authority: {marked:?}"),
        }
    }
    let (new_cert, new_key) = secured.ca.issue("client");
    fs::rename(new_cert, cert).expect("it is renamed");
    fs::rename(new_key, key).expect("it is renamed");
    assert!(marking.await.expect("no panic").expect("the new certificate is used").first);
}

#[tokio::test]
async fn a_connection_uses_certificates_that_are_replaced() {
    let secured = Secured::start(true).await;
    let (cert, key) = secured.ca.issue("client");
    let builder = secured.builder().tls_cert(&cert, &key).token(&secured.first);
    let gate = builder.build().expect("a gate");
    let mut connection = gate.connect(Duration::from_secs(10)).await.expect("a connection");
    let mut call = async || {
        let request = Request::post("http://server/oncegate.v1.IdempotencyService/Unknown");
        let request = request.header("content-type", "application/grpc");
        let request = request.body(Full::new(Bytes::from_static(&[0; 5]))).expect("a request");
        let ready = ServiceExt::<Request<Full<Bytes>>>::ready(&mut connection).await?;
        let answer = ready.call(request).await?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(answer.headers().clone())
    };
    assert!(call().await.expect("an answer").contains_key("grpc-status"));

    // From now on the server takes the clients of another authority.
    let others = Authority::new();
    fs::copy(others.file(), &secured.client_ca).expect("it is copied");
    secured.server.restart().await;
    call().await.expect_err("the certificate is not taken");
    let (new_cert, new_key) = others.issue("client");
    fs::rename(new_cert, cert).expect("it is renamed");
    fs::rename(new_key, key).expect("it is renamed");
    let answered = timeout(Duration::from_secs(60), async {
        loop {
            match call().await {
                Ok(headers) => return headers,
                Err(_) => tokio::task::yield_now().await, // the files are looked at after 1 s
            }
        }
    });
    let headers = answered.await.expect("the new certificate is used");
    assert!(headers.contains_key("grpc-status"));
}
