//! `memory:` as a database URL, as an operator meets it.

use std::{fs, time::Duration};

use tempfile::tempdir;

use super::{oncegate, run};
use crate::harness::{process::Process, sqlite_url};

#[tokio::test]
async fn a_server_warns_that_nothing_is_kept() {
    let process = Process::start("memory:", &["--log-format", "json"]).await;
    process.terminate();
    let (status, log) = process.end(Duration::from_secs(30)).await;
    assert_eq!(status.code(), Some(0), "{log}");
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
    let [warning] = warnings[..] else { panic!("{log}") };
    assert!(warning.contains("records are kept in memory only"), "{warning}");

    let directory = tempdir().unwrap();
    let process = Process::start(&sqlite_url(&directory), &["--log-format", "json"]).await;
    process.terminate();
    let (_, log) = process.end(Duration::from_secs(30)).await;
    assert!(!log.contains("in memory only"), "{log}");
}

#[tokio::test]
async fn what_memory_has_no_use_for_is_refused() {
    let directory = tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "s3cret").unwrap();
    let file = file.to_str().unwrap();
    for (url, flags, part) in [
        ("memory:", &["--database-schema", "bots"][..], "--database-schema applies to PostgreSQL"),
        (
            "memory:",
            &["--database-password-file", file],
            "--database-password-file applies to PostgreSQL",
        ),
        ("memory:s3cret", &[], "--database-url: memory: takes no further part"),
        ("memory://", &[], "--database-url: memory: takes no further part"),
        ("memory:?mode=s3cret", &[], "--database-url: memory: takes no further part"),
    ] {
        let (status, log) = Process::refused(url, flags).await;
        assert_eq!(status.code(), Some(1), "{log}");
        let last = log.lines().last().unwrap();
        assert!(last.starts_with("error: ") && last.contains(part), "{part:?}: {log}");
        assert!(!log.contains("s3cret"), "{log}");
    }
}

#[test]
fn a_command_needs_no_schema_in_memory() {
    let directory = tempdir().unwrap();
    let file = directory.path().join("url");
    fs::write(&file, "memory:\n").unwrap();
    for url in [["--database-url", "memory:"], ["--database-url-file", file.to_str().unwrap()]] {
        run(oncegate(&["migrate"]).args(url), "").told(0, "the schema of memory: is up to date");
    }
}

#[test]
fn no_fence_is_raised_that_would_be_lost_at_once() {
    for command in ["show", "raise"] {
        run(oncegate(&["fence", command]).args(["--database-url", "memory:"]), "")
            .complained(1, "--database-url: memory: exists only within the server's process");
    }
}
