//! Redis and etcd, each as durable as it can be, with a directory of its own on
//! the disk that PostgreSQL is on.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
};

use anyhow::{Context as _, ensure};

use crate::{
    http,
    process::{self, Guarded, Pid},
};

/// A server that runs; it dies with this value, and with this process.
pub struct Peer {
    program: Guarded,
    /// `HOST:PORT`.
    pub address: String,
    /// Its version.
    pub version: String,
}

impl Peer {
    /// Its process.
    pub fn pid(&self) -> Pid {
        self.program.pid
    }
}

/// Redis, with every write on disk before it is answered.
///
/// # Errors
/// Why there is none.
pub fn redis() -> Result<Peer, String> {
    let program = process::find("redis-server")?;
    let version = process::version(&program);
    let start = || {
        let port = free_port()?;
        let running = Guarded::start(&program, |directory| {
            let directory = directory.to_string_lossy().into_owned();
            let settings = [
                ["--bind", "127.0.0.1"],
                ["--port", &port],
                ["--dir", &directory],
                ["--appendonly", "yes"],
                ["--appendfsync", "always"],
                // No snapshots besides: the log holds everything.
                ["--save", ""],
            ];
            settings.as_flattened().iter().map(|&word| word.to_owned()).collect()
        })?;
        running.wait_for(|running| {
            running.log().contains("Ready to accept connections").then_some(())
        })?;
        Ok(Peer { program: running, address: format!("127.0.0.1:{port}"), version })
    };
    start().map_err(|error: anyhow::Error| format!("{error:#}"))
}

/// etcd, durable as it always is.
///
/// # Errors
/// Why there is none.
pub fn etcd() -> Result<Peer, String> {
    let program = process::find("etcd")?;
    let version = process::version(&program);
    start_etcd(&program, version).map_err(|error| format!("{error:#}"))
}

fn start_etcd(program: &Path, version: String) -> anyhow::Result<Peer> {
    let address = format!("127.0.0.1:{}", free_port()?);
    let clients = format!("http://{address}");
    let members = format!("http://127.0.0.1:{}", free_port()?);
    let running = Guarded::start(program, |directory| {
        let data = directory.join("data").to_string_lossy().into_owned();
        let cluster = format!("default={members}");
        let settings = [
            ["--data-dir", &data],
            ["--listen-client-urls", &clients],
            ["--advertise-client-urls", &clients],
            ["--listen-peer-urls", &members],
            ["--initial-advertise-peer-urls", &members],
            ["--initial-cluster", &cluster],
        ];
        settings.as_flattened().iter().map(|&word| word.to_owned()).collect()
    })?;
    running.wait_for(|_| {
        http::get(&address, "/health").ok().filter(|health| health.contains("\"true\""))
    })?;
    Ok(Peer { program: running, address, version })
}

fn free_port() -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    Ok(listener.local_addr()?.port().to_string())
}

/// Empties a Redis.
pub fn flush(redis: &Peer) -> anyhow::Result<()> {
    let mut socket = TcpStream::connect(&redis.address)?;
    socket.write_all(b"FLUSHALL\r\n")?;
    let mut reply = [0; 5];
    socket.read_exact(&mut reply)?;
    ensure!(reply == *b"+OK\r\n", "FLUSHALL: {}", String::from_utf8_lossy(&reply));
    Ok(())
}
