//! As much of HTTP as reading a page takes.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context as _, ensure};

/// The page at `path` of the server at `address`, `HOST:PORT`.
pub fn get(address: &str, path: &str) -> anyhow::Result<String> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    socket.write_all(request.as_bytes())?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an odd answer")?;
    ensure!(head.split(' ').nth(1) == Some("200"), "{address}{path}: {head}");
    Ok(body.to_owned())
}
