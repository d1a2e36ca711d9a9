//! Stores without a server.

use std::fs;

use oncegate::store::Clock;
use tempfile::{tempdir, tempdir_in};

use super::doctor;
use crate::harness::{Replica, mark, sqlite_url};

const CHECKS: [&str; 7] =
    ["file", "file system", "space", "journal", "schema", "writable", "fence"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_checked_when_no_server_has_it() {
    let directory = tempdir().unwrap();
    let url = sqlite_url(&directory);
    let missing = doctor(&url, &[]).await;
    missing.has("file", "warning", &["oncegate.db does not exist", "creates it"]);
    assert_eq!(missing.checks.len(), 3, "{}", missing.printed);
    doctor(&format!("{url}?mode=rw"), &[]).await.has("file", "failed", &["does not exist"]);
    assert!(fs::read_dir(directory.path()).unwrap().next().is_none(), "it makes no file");

    let replica = Replica::start(&url, Clock::Store, &[]).await;
    let marked = replica.client().await.mark_processed(mark("T", "x")).await.unwrap();
    assert!(marked.into_inner().first);
    let used = doctor(&url, &[]).await;
    used.has("file", "warning", &["in use by another process"]);
    assert_eq!(used.checks.len(), 3, "{}", used.printed);
    // It goes on with its file, and its lock.
    let marked = replica.client().await.mark_processed(mark("T", "y")).await.unwrap();
    assert!(marked.into_inner().first);
    doctor(&url, &[]).await.has("file", "warning", &["in use by another process"]);
    replica.server.stop().await.unwrap();

    let diagnosis = doctor(&url, &["--migrate", "false"]).await;
    let names = diagnosis.checks.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>();
    assert_eq!(names, CHECKS, "{}", diagnosis.printed);
    assert_eq!(diagnosis.code, Some(0));
    diagnosis.has("file", "ok", &["oncegate.db", " bytes"]);
    diagnosis.has("space", "ok", &["MiB free"]);
    diagnosis.has("journal", "ok", &["journal_mode wal", "synchronous 2"]);
    diagnosis.has("schema", "ok", &["up to date"]);
    diagnosis.has("writable", "ok", &[]);
    // One file is left, with its marks.
    let left = fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(left, 1);
    let replica = Replica::start(&url, Clock::Store, &[]).await;
    let marked = replica.client().await.mark_processed(mark("T", "x")).await.unwrap();
    assert!(!marked.into_inner().first);
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_named() {
    let directory = tempdir().unwrap();
    let place = directory.path().display();
    fs::write(directory.path().join("text"), "not a database".repeat(1_000)).unwrap();
    for (url, check, part) in [
        (format!("sqlite://{place}/none/x.db"), "file", "none does not exist"),
        (format!("sqlite://{place}"), "file", "is not a regular file"),
        (format!("sqlite://{place}/x.db?cache=shared"), "file", "is not supported"),
        (format!("sqlite://{place}/text"), "journal", "is not a SQLite database"),
    ] {
        doctor(&url, &[]).await.has(check, "failed", &[part]);
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_file_in_memory_is_found() {
    // A tmpfs on every Linux: POSIX shared memory is there.
    let directory = tempdir_in("/dev/shm").unwrap();
    let diagnosis = doctor(&sqlite_url(&directory), &[]).await;
    diagnosis.has("file system", "warning", &["tmpfs", "every record is lost"]);
}

#[tokio::test]
async fn a_store_in_memory_loses_all() {
    let diagnosis = doctor("memory:", &[]).await;
    diagnosis.has("durability", "warning", &["lost when the server stops", "unit tests"]);
    assert_eq!((diagnosis.checks.len(), diagnosis.code), (1, Some(0)));
}
