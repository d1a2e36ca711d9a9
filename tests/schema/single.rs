//! The embedded store: one process a file.

use std::os::unix::fs::symlink;

use oncegate::{server::Server, store::Clock};

use super::refusal;
use crate::harness::{Replica, config, mark, sqlite_url};

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
    assert!(why.contains("not a database"), "{why}");
}
