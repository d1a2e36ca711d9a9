//! TLS as clients and attackers meet it.

use oncegate::store::Clock;
use tonic::{Status, transport::Channel};

use crate::harness::{
    Client, Replica,
    certs::{Files, Pair},
    mark,
};

mod clients;
mod handshakes;
mod ops;
mod rotation;
mod start;

/// A server on a store in memory, with these flags.
async fn serve(flags: &[String], more: &[&str]) -> Replica {
    let flags: Vec<_> = flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
    let mut all = flags;
    if !all.contains(&"--ops-listen") {
        all.extend(["--ops-listen", "127.0.0.1:0"]);
    }
    Replica::start("memory:", Clock::Store, &all).await
}

/// Makes one call over a connection of its own.
async fn call(files: &Files, replica: &Replica, own: Option<&Pair>) -> Result<(), String> {
    let endpoint = files.endpoint(replica.server.address(), own);
    let channel = endpoint.connect().await.map_err(|error| format!("{error:?}"))?;
    call_over(channel).await.map_err(|status| format!("{status:?}"))
}

async fn call_over(channel: Channel) -> Result<(), Status> {
    Client::new(channel).mark_processed(mark("T1", "Ev1")).await.map(drop)
}
