//! Counts of finished calls, from the server's own metrics.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::replica::Process;

const METRIC: &str = "grpc_server_handled_total{";
/// The services that client libraries call. The testbed itself calls the others.
const SERVICES: [&str; 3] = ["IdempotencyService", "TurnService", "ServerService"];

/// The finished calls by method and status code.
pub async fn counts(process: &Process) -> anyhow::Result<Value> {
    let mut counts: BTreeMap<&str, BTreeMap<String, u64>> = BTreeMap::new();
    let page = page(process).await?;
    for line in page.lines().filter_map(|line| line.strip_prefix(METRIC)) {
        let (labels, count) = line.rsplit_once("} ").context("not a metric")?;
        let label = |name: &str| {
            let (_, rest) = labels.split_once(&format!("{name}=\""))?;
            rest.split('"').next()
        };
        let service = label("grpc_service").unwrap_or_default();
        let count = count.parse::<u64>()?;
        if SERVICES.iter().any(|name| service == format!("oncegate.v1.{name}")) && count > 0 {
            let method = label("grpc_method").context("a call without a method")?;
            let code = label("grpc_code").context("a call without a status code")?;
            *counts.entry(method).or_default().entry(spelled_out(code)).or_default() += count;
        }
    }
    if let Some(codes) = counts.get_mut("IsProcessed")
        && let Some(count) = codes.get_mut("OK")
    {
        *count = count.saturating_sub(process.own_looks.load(Ordering::SeqCst));
        codes.retain(|_, count| *count > 0);
    }
    counts.retain(|_, codes| !codes.is_empty());
    Ok(json!(counts))
}

/// The name of a status code in the specification of gRPC, from its name in metrics.
fn spelled_out(code: &str) -> String {
    if code == "Canceled" {
        return "CANCELLED".to_owned();
    }
    let mut name = String::new();
    for letter in code.chars() {
        if letter.is_uppercase() && name.ends_with(|before: char| before.is_lowercase()) {
            name.push('_');
        }
        name.push(letter);
    }
    name.to_uppercase()
}

async fn page(process: &Process) -> anyhow::Result<String> {
    let address = process.metrics;
    let mut peer = TcpStream::connect(address).await?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    peer.write_all(request.as_bytes()).await?;
    let mut page = String::new();
    peer.read_to_string(&mut page).await?;
    Ok(page)
}
