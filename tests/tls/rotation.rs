//! Certificates that are replaced while the server runs.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    sync::Arc,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use tokio::task::JoinSet;

use super::{call, call_over, serve};
use crate::harness::{
    Client, Replica,
    certs::{Authority, Files, server, valid},
    mark,
    metrics::{metric, metrics_page},
};

const STALE: &str = "oncegate_config_stale{what=\"tls\"}";

fn reloads(outcome: &str, count: u64) -> String {
    format!("oncegate_reload_total{{what=\"tls\",outcome=\"{outcome}\"}} {count}")
}

/// The certificate that the server shows.
async fn shown(files: &Files, replica: &Replica) -> Vec<u8> {
    let peer = files.connector(&[b"h2"], None).connect(replica.server.address()).await.unwrap();
    peer.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_without_its_key_changes_nothing() {
    let files = Files::new();
    let replica = serve(&files.flags(), &[]).await;
    let mut old = Client::new(files.connect(replica.server.address(), None).await);
    old.mark_processed(mark("T1", "Ev1")).await.unwrap();
    let before = shown(&files, &replica).await;
    let next = files.servers.sign(&server());
    // The key comes later.
    files.put("cert.pem", &next.chain);
    replica.server.reloader().reload();
    metric(&replica, &format!("{STALE} 1")).await;
    metric(&replica, &reloads("failed", 1)).await;
    assert_eq!(shown(&files, &replica).await, before);
    files.put("key.pem", &next.key);
    replica.server.reloader().reload();
    metric(&replica, &format!("{STALE} 0")).await;
    metric(&replica, &reloads("applied", 1)).await;
    assert_ne!(shown(&files, &replica).await, before);
    // A connection of before goes on.
    old.mark_processed(mark("T1", "Ev2")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_finds_the_swap_of_a_kubernetes_volume() {
    let files = Files::new();
    let volume = files.path("volume");
    let put = |version: &str, until: i32| {
        let pair = files.servers.sign(&valid(2020, until, server()));
        fs::create_dir_all(volume.join(version)).unwrap();
        fs::write(volume.join(version).join("tls.crt"), pair.chain).unwrap();
        fs::write(volume.join(version).join("tls.key"), pair.key).unwrap();
    };
    put("..1", 2081);
    symlink("..1", volume.join("..data")).unwrap();
    for name in ["tls.crt", "tls.key"] {
        symlink(Path::new("..data").join(name), volume.join(name)).unwrap();
    }
    let [certificate, key] =
        ["tls.crt", "tls.key"].map(|name| volume.join(name).display().to_string());
    let flags = ["--tls-cert", &certificate, "--tls-key", &key].map(str::to_owned);
    let replica = serve(&flags, &["--reload-interval", "20ms"]).await;
    let line = "oncegate_certificate_not_after_seconds";
    metric(&replica, &format!("{line} 3502915200")).await;
    put("..2", 2085);
    symlink("..2", volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    fs::remove_dir_all(volume.join("..1")).unwrap();
    metric(&replica, &format!("{line} 3629145600")).await;
    metric(&replica, &reloads("failed", 0)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_used_changes_nothing() {
    let files = Files::new();
    let replica = serve(&files.flags(), &[]).await;
    let before = shown(&files, &replica).await;
    let path = files.path("cert.pem");
    let remove = || {
        let _ = fs::remove_file(&path);
        let _ = fs::remove_dir(&path);
    };
    let expired = files.servers.sign(&valid(2020, 2021, server()));
    let early = files.servers.sign(&valid(2080, 2090, server()));
    let large = || fs::File::create(&path).unwrap().set_len(100 << 20).unwrap();
    let pipe = || assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let replaced = |pair: &crate::harness::certs::Pair| {
        files.put("key.pem", &pair.key);
        files.put("cert.pem", &pair.chain);
    };
    let cases: [&dyn Fn(); 9] = [
        &|| fs::write(&path, "").unwrap(),
        &|| {
            fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
                .unwrap();
        },
        &|| fs::write(&path, "-----BEGIN CERTIFICATE-----\nsecret").unwrap(),
        &|| fs::create_dir(&path).unwrap(),
        &large,
        &pipe,
        &|| {},
        &|| replaced(&expired),
        &|| replaced(&early),
    ];
    let mut failed = 0;
    for case in cases {
        remove();
        case();
        replica.server.reloader().reload();
        failed += 1;
        metric(&replica, &reloads("failed", failed)).await;
        metric(&replica, &format!("{STALE} 1")).await;
        assert_eq!(shown(&files, &replica).await, before);
    }
    remove();
    replaced(&files.servers.sign(&server()));
    replica.server.reloader().reload();
    metric(&replica, &format!("{STALE} 0")).await;
    assert_ne!(shown(&files, &replica).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_under_many_callers_fails_no_call() {
    const CALLERS: usize = 256;
    const SWAPS: u64 = 8;
    let files = Arc::new(Files::new());
    let replica = Arc::new(serve(&files.flags(), &[]).await);
    let address = replica.server.address().clone();
    let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut callers = JoinSet::new();
    // Eight connections that stay, with 32 callers each.
    for number in 0..CALLERS / 32 {
        let channel = files.connect(&address, None).await;
        for caller in 0..32 {
            let mut client = Client::new(channel.clone());
            let (stop, calls) = (Arc::clone(&stop), Arc::clone(&calls));
            callers.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let id = format!("{number}-{caller}");
                    client.mark_processed(mark("T1", &id)).await.unwrap();
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    }
    // Others that connect anew for each call.
    for _ in 0..4 {
        let (files, address) = (Arc::clone(&files), address.clone());
        let (stop, calls) = (Arc::clone(&stop), Arc::clone(&calls));
        callers.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                call_over(files.connect(&address, None).await).await.unwrap();
                calls.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    for swap in 1..=SWAPS {
        let seen = calls.load(Ordering::Relaxed);
        let next = files.servers.sign(&server());
        files.put("cert.pem", &next.chain);
        // Between the two files the pair does not match, and may be seen so.
        replica.server.reloader().reload();
        tokio::task::yield_now().await;
        files.put("key.pem", &next.key);
        replica.server.reloader().reload();
        metric(&replica, &reloads("applied", swap)).await;
        while calls.load(Ordering::Relaxed) < seen + 500 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(callers.len(), CALLERS + 4);
        }
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = callers.join_next().await {
        ended.expect("a call failed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_files_keep_the_server_from_starting() {
    let files = Files::new();
    let start = |flags: Vec<String>| async move {
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        let config = crate::harness::config("memory:", &flags);
        let started = oncegate::server::Server::start(config, oncegate::store::Clock::Store).await;
        format!("{:#}", started.err().expect("it started"))
    };
    files.put("key.pem", &files.servers.sign(&server()).key);
    let why = start(files.flags()).await;
    assert!(why.contains("--tls-cert and --tls-key") && why.contains("KeyMismatch"), "{why}");
    files.put("key.pem", "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n");
    let why = start(files.flags()).await;
    assert!(why.contains("--tls-key") && !why.contains("c2VjcmV0"), "{why}");
    files.put("key.pem", "s3cret");
    let why = start(files.flags()).await;
    assert!(why.contains("--tls-key") && !why.contains("s3cret"), "{why}");
    fs::remove_file(files.path("cert.pem")).unwrap();
    let why = start(files.flags()).await;
    assert!(why.contains("cert.pem") && why.contains("No such file"), "{why}");
    files.replace(&files.servers.sign(&server()));
    files.put("client-ca.pem", "");
    let why = start(files.mutual("required")).await;
    assert!(why.contains("--tls-client-ca"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_tls_there_is_no_end_of_a_certificate() {
    let replica = serve(&[], &[]).await;
    let page = metrics_page(&replica).await;
    assert!(!page.contains("certificate_not_after"), "{page}");
    assert!(page.contains("oncegate_insecure 0"), "{page}");
    // A certificate of another authority is the client's to refuse.
    let files = Files::new();
    files.replace(&Authority::new("others").sign(&server()));
    let replica = serve(&files.flags(), &[]).await;
    assert!(call(&files, &replica, None).await.unwrap_err().contains("UnknownIssuer"));
    let line = "oncegate_tls_handshakes_total{listener=\"grpc\",outcome=\"distrusted\"} 1";
    metric(&replica, line).await;
}
