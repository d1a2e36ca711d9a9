//! TLS to a PostgreSQL on another host: verified by default, and explained when it fails.

use std::{
    fs::{self, Permissions},
    net::UdpSocket,
    os::unix::fs::{PermissionsExt as _, chown},
    process::Command,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use super::{data, open_folder, port, settings};
use crate::harness::{
    postgres::{Cluster, other_user},
    process::Process,
};

/// A name of this machine that leads past loopback: its address, which needs no packet to be sent to
/// be found.
fn own_name() -> String {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("192.0.2.1:9").unwrap();
    let address = socket.local_addr().unwrap().ip();
    assert!(!address.is_loopback(), "this machine has no address but loopback");
    address.to_string()
}

/// Makes an authority, and a certificate of it for `name`; returns where the authority's is.
fn certify(folder: &TempDir, name: &str) -> String {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = authority.self_signed(&authority_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([name.to_owned()]).unwrap();
    let certificate = certificate.signed_by(&key, &Issuer::new(authority, authority_key)).unwrap();
    let place = |name: &str| folder.path().join(name);
    fs::write(place("root.crt"), root.pem()).unwrap();
    fs::write(place("server.crt"), certificate.pem()).unwrap();
    fs::write(place("server.key"), key.serialize_pem()).unwrap();
    place("root.crt").display().to_string()
}

/// A cluster that can be reached by `name`; with TLS if `folder` has a certificate.
fn cluster(folder: &TempDir, name: &str) -> Cluster {
    let hba = folder.path().join("hba");
    fs::write(&hba, "host all all all trust\n").unwrap();
    let mut list =
        vec![format!("listen_addresses=127.0.0.1,{name}"), format!("hba_file={}", hba.display())];
    let (certificate, key) = (folder.path().join("server.crt"), folder.path().join("server.key"));
    if key.exists() {
        if let Some((uid, gid)) = other_user() {
            chown(&key, Some(uid), Some(gid)).unwrap();
        }
        fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
        list.push("ssl=on".into());
        list.push(format!("ssl_cert_file={}", certificate.display()));
        list.push(format!("ssl_key_file={}", key.display()));
    }
    Cluster::start_with(settings(list))
}

/// Runs `oncegate migrate`; whether it succeeded, and what it printed.
fn migrate(url: &str) -> (bool, String) {
    let ran = Command::new(env!("CARGO_BIN_EXE_oncegate"))
        .env_clear()
        .args(["migrate", "--connect-timeout", "10ms", "--database-url", url])
        .output()
        .unwrap();
    (ran.status.success(), String::from_utf8(ran.stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_on_another_host_needs_a_certificate_that_is_trusted_and_names_it() {
    let name = own_name();
    let (ours, others, plain) = (open_folder(), open_folder(), open_folder());
    let root = certify(&ours, &name);
    let secured = cluster(&ours, &name);
    for file in ["server.crt", "server.key"] {
        fs::copy(data(file), others.path().join(file)).unwrap();
    }
    let (misnamed, plain) = (cluster(&others, &name), cluster(&plain, &name));
    let (secured, misnamed, plain) = (&secured, &misnamed, &plain);
    let (their_root, localhost_root) = (data("other_ca.crt"), data("ca.crt"));
    let default = "the default for a server on another host";
    for (cluster, parameters, refusal) in [
        (secured, format!("sslrootcert={root}"), &[][..]),
        (secured, format!("sslmode=verify-full&sslrootcert={root}"), &[]),
        (secured, "sslmode=require".into(), &[]),
        (secured, String::new(), &["authority", "sslrootcert", "verify-full", default]),
        (secured, format!("sslrootcert={their_root}"), &["authority", "sslrootcert", default]),
        (
            secured,
            format!("sslmode=verify-ca&sslrootcert={their_root}"),
            &["authority", "sslrootcert", "(sslmode is verify-ca)"],
        ),
        (
            misnamed,
            format!("sslrootcert={localhost_root}"),
            &["another name", "localhost", "sslmode=verify-ca", default],
        ),
        (misnamed, format!("sslmode=verify-ca&sslrootcert={localhost_root}"), &[]),
        (plain, String::new(), &["does not support TLS", "sslmode=disable", default]),
        (plain, "sslmode=require".into(), &["does not support TLS", "(sslmode is require)"]),
        (plain, "sslrootcert=system".into(), &["does not support TLS", "sslmode"]),
        (plain, "sslmode=disable".into(), &[]),
        (plain, "sslmode=allow".into(), &[]),
        (plain, "sslmode=prefer".into(), &[]),
    ] {
        let url = format!("postgres://postgres@{name}:{}/postgres?{parameters}", port(cluster));
        let (succeeded, printed) = migrate(&url);
        assert_eq!(succeeded, refusal.is_empty(), "{url}: {printed}");
        for part in refusal {
            assert!(printed.contains(part), "{url}: {part:?} is not in {printed}");
        }
    }
    // Each of several hosts by itself: the one on this host needs no certificate.
    let plain = port(plain);
    let url = format!("postgres://postgres@{name}:{plain},127.0.0.1:{plain}/postgres");
    let (succeeded, printed) = migrate(&url);
    assert!(succeeded && !printed.contains("another host"), "{printed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_without_encryption_is_logged_once() {
    let name = own_name();
    let folder = open_folder();
    certify(&folder, &name);
    let (plain, secured) = (open_folder(), cluster(&folder, &name));
    let plain = cluster(&plain, &name);
    let weak = "allows connections to PostgreSQL on another host without";
    let bare = "PostgreSQL on another host is not encrypted";
    let bare_all = "PostgreSQL on another host are not encrypted";
    for (cluster, host, mode, counts) in [
        (&plain, name.as_str(), "disable", [0, 0, 1]),
        (&plain, &name, "prefer", [1, 1, 0]),
        (&secured, &name, "prefer", [1, 0, 0]),
        (&secured, &name, "allow", [1, 1, 0]),
        (&secured, &name, "require", [0, 0, 0]),
        (&plain, "127.0.0.1", "disable", [0, 0, 0]),
        (&plain, "localhost", "prefer", [0, 0, 0]),
    ] {
        let url = format!("postgres://postgres@{host}:{}/postgres?sslmode={mode}", port(cluster));
        let server = Process::start(&url, &[]).await;
        server.terminate();
        let (_, log) = server.end(std::time::Duration::from_mins(1)).await;
        let found = [weak, bare, bare_all].map(|text| log.matches(text).count());
        assert_eq!(found, counts, "{host} {mode}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_reports_how_connections_are_secured() {
    let name = own_name();
    let (ours, plain) = (open_folder(), open_folder());
    let root = certify(&ours, &name);
    let (secured, plain) = (cluster(&ours, &name), cluster(&plain, &name));
    for (cluster, host, parameters, expected) in [
        (&secured, name.as_str(), format!("sslrootcert={root}"), "ok      tls: TLSv1."),
        (&secured, "127.0.0.1", "sslmode=require".into(), "ok      tls: TLSv1."),
        (&secured, &name, "sslmode=require".into(), "warning tls: TLSv1."),
        (
            &plain,
            &name,
            "sslmode=disable".into(),
            "warning tls: connections to another host are not",
        ),
        (
            &plain,
            &name,
            "sslmode=prefer".into(),
            "warning tls: connections to another host are not",
        ),
        (&plain, "127.0.0.1", String::new(), "ok      tls: not encrypted, and on this machine"),
    ] {
        let url = format!("postgres://postgres@{host}:{}/postgres?{parameters}", port(cluster));
        let ran = Command::new(env!("CARGO_BIN_EXE_oncegate"))
            .env_clear()
            .args(["doctor", "--database-url", &url])
            .output()
            .unwrap();
        let printed = String::from_utf8(ran.stdout).unwrap();
        let line = printed.lines().find(|line| line.contains(" tls: ")).unwrap();
        assert!(line.starts_with(expected), "{url}: {line}");
        assert_eq!(line.contains("sslmode=verify-full"), line.starts_with("warning"), "{line}");
    }
}

/// A key, as it is found where line breaks were lost on the way through a variable.
fn one_line(key: &str) -> String {
    key.trim_end().replace('\n', " ")
}

#[tokio::test]
async fn files_of_tls_are_named_and_nothing_that_they_hold() {
    let folder = open_folder();
    let name = "127.0.0.1";
    certify(&folder, name);
    let cluster = cluster(&folder, name);
    let key = KeyPair::generate().unwrap().serialize_pem();
    let secret = key.lines().nth(1).unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let certificate = folder.path().join("root.crt").display().to_string();
    let missing = folder.path().join("missing").display().to_string();
    let directory = folder.path().display().to_string();
    let line = file("line", &one_line(&key));
    let cut = file("cut", &key[..key.len() / 2]);
    let other = file("other", &key);
    for (parameters, parts) in [
        (format!("sslrootcert={missing}"), ["sslrootcert: ", "missing cannot be read"]),
        (format!("sslrootcert={directory}"), ["sslrootcert: ", "not a regular file"]),
        (format!("sslrootcert={other}"), ["sslrootcert: ", "no certificates"]),
        (format!("sslrootcert={line}"), ["sslrootcert: ", "no certificates"]),
        (format!("sslcert={certificate}&sslkey={line}"), ["sslkey: ", "no private key"]),
        (format!("sslcert={certificate}&sslkey={cut}"), ["sslkey: ", "no private key"]),
        (format!("sslcert={certificate}&sslkey={missing}"), ["sslkey: ", "cannot be read"]),
        (format!("sslcert={other}&sslkey={other}"), ["sslcert: ", "no certificates"]),
        (format!("sslcert={certificate}&sslkey={other}"), ["the key in sslkey", "sslcert"]),
    ] {
        let port = port(&cluster);
        let url = format!("postgres://u@{name}:{port}/postgres?sslmode=verify-full&{parameters}");
        let (succeeded, printed) = migrate(&url);
        assert!(!succeeded, "{parameters}");
        for part in parts {
            assert!(printed.contains(part), "{parameters}: {part:?} is not in {printed}");
        }
        assert!(!printed.contains(secret), "{parameters}: {printed}");
        // As numbers, which is how a parser quotes a line.
        let numbers = secret.bytes().take(8).map(|byte| byte.to_string()).collect::<Vec<_>>();
        assert!(!printed.contains(&numbers.join(", ")), "{parameters}: {printed}");
    }
}
