//! The composition root: builds the service on its store, serves, drains.

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::Context as _;
use axum::{Router, http::header::CONTENT_TYPE, routing::get};
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

use crate::{
    admin::Admin,
    cleanup::Cleanup,
    config::{Address, KnownConfig, ServeConfig, StoreConfig},
    dedup::{Dedup, Known},
    domain::{FencingToken, limits::MAX_REQUEST_BYTES},
    grpc::{
        Administration, Gate, HalfOpen, Idempotency, Observe, Turning,
        pb::{
            self, admin_service_server::AdminServiceServer,
            idempotency_service_server::IdempotencyServiceServer,
            turn_service_server::TurnServiceServer,
        },
    },
    listener::Listener,
    session::{Bounds, Sessions},
    store::{Clock, Fence, FenceStore as _, Store, StoreError, postgres::Postgres, sqlite::Sqlite},
    telemetry::Metrics,
    turn::Turns,
};

mod drain;
mod probe;
mod workers;

use drain::Drain;
use probe::{Health, Probe};
use workers::{Connections, Workers};

/// How long to wait before the database is tried again at start.
const CONNECT_PAUSE: Duration = Duration::from_millis(500);

/// A server that runs.
pub struct Server {
    address: Address,
    metrics_address: Option<SocketAddr>,
    stop: CancellationToken,
    drained: JoinHandle<()>,
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
        let workers = Workers::start(config.workers.unwrap_or_else(cores))?;
        let runtimes = workers.runtimes();

        let capacity = config.limits.queue_capacity;
        let cleanup = Cleanup::start(store, &runtimes[0], &metrics);
        let bounds = Bounds {
            writers: config.writers,
            capacity,
            waiters: config.limits.max_calls.div_ceil(2),
            max_hold: config.max_hold,
        };
        let sessions = Sessions::start(store, runtimes, bounds, &stop, &metrics);
        let turns = Turns::start(store, runtimes, &sessions, bounds, &metrics);
        let KnownConfig { known_events, known_max_age } = config.known;
        let known = (known_events > 0)
            .then(|| Known::new(known_events, known_max_age, store.invalidations()))
            .transpose()?;
        let dedups = Dedup::start(store, runtimes, config.writers, capacity, known, &metrics);
        tokio::spawn(cleanup.clone().sweep_forever(
            store.patient_connection(),
            config.sweep_interval,
            stop.clone(),
        ));

        let (health, health_service) = tonic_health::server::health_reporter();
        let health = Health::new(health).await;
        let mut probe =
            Probe { store: store.connection(), health: health.clone(), metrics: metrics.clone() };
        probe.look().await;
        tokio::spawn(probe.follow(config.probe_interval, stop.clone()));

        let under_way = TaskTracker::new();
        let observe = Observe::new(&metrics, config.limits.max_calls, under_way.clone())?;
        let timeout = config.limits.call_timeout;
        let admin = Admin::start(store, &runtimes[0], sessions[0].clone(), &metrics);
        let admin = AdminServiceServer::new(Administration { admin, timeout })
            .max_decoding_message_size(MAX_REQUEST_BYTES);
        let others = Routes::new(health_service.max_decoding_message_size(MAX_REQUEST_BYTES))
            .add_service(admin)
            .add_service(reflection().build_v1()?.max_decoding_message_size(MAX_REQUEST_BYTES))
            .add_service(
                reflection().build_v1alpha()?.max_decoding_message_size(MAX_REQUEST_BYTES),
            );
        let limits = &config.limits;
        let gate = |((dedup, sessions), turns)| {
            let turns = TurnServiceServer::new(Turning { turns, timeout })
                .max_decoding_message_size(MAX_REQUEST_BYTES);
            let others = others.clone().add_service(turns).prepare();
            let service = Idempotency { dedup, sessions, cleanup: cleanup.clone(), timeout };
            let service =
                IdempotencyServiceServer::new(service).max_decoding_message_size(MAX_REQUEST_BYTES);
            let half_open = HalfOpen::new(limits.preface_timeout, limits.max_calls, runtimes.len());
            Gate::new(service, others, half_open, observe.clone())
        };
        let connections = Connections {
            limits: config.limits.clone(),
            open: metrics.connections.clone(),
            stop: stop.clone(),
            cut: CancellationToken::new(),
            served: TaskTracker::new(),
        };
        let gates = dedups.into_iter().zip(sessions).zip(turns).map(gate).collect();
        connections.serve(listener, runtimes, gates);

        let drain = Drain { health, under_way, connections, timeout: config.drain_timeout };
        let draining = drain.run(stop.clone(), store.closed());
        let drained = tokio::spawn(async move {
            draining.await;
            drop(workers);
        });
        Ok(Self { address, metrics_address, stop, drained })
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

    /// Answers what is under way, refuses what is new, and ends within the
    /// drain timeout.
    ///
    /// # Errors
    /// When the drain itself failed.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        Ok(self.drained.await?)
    }
}

/// How many threads can run at once, as far as this process may.
fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
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

/// The floor of fencing tokens in a store, whose schema is up to date.
///
/// # Errors
/// When it cannot be read.
pub async fn fence(config: &StoreConfig) -> anyhow::Result<Fence> {
    Ok(match open(config, Clock::Store, false).await? {
        Opened::Postgres(store) => store.fence().await?,
        Opened::Sqlite(store) => store.fence().await?,
    })
}

/// Raises the floor of fencing tokens in a store to `floor`, unless it is higher.
///
/// # Errors
/// When it is not known to be raised.
pub async fn raise_fence(config: &StoreConfig, floor: FencingToken) -> anyhow::Result<Fence> {
    Ok(match open(config, Clock::Store, false).await? {
        Opened::Postgres(store) => store.raise_fence(floor).await?,
        Opened::Sqlite(store) => store.raise_fence(floor).await?,
    })
}

/// Reflection for everything that a caller of ours meets: the contract, health,
/// and the details that errors carry.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
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
