//! What every test stands on: real stores, real servers, real calls.

use std::{str::FromStr as _, sync::Arc, time::Duration};

use clap::Parser as _;
use oncegate::{
    config::{Address, ServeConfig},
    grpc::pb::{
        self, event_key, idempotency_service_client::IdempotencyServiceClient, session_key,
    },
    server::Server,
    store::{Clock, ManualClock},
};
use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, SqliteConnection,
    sqlite::SqliteConnectOptions,
};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

pub mod certs;
pub mod copies;
pub mod files;
pub mod hole;
pub mod metrics;
pub mod ops;
pub mod outsider;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod secrets;
pub mod web;
pub mod wire;

pub type Client = IdempotencyServiceClient<Channel>;

/// A store's clock that a test moves.
#[derive(Clone)]
pub struct TestClock(Arc<ManualClock>);

impl TestClock {
    /// A clock that stands at a moment in 2026.
    pub fn new() -> Self {
        Self(Arc::new(ManualClock::at(1_790_000_000_000_000)))
    }

    /// Lets time pass.
    pub fn advance(&self, span: Duration) {
        self.0.advance(span);
    }

    /// Steps the clock back; no time passes.
    pub fn step_back(&self, span: Duration) {
        self.set(self.micros() - i64::try_from(span.as_micros()).unwrap());
    }

    /// Where it stands, in microseconds since 1970.
    pub fn micros(&self) -> i64 {
        self.0.now().as_micros()
    }

    /// Steps the clock; no time passes.
    pub fn set(&self, micros: i64) {
        self.0.set(micros);
    }

    pub fn store_clock(&self) -> Clock {
        Clock::Manual(Arc::clone(&self.0))
    }
}

/// One server of this process, on a port of its own.
pub struct Replica {
    pub server: Server,
}

impl Replica {
    /// Starts a server on the database at `url`, with further flags.
    pub async fn start(url: &str, clock: Clock, flags: &[&str]) -> Self {
        secrets::watch_logs();
        let server = Server::start(config(url, flags), clock).await.unwrap();
        Self { server }
    }

    /// Starts several servers on one database.
    pub async fn start_all(count: usize, url: &str, clock: &Clock) -> Vec<Self> {
        let mut replicas = Vec::new();
        for _ in 0..count {
            replicas.push(Self::start(url, clock.clone(), &[]).await);
        }
        replicas
    }

    /// A client with a connection of its own.
    pub async fn client(&self) -> Client {
        Client::new(connect(self.server.address()).await)
    }
}

/// The settings of a test's server: any free port, no sweeping by itself.
pub fn config(url: &str, flags: &[&str]) -> ServeConfig {
    #[derive(clap::Parser)]
    struct Flags {
        #[command(flatten)]
        serve: ServeConfig,
    }
    let mut arguments = vec!["test", "--database-url", url];
    if !flags.contains(&"--listen") {
        arguments.extend(["--listen", "127.0.0.1:0"]);
    }
    if !flags.contains(&"--sweep-interval") {
        arguments.extend(["--sweep-interval", "1h"]);
    }
    arguments.extend(flags);
    Flags::parse_from(arguments).serve
}

/// Connects to a server.
pub async fn connect(address: &Address) -> Channel {
    let uri = match address {
        Address::Tcp(address) => format!("http://{address}"),
        Address::Unix(_) => address.to_string(),
    };
    Endpoint::from_shared(uri).unwrap().connect().await.unwrap()
}

/// A store of a test's own, with one replica on it and a clock to move.
pub struct Fixture {
    pub url: String,
    pub clock: TestClock,
    pub replica: Replica,
    pub client: Client,
    /// Keeps the embedded store's file while the test runs.
    _directory: Option<TempDir>,
}

impl Fixture {
    pub async fn postgres() -> Self {
        Self::new(postgres::new_database().await, None).await
    }

    pub async fn sqlite() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = sqlite_url(&directory);
        Self::new(url, Some(directory)).await
    }

    pub async fn memory() -> Self {
        Self::new("memory:".to_owned(), None).await
    }

    async fn new(url: String, directory: Option<TempDir>) -> Self {
        let clock = TestClock::new();
        let replica = Replica::start(&url, clock.store_clock(), &[]).await;
        let client = replica.client().await;
        Self { url, clock, replica, client, _directory: directory }
    }

    /// The same, with a server that was started with further flags.
    pub async fn restarted(self, flags: &[&str]) -> Self {
        let Self { url, clock, replica, client, _directory: directory } = self;
        drop(client);
        replica.server.stop().await.unwrap();
        let replica = Replica::start(&url, clock.store_clock(), flags).await;
        let client = replica.client().await;
        Self { url, clock, replica, client, _directory: directory }
    }
}

pub fn sqlite_url(directory: &TempDir) -> String {
    format!("sqlite://{}", directory.path().join("oncegate.db").display())
}

/// Runs statements on the database at `url`, beside the server.
pub async fn execute(url: &str, sql: &str) {
    let sql = AssertSqlSafe(sql.to_owned());
    if url.starts_with("sqlite:") {
        let options = SqliteConnectOptions::from_str(url).unwrap();
        let mut file = SqliteConnection::connect_with(&options).await.unwrap();
        file.execute(sql).await.unwrap();
        file.close().await.unwrap();
    } else {
        PgConnection::connect(url).await.unwrap().execute(sql).await.unwrap();
    }
}

/// Runs each of the named bodies against both stores.
#[macro_export]
macro_rules! on_both_stores {
    ($($name:ident),+ $(,)?) => {
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::harness::Fixture::postgres().await).await;
            })+
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::harness::Fixture::sqlite().await).await;
            })+
        }
    };
}

/// Runs each of the named bodies against both stores and in memory; those after `kept` need what
/// outlives a server, and are not run in memory.
#[macro_export]
macro_rules! on_all_stores {
    ($($name:ident),+ $(; kept: $($kept:ident),+)? $(,)?) => {
        $crate::on_both_stores!($($name),+ $(, $($kept),+)?);
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::harness::Fixture::memory().await).await;
            })+
        }
    };
}

#[expect(clippy::unnecessary_wraps, reason = "as a message's field takes it")]
pub fn event(team: &str, event: &str) -> Option<pb::EventKey> {
    Some(pb::EventKey {
        team_id: team.to_owned(),
        key: Some(event_key::Key::EventId(event.to_owned())),
        aliases: Vec::new(),
        ..Default::default()
    })
}

#[expect(clippy::unnecessary_wraps, reason = "as a message's field takes it")]
pub fn session(team: &str, session: &str) -> Option<pb::SessionKey> {
    Some(pb::SessionKey {
        team_id: team.to_owned(),
        key: Some(session_key::Key::SessionId(session.to_owned())),
        ..Default::default()
    })
}

#[expect(clippy::unnecessary_wraps, reason = "as a message's field takes it")]
pub fn seconds(count: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: count, nanos: 0 })
}

pub fn mark(team: &str, id: &str) -> pb::MarkProcessedRequest {
    pb::MarkProcessedRequest { event: event(team, id), ..Default::default() }
}

pub fn acquire(team: &str, id: &str, holder: &str) -> pb::AcquireSessionLeaseRequest {
    pb::AcquireSessionLeaseRequest {
        session: session(team, id),
        holder: holder.to_owned(),
        ..Default::default()
    }
}

pub fn renew(lease: &pb::SessionLease) -> pb::RenewSessionLeaseRequest {
    pb::RenewSessionLeaseRequest {
        session: session(&lease.team_id, &lease.session_id),
        lease_id: lease.lease_id.clone(),
        ttl: None,
    }
}

pub fn release(lease: &pb::SessionLease) -> pb::ReleaseSessionLeaseRequest {
    pb::ReleaseSessionLeaseRequest {
        session: session(&lease.team_id, &lease.session_id),
        lease_id: lease.lease_id.clone(),
    }
}

/// The lease that an acquire was granted.
pub fn granted(answer: pb::AcquireSessionLeaseResponse) -> pb::SessionLease {
    match answer.outcome {
        Some(pb::acquire_session_lease_response::Outcome::Lease(lease)) => lease,
        other => panic!("not granted: {other:?}"),
    }
}

/// Who holds the session that an acquire was refused.
pub fn held(answer: pb::AcquireSessionLeaseResponse) -> pb::LeaseHeld {
    match answer.outcome {
        Some(pb::acquire_session_lease_response::Outcome::Held(held)) => held,
        other => panic!("not held: {other:?}"),
    }
}
