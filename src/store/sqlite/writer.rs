//! The connection that writes, and its transactions.

use std::sync::Arc;

use sqlx::{
    ConnectOptions as _, Connection as _, Executor as _, SqliteConnection, Transaction,
    sqlite::{SqliteConnectOptions, SqliteTransactionManager},
};
use sqlx_core::transaction::TransactionManager as _;
use tokio::sync::{Mutex, MutexGuard};
use tokio_util::task::TaskTracker;

use super::{file::DatabaseFile, result_code::classify};
use crate::store::StoreError;

/// The one connection that writes. Batches have it in the order in which they asked for it.
pub(super) struct Writer {
    connection: Mutex<SqliteConnection>,
    waiting: TaskTracker,
}

impl Writer {
    /// Opens the connection. Its commits are refused while the file is not in place.
    pub(super) async fn open(
        options: &SqliteConnectOptions,
        file: &Arc<DatabaseFile>,
    ) -> Result<Self, sqlx::Error> {
        let mut writer = options.connect().await?;
        // A read, so that all files that belong to the database are there.
        writer.execute("SELECT count(*) FROM sqlite_schema").await?;
        let file = Arc::clone(file);
        writer.lock_handle().await?.set_commit_hook(move || file.check().is_ok());
        Ok(Self { connection: Mutex::new(writer), waiting: TaskTracker::new() })
    }

    pub(super) fn into_connection(self) -> SqliteConnection {
        self.connection.into_inner()
    }

    pub(super) async fn lock(&self) -> MutexGuard<'_, SqliteConnection> {
        let _waits = self.waiting.token();
        self.connection.lock().await
    }

    /// Whether a batch waits for it.
    pub(super) fn is_wanted(&self) -> bool {
        !self.waiting.is_empty()
    }
}

/// Begins a batch's transaction: no other can write until it ends.
pub(super) async fn begin(
    writer: &mut SqliteConnection,
) -> Result<Transaction<'_, sqlx::Sqlite>, StoreError> {
    if writer.is_in_transaction() {
        settle(writer).await.map_err(classify)?;
    }
    writer.begin_with("BEGIN IMMEDIATE").await.map_err(classify)
}

/// Where a COMMIT failed, as on a full disk, `SQLite` has rolled back by itself; sqlx has not
/// noticed, and would begin no other transaction.
async fn settle(writer: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    // By then a rollback that is on its way is done.
    writer.ping().await?;
    if writer.is_in_transaction() {
        writer.execute("BEGIN").await?;
        SqliteTransactionManager::rollback(writer).await?;
    }
    Ok(())
}
