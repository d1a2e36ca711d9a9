//! The composition root: builds the service on its store, serves, drains.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use axum::{Router, http::header::CONTENT_TYPE, routing::get};
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Server as Transport, server::Router as Services};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::layer::util::{Identity, Stack};

use crate::{
    cleanup::Cleanup,
    config::{Address, KnownConfig, ServeConfig, StoreConfig},
    dedup::{Dedup, Known},
    domain::limits::MAX_REQUEST_BYTES,
    grpc::{
        Idempotency, Observe,
        pb::{self, idempotency_service_server::IdempotencyServiceServer},
    },
    listener::{ConnectionLimits, Incoming, Listener},
    session::Sessions,
    store::{Clock, Connection, Store, StoreError, postgres::Postgres, sqlite::Sqlite},
    telemetry::Metrics,
};

/// What `grpc.health.v1` is asked for. `liveness` is true while the process
/// runs; the others follow the store.
const READINESS: [&str; 3] = ["", "readiness", "oncegate.v1.IdempotencyService"];
const LIVENESS: &str = "liveness";

/// How long a connection may take to close by itself once its calls are
/// answered; an idle or mute peer is cut off then.
const GOODBYE: Duration = Duration::from_millis(500);
/// How long to wait before the database is tried again at start.
const CONNECT_PAUSE: Duration = Duration::from_millis(500);

/// A server that runs.
pub struct Server {
    address: Address,
    metrics_address: Option<SocketAddr>,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Server {
    /// Starts a server, and returns once it accepts calls. `clock` is
    /// [`Clock::Store`] but in tests.
    ///
    /// # Errors
    /// When the settings contradict each other, the address is taken, or the
    /// store cannot be used.
    pub async fn start(config: ServeConfig, clock: Clock) -> anyhow::Result<Self> {
        config.validate()?;
        let listener = Listener::bind(&config.listen).await?;
        match open(&config.store, clock, config.migrate).await? {
            Opened::Postgres(store) => Self::run(config, listener, &store).await,
            Opened::Sqlite(store) => Self::run(config, listener, &store).await,
        }
    }

    async fn run(
        config: ServeConfig,
        listener: Listener,
        store: &impl Store,
    ) -> anyhow::Result<Self> {
        let stop = CancellationToken::new();
        let metrics = Metrics::new();
        let address = listener.address()?;
        let metrics_address = match config.metrics_listen {
            Some(address) => Some(serve_metrics(address, metrics.clone(), stop.clone()).await?),
            None => None,
        };

        let capacity = config.limits.queue_capacity;
        let cleanup = Cleanup::start(store, &metrics);
        let KnownConfig { known_events, known_max_age } = config.known;
        let known = (known_events > 0)
            .then(|| Known::new(known_events, known_max_age, store.invalidations()))
            .transpose()?;
        let service = Idempotency {
            dedup: Dedup::start(store, config.writers, capacity, known, &metrics),
            sessions: Sessions::start(
                store,
                config.writers,
                capacity,
                config.limits.max_calls.div_ceil(2),
                stop.clone(),
                &metrics,
            ),
            cleanup: cleanup.clone(),
            timeout: config.limits.call_timeout,
        };
        tokio::spawn(cleanup.sweep_forever(
            store.patient_connection(),
            config.sweep_interval,
            stop.clone(),
        ));

        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_service_status(LIVENESS, ServingStatus::Serving).await;
        let mut probe =
            Probe { store: store.connection(), health: health.clone(), metrics: metrics.clone() };
        probe.look().await;
        tokio::spawn(probe.follow(config.probe_interval, stop.clone()));

        let under_way = TaskTracker::new();
        let observe = Observe::new(&metrics, config.limits.max_calls, under_way.clone())?;
        let services = transport(&config, observe)
            .add_service(health_service)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .add_service(
                IdempotencyServiceServer::new(service).max_decoding_message_size(MAX_REQUEST_BYTES),
            );
        let cut = CancellationToken::new();
        let limits = ConnectionLimits {
            most: config.limits.max_connections,
            preface: config.limits.preface_timeout,
        };
        let incoming = Incoming::new(listener, limits, metrics.connections.clone(), cut.clone());
        let drain = Drain { health, under_way, cut, timeout: config.drain_timeout };
        let end = config.drain_timeout;
        let draining = drain.serve(services, incoming, stop.clone());
        let closed = store.closed();
        let task = tokio::spawn(async move {
            let ended = draining.await;
            // The leases of callers that were cut off are still being given back.
            if tokio::time::timeout(GOODBYE.min(end / 8), closed).await.is_err() {
                tracing::warn!("the store did not finish");
            }
            ended
        });
        Ok(Self { address, metrics_address, stop, task })
    }

    /// Where it listens, with the port that the system chose.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Where it serves its metrics.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Waits until the server fails; a server that does not fail never returns.
    ///
    /// # Errors
    /// Why it failed.
    pub async fn failed(&mut self) -> anyhow::Result<()> {
        (&mut self.task).await?
    }

    /// Answers what is under way, refuses what is new, and ends within the
    /// drain timeout.
    ///
    /// # Errors
    /// When the server had failed before.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.task.await?
    }
}

enum Opened {
    Postgres(Postgres),
    Sqlite(Sqlite),
}

/// Opens the store and brings its schema up to date.
async fn open(config: &StoreConfig, clock: Clock, migrate: bool) -> anyhow::Result<Opened> {
    let url = &config.database_url;
    let shown = config.redacted_url();
    if url.starts_with("sqlite:") {
        let store = Sqlite::open(url, clock).await?;
        if migrate {
            store.migrate().await?;
        } else {
            store.verify().await?;
        }
        return Ok(Opened::Sqlite(store));
    }
    anyhow::ensure!(
        url.starts_with("postgres://") || url.starts_with("postgresql://"),
        "--database-url must begin with sqlite:// or postgres://, is {shown}"
    );
    let store = Postgres::new(url, config.store_timeout, clock)?;
    let until = Instant::now() + config.connect_timeout;
    loop {
        let ready = if migrate { store.migrate().await } else { store.verify().await };
        match ready {
            Ok(()) => return Ok(Opened::Postgres(store)),
            // Services that start together find each other in any order.
            Err(error @ StoreError::Unavailable(_)) if Instant::now() < until => {
                tracing::warn!(store = shown, %error, "waiting for the database");
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
            Err(error) => return Err(error).with_context(|| format!("cannot use {shown}")),
        }
    }
}

/// Brings the schema of a store up to date.
///
/// # Errors
/// When it cannot be.
pub async fn migrate(config: &StoreConfig) -> anyhow::Result<()> {
    open(config, Clock::Store, true).await.map(drop)
}

fn transport(config: &ServeConfig, observe: Observe) -> Transport<Stack<Observe, Identity>> {
    Transport::builder()
        .max_concurrent_streams(config.limits.max_streams)
        // Or many callers of one connection that give up at once, as they do under
        // load, would cost the others the connection: 20 may, by default.
        .http2_max_pending_accept_reset_streams(usize::try_from(config.limits.max_streams).ok())
        .http2_keepalive_interval(Some(config.limits.keepalive_interval))
        .http2_keepalive_timeout(Some(config.limits.keepalive_timeout))
        .layer(observe)
}

/// Reflection for everything that a caller of ours meets: the contract, health,
/// and the details that errors carry.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}

/// Keeps readiness true to the store.
struct Probe<C> {
    store: C,
    health: HealthReporter,
    metrics: Metrics,
}

impl<C: Connection> Probe<C> {
    async fn follow(mut self, interval: Duration, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
            // Once draining has begun, readiness is its business.
            if stop.run_until_cancelled(self.look()).await.is_none() {
                return;
            }
        }
    }

    async fn look(&mut self) {
        let up = self.store.ping().await.is_ok();
        let was_up = self.metrics.store_up.set(i64::from(up)) == 1;
        if up != was_up {
            if up {
                tracing::info!("the store is up");
            } else {
                tracing::error!("the store is down");
            }
        }
        let status = if up { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in READINESS {
            self.health.set_service_status(service, status).await;
        }
    }
}

/// What it takes to end in good order.
struct Drain {
    health: HealthReporter,
    under_way: TaskTracker,
    cut: CancellationToken,
    timeout: Duration,
}

impl Drain {
    async fn serve(
        self,
        services: Services<Stack<Observe, Identity>>,
        incoming: Incoming,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let goaway = stop.clone().cancelled_owned();
        let mut serving = tokio::spawn(services.serve_with_incoming_shutdown(incoming, goaway));
        tokio::select! {
            ended = &mut serving => return ended?.context("the server ended by itself"),
            () = stop.cancelled() => {}
        }

        // The last of the time is for what comes after the calls.
        let until = Instant::now() + self.timeout - (self.timeout / 8 * 3).min(GOODBYE * 3);
        tracing::info!(calls = self.under_way.len(), "draining");
        for service in READINESS {
            self.health.set_service_status(service, ServingStatus::NotServing).await;
        }
        self.under_way.close();
        if tokio::time::timeout_at(until, self.under_way.wait()).await.is_err() {
            tracing::warn!(calls = self.under_way.len(), "calls were cut off");
        }
        // Every answer is on its way: peers that stay are idle, or mute.
        let goodbye = GOODBYE.min(self.timeout / 8);
        if let Ok(ended) = tokio::time::timeout(goodbye, &mut serving).await {
            return Ok(ended??);
        }
        self.cut.cancel();
        if let Ok(ended) = tokio::time::timeout(goodbye, &mut serving).await {
            return Ok(ended??);
        }
        serving.abort();
        Ok(())
    }
}

async fn serve_metrics(
    address: SocketAddr,
    metrics: Metrics,
    stop: CancellationToken,
) -> anyhow::Result<SocketAddr> {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot serve metrics on {address}"))?;
    let address = listener.local_addr()?;
    let page = get(move || async move { ([(CONTENT_TYPE, OPEN_METRICS)], metrics.render()) });
    let serving = axum::serve(listener, Router::new().route("/metrics", page));
    tokio::spawn(async move {
        tokio::select! {
            ended = serving => tracing::error!(?ended, "metrics are no longer served"),
            () = stop.cancelled() => {}
        }
    });
    Ok(address)
}
