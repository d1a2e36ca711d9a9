//! `oncegate serve` and `oncegate migrate`.

use std::{
    io::{self, Write as _},
    pin::pin,
};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, WrongArguments};
use crate::{
    config::{Address, ServeConfig, StoreConfig},
    server::{self, Server},
    store::Clock,
};

pub(super) async fn run(config: ServeConfig, clock: Clock) -> anyhow::Result<Exit> {
    // The server checks them too, but cannot say that it was the arguments.
    config.validate().context(WrongArguments)?;
    // Before anything can be under way, so that no signal is missed.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::info!("SIGHUP ignored: oncegate does not reload configuration");
        }
    });

    let store = server::describe(&config.store)?;
    tracing::debug!(?config.limits, ?config.listen, store, "starting");
    let starting = Server::start(config, clock);
    let server = tokio::select! {
        started = starting => started?,
        _ = terminate.recv() => return Ok(Exit::Yes),
        _ = interrupt.recv() => return Ok(Exit::Yes),
    };
    // The server runs on if this output is closed.
    let _ = announce(&server, &store);

    tokio::select! {
        _ = terminate.recv() => tracing::info!("received SIGTERM; shutting down"),
        _ = interrupt.recv() => tracing::info!("received SIGINT; shutting down"),
    }
    let hurry = server.hurry();
    let mut stopping = pin!(server.stop());
    loop {
        tokio::select! {
            stopped = stopping.as_mut() => {
                stopped?;
                tracing::info!("stopped");
                return Ok(Exit::Yes);
            }
            _ = terminate.recv() => hurry.cancel(),
            _ = interrupt.recv() => hurry.cancel(),
        }
    }
}

/// Prints where the service listens, and how to try it.
fn announce(server: &Server, store: &str) -> io::Result<()> {
    let mut out = io::stdout();
    for address in server.addresses() {
        tracing::info!(%address, store, version = env!("CARGO_PKG_VERSION"), "serving");
        writeln!(out, "oncegate {} listens on {address}", env!("CARGO_PKG_VERSION"))?;
    }
    writeln!(out, "store: {store}")?;
    if let Some(metrics) = server.metrics_address() {
        writeln!(out, "metrics: http://{metrics}/metrics")?;
    }
    let target = match server.address() {
        Address::Tcp(address) => address.to_string(),
        Address::Unix(path) => format!("-unix {}", path.display()),
    };
    writeln!(
        out,
        "try: grpcurl -plaintext -d '{{\"event\":{{\"team_id\":\"T1\",\"event_id\":\"Ev1\"}}}}' \
         {target} oncegate.v1.IdempotencyService/MarkProcessed"
    )
}

pub(super) async fn migrate(config: StoreConfig) -> anyhow::Result<Exit> {
    server::migrate(&config).await?;
    writeln!(io::stdout(), "the schema of {} is up to date", server::describe(&config)?)?;
    Ok(Exit::Yes)
}
