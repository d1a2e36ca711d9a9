//! The store of a testbed: a file, or a database of its own.

use std::path::Path;

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;

use crate::Kind;

#[path = "../../../tests/harness/postgres.rs"]
#[expect(dead_code, reason = "the tests need more of it")]
mod postgres;

/// A PostgreSQL server, which stops when this is dropped.
pub fn cluster() -> postgres::Cluster {
    postgres::Cluster::start()
}

pub struct Store {
    kind: Kind,
    url: String,
    /// For the file, and for the sockets of the replicas.
    folder: TempDir,
}

impl Store {
    /// Makes an empty one.
    pub async fn make(kind: Kind) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("oncegate-testbed-").tempdir()?;
        let url = match kind {
            Kind::Sqlite => format!("sqlite://{}", folder.path().join("oncegate.db").display()),
            Kind::Postgres => postgres::new_database().await,
        };
        Ok(Self { kind, url, folder })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Removes it. No replica runs on it any more.
    pub async fn remove(self) -> anyhow::Result<()> {
        self.folder.close()?;
        if self.kind == Kind::Postgres {
            let server = tokio::task::spawn_blocking(postgres::shared_server).await?;
            let path = self.url.split('?').next().unwrap_or_default();
            let name = path.rsplit('/').next().unwrap_or_default();
            let drop = format!("DROP DATABASE {name} WITH (FORCE)");
            PgConnection::connect(server).await?.execute(AssertSqlSafe(drop)).await?;
        }
        Ok(())
    }
}
