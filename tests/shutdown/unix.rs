//! Unix sockets: safe modes, stale ones replaced, live ones left alone.

use std::{
    fs::{self, Permissions},
    io::{Read as _, Write as _},
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::{UnixListener, UnixStream},
    },
    path::Path,
    time::Duration,
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
    assert!(said.contains("another oncegate server is listening there"), "{said}");
    let mut client = process.client().await;
    assert!(client.mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner().first);
}

#[tokio::test]
async fn what_others_put_there_is_left_alone() {
    let place = Place::new();
    fs::create_dir(place.socket().parent().unwrap()).unwrap();
    let foreign = UnixListener::bind(place.socket()).unwrap();
    let said = place.refused().await;
    assert!(said.contains("another program is listening there"), "{said}");
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
        assert_eq!(log.contains("world-writable"), warned, "{writable:o}: {log}");
        let mut client = process.client().await;
        client.mark_processed(mark("T1", "Ev1")).await.unwrap();
        process.terminate();
        assert!(process.exit(SOON).await.success());
    }
}

/// One HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
}

/// A health check whose `:authority` is written as `authority`.
fn health_check(stream: u8, authority: &[u8]) -> Vec<u8> {
    let text = |text: &[u8]| [&[u8::try_from(text.len()).unwrap()], text].concat();
    // https://www.rfc-editor.org/rfc/rfc7541.html#appendix-A
    let headers = [
        vec![0x83, 0x86, 0x04],
        text(b"/grpc.health.v1.Health/Check"),
        authority.to_vec(),
        vec![0x0f, 0x10],
        text(b"application/grpc"),
        vec![0x00],
        text(b"te"),
        text(b"trailers"),
    ];
    [frame(1, 4, stream, &headers.concat()), frame(0, 1, stream, &[0; 5])].concat()
}

/// Reads frames up to the one that ends `stream`, and answers its kind.
fn end(peer: &mut UnixStream, stream: u8) -> u8 {
    loop {
        let mut head = [0; 9];
        peer.read_exact(&mut head).expect("an answer");
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        peer.read_exact(&mut vec![0; usize::try_from(length).unwrap()]).unwrap();
        let [_, _, _, kind, flags, .., id] = head;
        if id == stream && (kind == 3 || kind == 1 && flags & 1 != 0) {
            return kind;
        }
    }
}

#[tokio::test]
async fn a_sockets_path_is_an_authority_as_any_other() {
    let place = Place::new();
    let _process = place.serve().await;
    let mut peer = UnixStream::connect(place.socket()).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(4, 0, 0, &[])];
    peer.write_all(&preface.concat()).unwrap();
    let path = |path: &[u8]| [&[0x41, u8::try_from(path.len()).unwrap()], path].concat();
    let named = [&[0x40, 10], b":authority".as_slice(), &[9], b"%2Frun%2F"].concat();
    // As grpcio and grpc-java send it, then by the table that they fill, then as a name.
    let authorities = [
        path(b"%2Frun%2Foncegate.sock"),
        vec![0xbe],
        path(b"/run/oncegate.sock"),
        vec![0xbf],
        named,
    ];
    for (stream, authority) in (1..).step_by(2).zip(&authorities) {
        peer.write_all(&health_check(stream, authority)).unwrap();
        assert_eq!(end(&mut peer, stream), 1, "{authority:02x?} was refused");
    }
}
