//! Unix sockets: safe modes, stale ones replaced, live ones left alone.

use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::UnixListener,
    },
    path::Path,
};

use tempfile::TempDir;

use super::SOON;
use crate::harness::{mark, process::Process, sqlite_url};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("run/oncegate.sock")
    }

    fn listen(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    async fn serve(&self) -> Process {
        Process::start(&sqlite_url(&self.directory), &["--listen", &self.listen()]).await
    }

    /// What a server says that must not start there.
    async fn refused(&self) -> String {
        let other = tempfile::tempdir().unwrap();
        let flags = ["--listen", &self.listen()];
        let (status, log) = Process::refused(&sqlite_url(&other), &flags).await;
        assert_eq!(status.code(), Some(1), "{log}");
        log
    }
}

#[tokio::test]
async fn a_socket_has_safe_modes_and_goes_with_its_server() {
    let place = Place::new();
    let process = place.serve().await;
    assert_eq!(mode(&place.socket()), 0o660);
    assert_eq!(mode(place.socket().parent().unwrap()), 0o750);
    let mut client = process.client().await;
    assert!(client.mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner().first);
    process.terminate();
    assert!(process.exit(SOON).await.success());
    assert!(!place.socket().exists());
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_refused() {
    let place = Place::new();
    // A crash leaves its socket behind.
    place.serve().await.kill();
    assert!(fs::metadata(place.socket()).unwrap().file_type().is_socket());

    let process = place.serve().await;
    let said = place.refused().await;
    assert!(said.contains("another server listens there"), "{said}");
    let mut client = process.client().await;
    assert!(client.mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner().first);
}

#[tokio::test]
async fn what_others_put_there_is_left_alone() {
    let place = Place::new();
    fs::create_dir(place.socket().parent().unwrap()).unwrap();
    let foreign = UnixListener::bind(place.socket()).unwrap();
    let said = place.refused().await;
    assert!(said.contains("another program listens there"), "{said}");
    drop(foreign);

    fs::remove_file(place.socket()).unwrap();
    fs::write(place.socket(), "not a socket").unwrap();
    let said = place.refused().await;
    assert!(said.contains("not a socket"), "{said}");
    assert_eq!(fs::read_to_string(place.socket()).unwrap(), "not a socket");
}

#[tokio::test]
async fn a_directory_that_anybody_may_write_is_taken_with_a_warning() {
    let place = Place::new();
    let directory = place.socket().parent().unwrap().to_owned();
    fs::create_dir(&directory).unwrap();
    // As kubelet makes an emptyDir, without and with an fsGroup; and as /tmp is.
    for (writable, warned) in [(0o777, true), (0o2777, true), (0o1777, false)] {
        fs::set_permissions(&directory, Permissions::from_mode(writable)).unwrap();
        let process = place.serve().await;
        assert_eq!(mode(&place.socket()), 0o660);
        assert_eq!(mode(&directory), writable);
        let log = process.log();
        assert_eq!(log.contains("writable by everybody"), warned, "{writable:o}: {log}");
        let mut client = process.client().await;
        client.mark_processed(mark("T1", "Ev1")).await.unwrap();
        process.terminate();
        assert!(process.exit(SOON).await.success());
    }
}
