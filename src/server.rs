//! The composition root: builds the service on its store, serves, drains.

use std::{net::SocketAddr, sync::Arc, thread, time::Duration};

use anyhow::Context as _;
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{codec::CompressionEncoding::Gzip, service::Routes};

use crate::{
    admin::Admin,
    cleanup::Cleanup,
    config::{Address, DuplicateCacheConfig, LimitConfig, ServeConfig},
    dedup::{Dedup, DuplicateCache},
    domain::limits::MAX_REQUEST_BYTES,
    grpc::{
        Administration, CallMetrics, Door, GrpcService, HalfOpen, Idempotency, ServerInfo,
        TurnCalls,
        pb::{
            self, admin_service_server::AdminServiceServer,
            idempotency_service_server::IdempotencyServiceServer,
            server_service_server::ServerServiceServer, turn_service_server::TurnServiceServer,
        },
    },
    session::{Bounds, Sessions},
    sockets::Listener,
    store::{Clock, Durability, Store, StoreError, StoreInfo, Work},
    telemetry::{Metrics, Traces},
    turn::Turns,
};

mod auth;
mod certificates;
mod drain;
mod files;
mod http;
mod latest;
mod open;
mod probe;
mod reload;
mod strangers;
mod traces;
mod workers;

use certificates::ListenerTls;
use drain::{Drain, ShutdownSignals};
use http::Ops;
use open::{Opened, Served, close, open};
pub use open::{describe, doctor, fence, migrate, raise_fence};
use probe::{Health, Probe};
pub use reload::{Contents, Reloader};
use workers::{Connections, Workers};

/// Files that are open for other ends than connections and the store, with room
/// to spare.
const OTHER_FILES: usize = 64;
/// Files that one worker has open.
const FILES_OF_A_WORKER: usize = 4;
/// Connections to the database besides the writers, one of them for a moment.
const OTHER_STORE_CONNECTIONS: usize = 5;
/// How much longer than `--max-hold` a call may be: it may wait before.
const AGE_GRACE: Duration = Duration::from_mins(15);

/// What every service takes: each generated server has these as its own methods.
macro_rules! bounded {
    ($service:expr) => {
        $service.max_decoding_message_size(MAX_REQUEST_BYTES).accept_compressed(Gzip)
    };
}

/// What answers before there is a store: that the process is alive, and not ready.
struct Front {
    metrics: Metrics,
    ops_address: Option<SocketAddr>,
    health: Health,
    routes: Routes,
    tls: Option<ListenerTls>,
    door: Option<Arc<Door>>,
    traces: Option<Traces>,
    reloader: Reloader,
    ended: CancellationToken,
}

impl Front {
    async fn start(config: &ServeConfig) -> anyhow::Result<Self> {
        let (metrics, ended) = (Metrics::new(), CancellationToken::new());
        let until_started = ended.clone().drop_guard();
        metrics.insecure.set(i64::from(config.insecure));
        metrics.slow.log_from(config.slow_call);
        let reloader = Reloader::new(config.reload_interval, metrics.reload.clone(), ended.clone());
        let tls = certificates::follow(&config.tls, &reloader, &metrics.tls).await?;
        let door = match &config.auth {
            Some(file) => {
                Some(auth::follow(file.clone(), config.insecure, &reloader, &metrics).await?)
            }
            None => None,
        };
        let traces = traces::start(&config.traces, &metrics.traces)?;
        let (health, health_service) = tonic_health::server::health_reporter();
        let health = Health::new(health).await;
        let mut ops_address = None;
        if let Some(address) = config.ops_listen {
            let pages =
                http::pages(metrics.clone(), health.clone(), bounded!(health_service.clone()));
            let tls = tls.as_ref().filter(|_| config.tls.ops_tls);
            let tls = tls.map(|tls| ListenerTls::new(tls.for_pages(), "ops", &metrics.tls));
            let ops = Ops { limits: config.limits.clone(), tls };
            ops_address = Some(ops.serve(address, pages, ended.clone()).await?);
        }
        let tls = tls.map(|tls| ListenerTls::new(tls, "grpc", &metrics.tls));
        let routes = Routes::new(bounded!(health_service));
        until_started.disarm();
        Ok(Self { metrics, ops_address, health, routes, tls, door, traces, reloader, ended })
    }
}

/// A server that runs.
pub struct Server {
    addresses: Vec<Address>,
    ops_address: Option<SocketAddr>,
    reloader: Reloader,
    store: StoreInfo,
    ending: ShutdownSignals,
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
        let mut listeners = Vec::new();
        for address in &config.listen {
            listeners.push(Listener::bind(address).await?);
        }
        let front = Front::start(&config).await?;
        let unless_started = front.ended.clone().drop_guard();
        let served = Served { writers: config.writers, metrics: front.metrics.store.clone() };
        let store = open(&config.store, clock, config.migrate, Some(served)).await?;
        let info = store.info().await?;
        report_durability(info.durability, &front.metrics);
        let started = match store {
            Opened::Postgres(store) => Self::on(store, info, config, listeners, front).await,
            Opened::Sqlite(store) => Self::on(store, info, config, listeners, front).await,
            Opened::Memory(store) => Self::on(store, info, config, listeners, front).await,
        };
        if started.is_ok() {
            unless_started.disarm();
        }
        started
    }

    /// Runs on `store`, which is closed if that fails.
    async fn on(
        store: impl Store,
        info: StoreInfo,
        config: ServeConfig,
        listeners: Vec<Listener>,
        front: Front,
    ) -> anyhow::Result<Self> {
        let (ending, limit) = (ShutdownSignals::default(), config.drain_timeout);
        let started = Self::run(config, listeners, (&store, info), front, ending.clone()).await;
        if started.is_err() {
            ending.stop.cancel();
            let _ = tokio::time::timeout(limit, close(store)).await;
        }
        started
    }

    async fn run(
        config: ServeConfig,
        listeners: Vec<Listener>,
        (store, info): (&impl Store, StoreInfo),
        front: Front,
        ending: ShutdownSignals,
    ) -> anyhow::Result<Self> {
        let Front { metrics, ops_address, health, routes, tls, door, traces, reloader, ended } =
            front;
        let stop = ending.stop.clone();
        let addresses = listeners.iter().map(Listener::address).collect::<Result<_, _>>()?;
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
        let limit = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        metrics.limits.waiters.set(limit(bounds.waiters));
        metrics.limits.calls.set(limit(config.limits.max_calls));
        let sessions = Sessions::start(store, runtimes, bounds, &stop, &metrics);
        let turns = Turns::start(store, runtimes, &sessions, bounds, &metrics);
        let DuplicateCacheConfig {
            duplicate_cache_entries: entries,
            duplicate_cache_max_age: max_age,
        } = config.duplicate_cache;
        let known = (entries > 0)
            .then(|| DuplicateCache::new(entries, max_age, store.invalidations()))
            .transpose()?;
        let dedups = Dedup::start(store, runtimes, config.writers, capacity, known, &metrics);
        tokio::spawn(cleanup.clone().sweep_forever(
            store.connection(Work::Scans),
            config.sweep_interval,
            stop.clone(),
        ));

        let mut probe = Probe::new(
            store.connection(Work::Short),
            config.store.store_timeout,
            health.clone(),
            metrics.clone(),
        );
        if let Err(error @ StoreError::Misconfigured(_)) = probe.look().await {
            return Err(error).context("cannot use the database");
        }
        tokio::spawn(probe.follow(config.probe_interval, ending.asked.clone()));

        let under_way = TaskTracker::new();
        let max_calls = config.limits.max_calls;
        let observe =
            CallMetrics::new(&metrics, max_calls, under_way.clone(), door, traces.clone())?;
        let timeout = config.limits.call_timeout;
        let admin = Admin::start(store, &runtimes[0], sessions[0].clone(), &metrics);
        let about = ServerInfo { timeout, max_hold: config.max_hold };
        let others = routes
            .add_service(bounded!(ServerServiceServer::new(about)))
            .add_service(bounded!(AdminServiceServer::new(Administration { admin, timeout })))
            .add_service(bounded!(reflection().build_v1()?))
            .add_service(bounded!(reflection().build_v1alpha()?));
        let limits = &config.limits;
        let gate = |((dedup, sessions), turns)| {
            let turns = bounded!(TurnServiceServer::new(TurnCalls { turns, timeout }));
            let others = others.clone().add_service(turns).prepare();
            let service = Idempotency { dedup, sessions, cleanup: cleanup.clone(), timeout };
            let service = bounded!(IdempotencyServiceServer::new(service));
            let half_open = HalfOpen::new(limits.preface_timeout, limits.max_calls, runtimes.len());
            GrpcService::new(service, others, half_open, observe.clone())
        };
        let own_files = OTHER_FILES
            + 2 * latest::MOST
            + runtimes.len() * FILES_OF_A_WORKER
            + 3 * config.writers
            + OTHER_STORE_CONNECTIONS;
        let max_connections = files::connections(limits.max_connections, own_files);
        metrics.limits.connections.set(limit(max_connections));
        let grace = limits.max_connection_age_grace.unwrap_or(config.max_hold + AGE_GRACE);
        let connections = Connections {
            limits: LimitConfig { max_connections, ..limits.clone() },
            tls,
            grace,
            open: metrics.connections.clone(),
            stop: stop.clone(),
            cut: CancellationToken::new(),
            served: TaskTracker::new(),
        };
        let gates = dedups.into_iter().zip(sessions).zip(turns).map(gate).collect();
        connections.serve(listeners, runtimes, gates);

        let (lame_duck, timeout) = (config.lame_duck(), config.drain_timeout);
        let gauge = metrics.draining.clone();
        let drain = Drain { health, gauge, under_way, connections, lame_duck, timeout };
        let draining = drain.run(ending.clone(), store.closed());
        let drained = tokio::spawn(async move {
            draining.await;
            drop(workers);
            if let Some(traces) = traces {
                traces::stop(traces).await;
            }
            ended.cancel();
        });
        Ok(Self { addresses, ops_address, reloader, store: info, ending, drained })
    }

    /// Where it listens, with the port that the system chose: the first address.
    ///
    /// # Panics
    /// Never: a server has one.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.addresses[0]
    }

    /// Everywhere that it listens.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Where it serves metrics and health for operations.
    #[must_use]
    pub fn ops_address(&self) -> Option<SocketAddr> {
        self.ops_address
    }

    /// Its store.
    #[must_use]
    pub fn store(&self) -> &StoreInfo {
        &self.store
    }

    /// What reads certificates and other files again.
    #[must_use]
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
    }

    /// Ends the time in which a server that is to stop goes on serving.
    #[must_use]
    pub fn hurry(&self) -> CancellationToken {
        self.ending.hurry.clone()
    }

    /// Goes on serving for `--lame-duck`, not ready; then answers what is under
    /// way, refuses what is new, and ends within the drain timeout.
    ///
    /// # Errors
    /// When the drain itself failed.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.ending.asked.cancel();
        Ok(self.drained.await?)
    }
}

/// Warns once if a crash of the store can lose what was answered.
fn report_durability(durability: Durability, metrics: &Metrics) {
    metrics.durability.found(durability.reason(), durability == Durability::Durable);
    // Of one in memory, it was warned when it was opened.
    if let (Some(loss), false) = (durability.loss(), durability == Durability::Memory) {
        tracing::warn!(reason = durability.reason(), "the store is not durable: {loss}");
    }
}

/// How many threads can run at once, as far as this process may.
fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Reflection for everything that a caller of ours meets: the contract, health,
/// and the details that errors carry.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}
