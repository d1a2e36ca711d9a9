//! Commands over TLS, and what they say if it fails.

use std::fs;

use oncegate::store::Clock;

use super::{Ran, oncegate, run};
use crate::harness::{
    Replica,
    certs::{Authority, Files, client, port},
};

async fn serve(flags: &[String]) -> Replica {
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    Replica::start("memory:", Clock::Store, &flags).await
}

/// Marks an event at `server`, with further arguments.
fn mark(server: &str, arguments: &[&str]) -> Ran {
    let mut command = oncegate(&["mark", "T1", "Ev1", "--server", server]);
    run(command.args(arguments), "")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_uses_tls_and_a_certificate() {
    let files = Files::new();
    let replica = serve(&files.mutual("required")).await;
    let own = files.clients.sign(&client("operator"));
    files.put("own.pem", &own.chain);
    files.put("own-key.pem", &own.key);
    let [ca, cert, key] = ["ca.pem", "own.pem", "own-key.pem"].map(|name| files.shown(name));
    let port = port(replica.server.address());
    let own = ["--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key];
    let ran = mark(&format!("https://localhost:{port}"), &own);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    // By variables, and under a name that the certificate does not have for the address.
    let mut command = oncegate(&["check", "T1", "Ev1"]);
    command
        .env("ONCEGATE_SERVER", format!("https://127.0.0.1:{port}"))
        .env("ONCEGATE_TLS_CA", &ca)
        .env("ONCEGATE_CLIENT_CERT", &cert)
        .env("ONCEGATE_CLIENT_KEY", &key)
        .env("ONCEGATE_TLS_SERVER_NAME", "localhost");
    let ran = run(&mut command, "");
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    // Without one.
    let ran = mark(&format!("https://localhost:{port}"), &["--tls-ca", &ca]);
    assert_ne!(ran.code, Some(0));
    assert!(ran.err.contains("set --tls-cert and --tls-key"), "{}", ran.err);
    // With one of another authority.
    let other = Authority::new("others").sign(&client("operator"));
    files.put("own.pem", &other.chain);
    files.put("own-key.pem", &other.key);
    let ran = mark(&format!("https://localhost:{port}"), &own);
    assert_ne!(ran.code, Some(0));
    assert!(ran.err.contains("client certificate of --tls-cert"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_connection_names_the_flag_that_may_be_wrong() {
    let files = Files::new();
    let replica = serve(&files.flags()).await;
    let ca = files.shown("ca.pem");
    let port = port(replica.server.address());
    let https = format!("https://localhost:{port}");
    let ran = mark(&https, &["--tls-ca", &ca]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    files.put("other-ca.pem", &Authority::new("others").pem());
    files.put("nothing.pem", "");
    let [other, nothing] = ["other-ca.pem", "nothing.pem"].map(|name| files.shown(name));
    mark(&https, &["--tls-ca", &other]).complained(1, "set --tls-ca");
    mark(&https, &["--tls-ca", &nothing]).complained(2, "--tls-ca: cannot use the file");
    mark(&https, &["--tls-ca", "/none.pem"])
        .complained(2, "--tls-ca: cannot use the file /none.pem");
    let other_name = ["--tls-ca", &ca, "--tls-server-name", "oncegate.bots"];
    mark(&https, &other_name).complained(1, "set --tls-server-name");
    // Plaintext to a port with TLS.
    let ran = mark(&format!("localhost:{port}"), &[]);
    assert_eq!(ran.code, Some(4), "{}", ran.err);
    assert!(ran.err.contains("--server https://HOST:PORT"), "{}", ran.err);
    mark(&format!("localhost:{port}"), &["--tls-ca", &ca])
        .complained(2, "--tls-ca: the option needs TLS");
    // TLS to a port without.
    let plain = serve(&[]).await;
    let https =
        format!("https://localhost:{}", super::super::harness::certs::port(plain.server.address()));
    mark(&https, &["--tls-ca", &ca]).complained(1, "--server http://HOST:PORT");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_sent_but_never_shown_and_not_in_the_clear() {
    let files = Files::new();
    let replica = serve(&files.flags()).await;
    files.put("token", "s3cret-t0ken\n");
    let [ca, token] = ["ca.pem", "token"].map(|name| files.shown(name));
    let https = format!("https://localhost:{}", port(replica.server.address()));
    let ran = mark(&https, &["--tls-ca", &ca, "--token-file", &token, "--log", "trace"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(!ran.err.contains("s3cret"), "{}", ran.err);
    let ran = mark("192.0.2.1:7411", &["--token-file", &token]);
    ran.complained(2, "--server: a token must not be sent in plaintext to 192.0.2.1:7411");
    assert!(ran.err.contains("or set --insecure"), "{}", ran.err);
    fs::write(files.path("token"), "").unwrap();
    mark(&https, &["--token-file", &token]).complained(2, "--token-file: cannot use the file");
    mark(&https, &["--token-file", "/none"])
        .complained(2, "--token-file: cannot use the file /none");
    // There is no way to give one in the arguments, where other users see it.
    let ran = mark(&https, &["--token", "s3cret"]);
    assert_eq!(ran.code, Some(2), "{}", ran.err);
}
