//! Another program that uses the database.

use std::str::FromStr as _;

use sqlx::{
    Connection as _, Executor as _, PgConnection, SqliteConnection, sqlite::SqliteConnectOptions,
};

/// Keeps everybody else from marking until it is dropped.
pub enum Outsider {
    Postgres { _locking: PgConnection },
    Sqlite { _locking: SqliteConnection },
}

impl Outsider {
    pub async fn at(url: &str) -> Self {
        if url.starts_with("sqlite:") {
            let options = SqliteConnectOptions::from_str(url).unwrap();
            let mut locking = SqliteConnection::connect_with(&options).await.unwrap();
            locking.execute("BEGIN IMMEDIATE").await.unwrap();
            return Self::Sqlite { _locking: locking };
        }
        let mut locking = PgConnection::connect(url).await.unwrap();
        locking.execute("BEGIN; LOCK TABLE processed_events").await.unwrap();
        Self::Postgres { _locking: locking }
    }
}
