//! The private PostgreSQL that everything is measured on, durable as by
//! default, and the databases in it.

use std::{
    cell::Cell,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use tokio::runtime::Runtime;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use crate::process::{self, Pid};

#[path = "../../tests/harness/postgres.rs"]
#[expect(dead_code, reason = "the tests need more of it")]
mod harness;

/// How the cluster differs from PostgreSQL's defaults.
pub const SETTINGS: &[&str] = &["max_connections=300", "shared_buffers=1GB", "max_wal_size=8GB"];

/// A running cluster; it dies with this value, and with this process.
pub struct Cluster {
    server: harness::Cluster,
    runtime: Runtime,
    about: About,
    made: Cell<u32>,
}

/// What a cluster says of itself.
struct About {
    postmaster: Pid,
    version: String,
    programs: PathBuf,
}

impl About {
    async fn of(url: &str) -> anyhow::Result<Self> {
        const ASK: &str = "SELECT pg_backend_pid(), current_setting('server_version'),
            (SELECT setting FROM pg_config WHERE name = 'BINDIR')";
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        let driver = tokio::spawn(connection);
        let row = client.query_one(ASK, &[]).await?;
        // Whoever serves a connection was started by the postmaster.
        let postmaster = process::parent(row.get::<_, i32>(0).cast_unsigned())?;
        let version: &str = row.get(1);
        // What follows is its packager's.
        let version = version.split(' ').next().unwrap_or_default().to_owned();
        let programs = row.get::<_, &str>(2).into();
        drop(client);
        driver.await??;
        Ok(Self { postmaster, version, programs })
    }
}

impl Cluster {
    /// Makes and starts a cluster.
    pub fn start() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let server = harness::Cluster::start_with(SETTINGS);
        let about = runtime.block_on(About::of(&server.url()))?;
        Ok(Self { server, runtime, about, made: Cell::new(0) })
    }

    /// PostgreSQL's version.
    pub fn version(&self) -> &str {
        &self.about.version
    }

    /// Where it listens.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        let url = self.server.url();
        let address = url.split(['@', '/']).find_map(|part| part.parse().ok());
        address.with_context(|| format!("no address in {url}"))
    }

    /// Where the programs of this very PostgreSQL are.
    pub fn programs(&self) -> &Path {
        &self.about.programs
    }

    /// Makes an empty database.
    pub fn create(&self) -> anyhow::Result<Database<'_>> {
        let database = self.name();
        self.execute(&self.server.url(), &format!("CREATE DATABASE {}", database.name))?;
        Ok(database)
    }

    /// Makes a database that holds what `template` does. Nobody may be
    /// connected to that.
    pub fn copy(&self, template: &Database<'_>) -> anyhow::Result<Database<'_>> {
        let database = self.name();
        // By file, where that is a choice: or every page would go through the WAL.
        let modern = self.version().split('.').next().and_then(|major| major.parse().ok());
        let strategy = if modern >= Some(15) { "STRATEGY file_copy" } else { "" };
        let Database { name, .. } = &database;
        let create = format!("CREATE DATABASE {name} TEMPLATE {} {strategy}", template.name);
        self.execute(&self.server.url(), &create)?;
        Ok(database)
    }

    fn name(&self) -> Database<'_> {
        let number = self.made.replace(self.made.get() + 1);
        let name = format!("bench_{number}");
        let maintenance = self.server.url();
        let server = maintenance.rsplit_once('/').map_or(&*maintenance, |(server, _)| server);
        Database { cluster: self, url: format!("{server}/{name}"), name }
    }

    /// What all of PostgreSQL's processes have used so far, in seconds of CPU.
    pub fn cpu(&self) -> anyhow::Result<f64> {
        process::family_cpu(self.about.postmaster)
    }

    fn execute(&self, url: &str, sql: &str) -> anyhow::Result<Vec<SimpleQueryMessage>> {
        self.runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
            let driver = tokio::spawn(connection);
            let answer = client.simple_query(sql).await.with_context(|| sql.to_owned());
            drop(client);
            driver.await??;
            answer
        })
    }

    /// The one value that `sql` answers.
    fn ask(&self, url: &str, sql: &str) -> anyhow::Result<String> {
        let answer = self.execute(url, sql)?;
        let value = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        Ok(value.with_context(|| format!("no answer to {sql}"))?.to_owned())
    }
}

/// A database of the cluster.
pub struct Database<'a> {
    cluster: &'a Cluster,
    name: String,
    /// Where it is.
    pub url: String,
}

impl Database<'_> {
    /// Runs statements.
    pub fn execute(&self, sql: &str) -> anyhow::Result<()> {
        self.cluster.execute(&self.url, sql).map(drop)
    }

    /// The one number that `sql` answers.
    pub fn number(&self, sql: &str) -> anyhow::Result<u64> {
        Ok(self.cluster.ask(&self.url, sql)?.parse()?)
    }

    /// Removes it, whoever is still connected.
    pub fn remove(self) -> anyhow::Result<()> {
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        self.cluster.execute(&self.cluster.server.url(), &drop).map(std::mem::drop)
    }
}
