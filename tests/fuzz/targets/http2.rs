//! Connections: frames of HTTP/2, and requests of HTTP/1.1, over a Unix socket or TCP.

use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tonic::Code;

use crate::{
    chance::Chance,
    frames,
    mutate::mutate,
    server::{Caller, PATIENCE, Running, framed},
    target::Target,
};

/// After how many connections another one must answer.
const LOOK: u64 = 64;

/// An input is a letter, `T` for TCP, and what is sent; then the sender sends no more.
pub struct Http2 {
    running: Option<(Running, Caller)>,
    count: AtomicU64,
}

impl Http2 {
    pub fn new() -> Self {
        Self { running: None, count: AtomicU64::new(0) }
    }

    async fn check(&self, input: &[u8]) -> Result<(), String> {
        let Some((letter, sent)) = input.split_first() else { return Ok(()) };
        let Some((running, caller)) = &self.running else { return Err("no server".to_owned()) };
        let refused = |error: std::io::Error| format!("no connection: {error}");
        let ended = async {
            if *letter == b'T' {
                let socket = TcpStream::connect(running.tcp).await.map_err(refused)?;
                exchange(socket, sent).await;
            } else {
                let socket = UnixStream::connect(&running.unix).await.map_err(refused)?;
                exchange(socket, sent).await;
            }
            Ok::<_, String>(())
        };
        timeout(PATIENCE, ended).await.map_err(|_| "the connection does not end".to_owned())??;
        if self.count.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOK) {
            look(caller).await?;
        }
        Ok(())
    }
}

/// Sends all, and reads to the end.
async fn exchange(mut socket: impl AsyncRead + AsyncWrite + Unpin, sent: &[u8]) {
    let (mut from, mut to) = tokio::io::split(&mut socket);
    let writing = async {
        // An error says that the server has closed the connection, as it may.
        let _ = to.write_all(sent).await;
        let _ = to.shutdown().await;
    };
    let reading = async {
        let mut buffer = [0; 4_096];
        while let Ok(1..) = from.read(&mut buffer).await {}
    };
    tokio::join!(writing, reading);
}

/// The connection beside the others answers.
async fn look(caller: &Caller) -> Result<(), String> {
    let metadata = [("content-type", "application/grpc"), ("te", "trailers")];
    let body = framed(0, b"\x0a\x08\x0a\x02T1\x12\x02e1");
    let path = "/oncegate.v1.IdempotencyService/IsProcessed";
    let call = caller.call(path, &metadata, body, true, false);
    let answer = timeout(PATIENCE, call).await.map_err(|_| "another connection is mute")?;
    let answer = answer.map_err(|error| format!("another connection: {error}"))?;
    match answer.status {
        Some(status) if status.code() == Code::Ok => Ok(()),
        other => Err(format!("another connection: {other:?}")),
    }
}

impl Target for Http2 {
    fn name(&self) -> &'static str {
        "http2"
    }

    fn share(&self) -> u64 {
        10
    }

    fn input(&self, chance: &mut Chance) -> Vec<u8> {
        let mut sent = frames::connection(chance);
        if chance.one_in(2) {
            let other = frames::connection(chance);
            mutate(chance, &mut sent, &[other]);
        }
        let letter = if chance.one_in(8) { b'T' } else { b'U' };
        [&[letter][..], &sent].concat()
    }

    fn take<'a>(&'a self, input: &'a [u8]) -> BoxFuture<'a, Result<(), String>> {
        self.check(input).boxed()
    }

    fn start(&mut self) -> BoxFuture<'_, ()> {
        async {
            let running = Running::start().await;
            let caller = running.connect().await.expect("a connection");
            self.running = Some((running, caller));
        }
        .boxed()
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        async {
            if let Some((running, caller)) = self.running.take() {
                drop(caller);
                running.stop().await;
            }
        }
        .boxed()
    }
}
