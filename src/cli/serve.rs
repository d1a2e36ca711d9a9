//! `oncegate serve` and `oncegate migrate`.

use std::{
    io::{self, Write as _},
    pin::pin,
};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, WrongArguments};
use crate::{
    config::{Address, ServeConfig, StoreConfig, TlsConfig},
    server::{self, Server},
    store::{Clock, StoreInfo},
};

/// Serves until a signal ends it. `given`: the settings that differ from their defaults.
pub(super) async fn run(config: ServeConfig, clock: Clock, given: &str) -> anyhow::Result<Exit> {
    // The server checks them too, but cannot say that it was the arguments.
    config.validate().context(WrongArguments)?;
    // Before anything can be under way, so that no signal is missed.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;

    if config.insecure {
        tracing::warn!(
            "--insecure is set: other machines may reach this server without TLS or \
             authentication"
        );
    }
    let tls = config.tls.clone();
    let store = server::describe(&config.store)?;
    tracing::debug!(?config.limits, ?config.listen, store, "starting");
    let starting = Server::start(config, clock);
    let server = tokio::select! {
        started = starting => started?,
        _ = terminate.recv() => return Ok(Exit::Yes),
        _ = interrupt.recv() => return Ok(Exit::Yes),
    };
    let StoreInfo { kind, version, durability } = server.store();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        settings = given,
        store,
        store_kind = kind,
        store_version = version,
        store_durable = durability.loss().is_none(),
        "configuration"
    );
    let reloader = server.reloader();
    tokio::spawn(async move {
        // One that came while the server started has read the files as they are.
        while hangup.recv().await.is_some() {
            tracing::info!("received SIGHUP; checking certificates and other files for changes");
            reloader.reload();
        }
    });
    // The server runs on if this output is closed.
    let _ = announce(&server, &store, &tls);

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
fn announce(server: &Server, store: &str, tls: &TlsConfig) -> io::Result<()> {
    let mut out = io::stdout();
    for address in server.addresses() {
        tracing::info!(%address, store, version = env!("CARGO_PKG_VERSION"), "serving");
        writeln!(out, "oncegate {} listens on {address}", env!("CARGO_PKG_VERSION"))?;
    }
    writeln!(out, "store: {store}")?;
    if let Some(ops) = server.ops_address() {
        let scheme = if tls.ops_tls { "https" } else { "http" };
        writeln!(out, "metrics: {scheme}://{ops}/metrics")?;
    }
    let (security, target) = match server.address() {
        Address::Tcp(address) if tls.pair().is_none() => ("-plaintext", address.to_string()),
        Address::Tcp(address) => ("-cacert CA.pem", address.to_string()),
        Address::Unix(path) => ("-plaintext", format!("-unix {}", path.display())),
    };
    writeln!(
        out,
        "try: grpcurl {security} -d '{{\"event\":{{\"team_id\":\"T1\",\"event_id\":\"Ev1\"}}}}' \
         {target} oncegate.v1.IdempotencyService/MarkProcessed"
    )
}

pub(super) async fn migrate(config: StoreConfig) -> anyhow::Result<Exit> {
    server::migrate(&config).await?;
    writeln!(io::stdout(), "the schema of {} is up to date", server::describe(&config)?)?;
    Ok(Exit::Yes)
}
