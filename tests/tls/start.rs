//! Which servers start: no other machine is served without TLS and authentication unawares.

use oncegate::{server::Server, store::Clock};

use super::{call, serve};
use crate::harness::{
    certs::{Files, workload},
    config,
    metrics::metrics_page,
    process::Process,
};

/// How starting with these flags ends.
async fn started(flags: &[&str]) -> Result<(), String> {
    match Server::start(config("memory:", flags), Clock::Store).await {
        Ok(server) => {
            server.stop().await.unwrap();
            Ok(())
        }
        Err(error) => Err(format!("{error:#}")),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_machines_are_served_only_as_the_table_says() {
    let files = Files::new();
    let (tls, socket) = (files.flags(), format!("unix:{}", files.shown("s/oncegate.sock")));
    let tls: Vec<_> = tls.iter().map(String::as_str).collect();
    let listens = [
        ("127.0.0.1:0", true),
        ("[::1]:0", true),
        (&*socket, true),
        ("0.0.0.0:0", false),
        ("[::]:0", false),
    ];
    for (listen, is_local) in listens {
        for (has_tls, insecure) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut flags = vec!["--listen", listen];
            flags.extend(if has_tls { tls.as_slice() } else { &[] });
            flags.extend(insecure.then_some("--insecure"));
            let started = started(&flags).await;
            assert_eq!(started.is_ok(), is_local || insecure, "{flags:?}: {started:?}");
            let Err(why) = started else { continue };
            assert!(why.contains(listen) && why.contains("--auth"), "{why}");
            assert_eq!(why.contains("--tls-cert"), !has_tls, "{why}");
        }
    }
    // Of several addresses, one that is open is enough; pages alone may be served to all.
    let why = started(&["--listen", "127.0.0.1:0,0.0.0.0:0"]).await.unwrap_err();
    assert!(why.contains("0.0.0.0:0"), "{why}");
    started(&["--ops-listen", "0.0.0.0:0"]).await.unwrap();
}

/// Served to all, with a client that its certificate names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_and_authentication_together_serve_other_machines() {
    let files = Files::new();
    files.put(
        "auth.toml",
        "[[principal]]\nname = \"bot\"\nrole = \"bot\"\nteams = [\"T1\"]\n\
         spiffe = [\"spiffe://acme/ns/bots/sa/bot\"]\n",
    );
    let auth = files.shown("auth.toml");
    let replica =
        serve(&files.mutual("required"), &["--listen", "0.0.0.0:0", "--auth", &auth]).await;
    let own = files.clients.sign(&workload("spiffe://acme/ns/bots/sa/bot"));
    call(&files, &replica, Some(&own)).await.unwrap();
    let other = files.clients.sign(&workload("spiffe://acme/ns/bots/sa/other"));
    let refused = call(&files, &replica, Some(&other)).await.unwrap_err();
    assert!(refused.contains("UNAUTHENTICATED"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_auth_file_ends_the_start_before_the_store_is_touched() {
    let directory = tempfile::tempdir().unwrap();
    let (auth, store) = (directory.path().join("auth.toml"), directory.path().join("marks.db"));
    std::fs::write(&auth, "principal = 1").unwrap();
    let url = format!("sqlite:{}", store.display());
    let config = config(&url, &["--auth", auth.to_str().unwrap()]);
    let Err(error) = Server::start(config, Clock::Store).await else { panic!("it starts") };
    assert!(format!("{error:#}").contains("--auth"), "{error:#}");
    assert!(!store.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_insecure_server_says_so_each_time_it_starts() {
    let replica = serve(&[], &["--listen", "0.0.0.0:0", "--insecure"]).await;
    assert!(metrics_page(&replica).await.contains("oncegate_insecure 1"));
    let process = Process::start("memory:", &["--listen", "0.0.0.0:0", "--insecure"]).await;
    let log = process.log();
    assert!(log.contains("WARN") && log.contains("--insecure is set"), "{log}");
    let (status, log) = Process::refused("memory:", &["--listen", "0.0.0.0:0"]).await;
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("--insecure"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_of_tls_come_together() {
    let files = Files::new();
    let (cert, key) = (files.shown("cert.pem"), files.shown("key.pem"));
    let cases: [&[&str]; 5] = [
        &["--tls-cert", &cert],
        &["--tls-key", &key],
        &["--tls-client-ca", &cert],
        &["--tls-cert", &cert, "--tls-key", &key, "--tls-client", "required"],
        &["--ops-tls"],
    ];
    for flags in cases {
        let (status, log) = Process::refused("memory:", flags).await;
        assert_eq!(status.code(), Some(2), "{flags:?}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_reads_the_certificates_again() {
    let files = Files::new();
    let flags = files.flags();
    let mut flags: Vec<_> = flags.iter().map(String::as_str).collect();
    flags.extend(["--reload-interval", "1h"]);
    let process = Process::start("memory:", &flags).await;
    files.replace(&files.servers.sign(&crate::harness::certs::server()));
    process.signal("HUP");
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while !process.log().contains("their content is in use") {
        assert!(tokio::time::Instant::now() < until, "{}", process.log());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}
