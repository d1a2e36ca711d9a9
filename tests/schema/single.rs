//! The embedded store: one process a file.

use std::{fs::DirEntry, os::unix::fs::symlink, path::Path, time::Duration};

use oncegate::{
    grpc::pb::IsProcessedRequest,
    server::{self, Server},
    store::Clock,
};
use tonic::{Code, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::refusal;
use crate::harness::{
    Replica, acquire, config, connect, event, granted, mark, process::Process, renew, sqlite_url,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_server_on_a_file_is_refused_until_the_first_has_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let url = sqlite_url(&directory);
    let first = Replica::start(&url, Clock::Store, &[]).await;
    let mut client = first.client().await;
    assert!(client.mark_processed(mark("T", "x")).await.unwrap().into_inner().first);

    let alias = directory.path().join("alias.db");
    symlink(directory.path().join("oncegate.db"), &alias).unwrap();
    for same in [url.clone(), format!("sqlite://{}", alias.display())] {
        let why = refusal(&same, &[]).await;
        assert!(why.contains("another process uses"), "{why}");
        assert!(why.contains("PostgreSQL"), "what to do instead: {why}");
    }
    // The refused ones did the first no harm.
    assert!(client.mark_processed(mark("T", "y")).await.unwrap().into_inner().first);

    first.server.stop().await.unwrap();
    // Each takes over the moment the one before has stopped.
    for _ in 0..10 {
        let next = Replica::start(&url, Clock::Store, &[]).await;
        let mut client = next.client().await;
        assert!(!client.mark_processed(mark("T", "x")).await.unwrap().into_inner().first);
        next.server.stop().await.unwrap();
    }
}

#[tokio::test]
async fn a_database_in_memory_is_refused() {
    for url in ["sqlite::memory:", "sqlite://:memory:", "sqlite://x?mode=memory", "sqlite://"] {
        let why = refusal(url, &[]).await;
        assert!(why.contains("in-memory") && why.contains("name a file"), "{url}: {why}");
    }
}

#[tokio::test]
async fn a_database_of_another_kind_is_refused_without_its_secrets() {
    for url in ["mysql://user:secret@localhost/bots", "oncegate.db"] {
        let why = refusal(url, &[]).await;
        assert!(why.contains("sqlite://") && why.contains("postgres://"), "{why}");
        assert!(!why.contains("secret"), "{why}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let url = sqlite_url(&directory);
    std::fs::write(directory.path().join("oncegate.db"), "not a database, but a text\n".repeat(99))
        .unwrap();
    let failed = Server::start(config(&url, &[]), Clock::Store).await;
    let why = format!("{:#}", failed.err().expect("refused"));
    assert!(why.contains("not a SQLite database"), "{why}");
}

/// Why no server starts on `url`.
async fn refused_with(url: &str, problem: &str) {
    let why = refusal(url, &[]).await;
    assert!(why.contains(problem), "{url}: {problem:?} is not in {why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_that_leads_to_no_file_says_what_is_wrong_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().display();
    symlink(directory.path().join("missing/real.db"), directory.path().join("link.db")).unwrap();
    for (url, problem) in [
        (format!("sqlite://{root}/a/b/x.db"), format!("the directory {root}/a/b does not exist")),
        (format!("sqlite://{root}/link.db"), format!("(a link to {root}/missing/real.db)")),
        (format!("sqlite://{root}"), format!("{root} is a directory: name a file in it")),
        ("sqlite:///dev/null".into(), "/dev/null is not a regular file".into()),
        ("sqlite:///sys/oncegate.db".into(), "cannot open /sys/oncegate.db".into()),
        ("sqlite://~/x.db".into(), "only a shell expands".into()),
        ("sqlite:~bot/x.db".into(), "only a shell expands".into()),
        (format!("sqlite://{root}/x.db\n"), "control character".into()),
        (format!("sqlite://{root}/x.db?mod=rwc"), "the parameter \"mod\"".into()),
        (format!("sqlite://{root}/x.db?mode=ro"), "the parameter \"mode\"".into()),
        (format!("sqlite://{root}/x.db?mode=rwc&vfs=unix-none"), "the parameter \"vfs\"".into()),
        (format!("sqlite://{root}/x.db?mode=rw"), "No such file".into()),
    ] {
        refused_with(&url, &problem).await;
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "it left something");

    let named = format!("sqlite:{root}/with%20space%3F.db?mode=rwc");
    Replica::start(&named, Clock::Store, &[]).await.server.stop().await.unwrap();
    assert!(directory.path().join("with space?.db").exists());
}

/// All paths that lead to one file that is not there at first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_is_refused_by_whatever_path_it_comes() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    std::fs::create_dir(root.join("volume")).unwrap();
    symlink(root.join("volume/real.db"), root.join("link.db")).unwrap();
    symlink(root.join("volume"), root.join("mounted")).unwrap();
    let url = |path: &str| format!("sqlite://{}", root.join(path).display());

    let first = Process::start(&url("link.db"), &[]).await;
    std::fs::hard_link(root.join("volume/real.db"), root.join("hard.db")).unwrap();
    let other = ["link.db", "volume/real.db", "mounted/real.db", "volume/../link.db", "hard.db"];
    for path in other {
        let (status, log) = Process::refused(&url(path), &[]).await;
        assert_eq!(status.code(), Some(1), "{path}: {log}");
        assert!(log.contains("another process uses"), "{path}: {log}");
    }
    // The refused ones did the first no harm.
    let mut client = first.client().await;
    assert!(client.mark_processed(mark("T", "x")).await.unwrap().into_inner().first);
    // However it ends, the next may have the file.
    first.kill();
    std::fs::remove_file(root.join("hard.db")).unwrap();
    let next = Process::start(&url("mounted/real.db"), &[]).await;
    let mut client = next.client().await;
    assert!(!client.mark_processed(mark("T", "x")).await.unwrap().into_inner().first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_clean_stop_one_file_is_left_that_holds_everything() {
    for round in 0..8 {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let process = Process::start(&sqlite_url(&directory), &[]).await;
        let mut client = process.client().await;
        assert!(client.mark_processed(mark("T", "x")).await.unwrap().into_inner().first);
        // Readers have connections of their own.
        let read = IsProcessedRequest { event: event("T", "y"), ..Default::default() };
        client.is_processed(read).await.unwrap();
        process.terminate();
        let (status, log) = process.end(Duration::from_secs(20)).await;
        assert!(status.success() && !log.contains("ERROR"), "{log}");
        assert_eq!(files(root), ["oncegate.db"], "round {round}");

        std::fs::copy(root.join("oncegate.db"), root.join("copy.db")).unwrap();
        let copy = format!("sqlite://{}", root.join("copy.db").display());
        let replica = Replica::start(&copy, Clock::Store, &[]).await;
        let mut client = replica.client().await;
        assert!(!client.mark_processed(mark("T", "x")).await.unwrap().into_inner().first);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_leaves_one_file() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(&sqlite_url(&directory), &[]);
    server::migrate(&config.store).await.unwrap();
    assert_eq!(files(directory.path()), ["oncegate.db"]);
}

#[tokio::test]
async fn a_start_that_is_refused_leaves_one_file() {
    let directory = tempfile::tempdir().unwrap();
    let url = sqlite_url(&directory);
    server::migrate(&config(&url, &[]).store).await.unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let why = super::refusal(&url, &["--ops-listen", &taken]).await;
    assert!(why.contains("--ops-listen"), "{why}");
    assert_eq!(files(directory.path()), ["oncegate.db"]);
}

fn files(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let name = |entry: std::io::Result<DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = entries.map(name).collect();
    names.sort();
    names
}

/// What becomes of the file under a server that runs.
enum Accident {
    /// One of its files is deleted.
    Deleted(&'static str),
    /// Another file is put in its place.
    Replaced,
    /// The whole directory is moved away, and another made in its place.
    DirectoryReplaced,
    /// The link that the URL names leads elsewhere.
    LinkTurned,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acknowledged_while_the_file_is_not_in_place() {
    use Accident::{Deleted, DirectoryReplaced, LinkTurned, Replaced};
    let accidents = [
        Deleted("oncegate.db"),
        Deleted("oncegate.db-wal"),
        Deleted("oncegate.db-shm"),
        Replaced,
        DirectoryReplaced,
        LinkTurned,
    ];
    for accident in accidents {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let (home, away) = (root.join("data"), root.join("away"));
        std::fs::create_dir(&home).unwrap();
        std::fs::create_dir(&away).unwrap();
        symlink(home.join("oncegate.db"), root.join("link.db")).unwrap();
        let url = format!("sqlite://{}", root.join("link.db").display());
        // Nothing is noticed by a probe.
        let process = Process::start(&url, &["--probe-interval", "1h"]).await;
        let mut client = process.client().await;
        assert!(client.mark_processed(mark("T", "before")).await.unwrap().into_inner().first);
        let lease = client.acquire_session_lease(acquire("T", "s", "a")).await.unwrap();
        let lease = granted(lease.into_inner());

        let said = match accident {
            Deleted(name) => {
                std::fs::rename(home.join(name), away.join(name)).unwrap();
                format!("{} was deleted or moved", home.join(name).display())
            }
            Replaced => {
                std::fs::rename(home.join("oncegate.db"), away.join("oncegate.db")).unwrap();
                std::fs::copy(away.join("oncegate.db"), home.join("oncegate.db")).unwrap();
                format!("{} was replaced by another file", home.join("oncegate.db").display())
            }
            DirectoryReplaced => {
                std::fs::rename(&home, away.join("data")).unwrap();
                std::fs::create_dir(&home).unwrap();
                format!("{} was deleted or moved", home.join("oncegate.db").display())
            }
            LinkTurned => {
                std::fs::remove_file(root.join("link.db")).unwrap();
                std::fs::write(away.join("other.db"), "").unwrap();
                symlink(away.join("other.db"), root.join("link.db")).unwrap();
                format!("{} was replaced by another file", root.join("link.db").display())
            }
        };
        let unavailable = |answer: Status| assert_eq!(answer.code(), Code::Unavailable, "{said}");
        // The first call already, of whichever kind.
        for _ in 0..2 {
            unavailable(client.mark_processed(mark("T", "after")).await.unwrap_err());
            unavailable(client.renew_session_lease(renew(&lease)).await.unwrap_err());
            unavailable(client.acquire_session_lease(acquire("T", "t", "a")).await.unwrap_err());
            // Even what is remembered.
            unavailable(client.mark_processed(mark("T", "before")).await.unwrap_err());
            let read = IsProcessedRequest { event: event("T", "before"), ..Default::default() };
            unavailable(client.is_processed(read).await.unwrap_err());
        }
        assert!(process.log().contains(&said), "{said}: {}", process.log());

        // The same file put back, all is well again, and nothing was written meanwhile.
        match accident {
            Deleted(name) => std::fs::rename(away.join(name), home.join(name)).unwrap(),
            Replaced => {
                std::fs::rename(away.join("oncegate.db"), home.join("oncegate.db")).unwrap();
            }
            DirectoryReplaced => {
                std::fs::remove_dir(&home).unwrap();
                std::fs::rename(away.join("data"), &home).unwrap();
            }
            LinkTurned => {
                std::fs::remove_file(root.join("link.db")).unwrap();
                symlink(home.join("oncegate.db"), root.join("link.db")).unwrap();
            }
        }
        assert!(client.mark_processed(mark("T", "after")).await.unwrap().into_inner().first);
        client.renew_session_lease(renew(&lease)).await.unwrap();
        assert!(!client.mark_processed(mark("T", "before")).await.unwrap().into_inner().first);
        assert!(process.log().contains("database file restored"), "{}", process.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_follows_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let flags = ["--probe-interval", "20ms"];
    let replica = Replica::start(&sqlite_url(&directory), Clock::Store, &flags).await;
    let mut health = HealthClient::new(connect(replica.server.address()).await);
    let mut follow = async |status: ServingStatus| {
        let ask = HealthCheckRequest { service: "readiness".to_owned() };
        let mut states = health.watch(ask).await.unwrap().into_inner();
        while states.message().await.unwrap().unwrap().status() != status {}
    };
    follow(ServingStatus::Serving).await;
    let (file, away) = (directory.path().join("oncegate.db"), directory.path().join("away.db"));
    std::fs::rename(&file, &away).unwrap();
    follow(ServingStatus::NotServing).await;
    std::fs::rename(&away, &file).unwrap();
    follow(ServingStatus::Serving).await;
}
