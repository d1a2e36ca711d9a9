//! Embedded `SQLite`: the default, for one process on one machine.
//!
//! All writers share one connection, batch by batch, each batch one transaction
//! that is synced to disk before it is answered (WAL, `synchronous=FULL`).
//! The rules decide on rows that a connection for reading found. The writer compares their versions
//! before it writes.
//!
//! Architecture Invariant: one process a file. A second one is refused at
//! start, so the process's clock is the store's clock.
//!
//! Architecture Invariant: nothing is committed to a file that its path does not lead to
//! any more (`DatabaseFile::check`, called by `SQLite` before each commit).

use std::{
    future::Future,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sqlx::{
    ConnectOptions as _, Connection as _, Executor as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tokio::sync::mpsc;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use self::file::DatabaseFile;
use super::{Clock, Connection, Hint, Invalidations, Reset, Store, StoreError, Work};
use crate::{
    domain::{Timestamp, limits::CLAIM_MEMORY},
    rules::Ids,
};

mod admin;
mod clock;
mod doctor;
mod events;
mod fence;
mod file;
mod lock;
mod maintenance;
mod migrate;
mod records;
mod result_code;
mod rows;
mod sessions;
mod writer;

use clock::StoreClock;
use result_code::classify;
use writer::Writer;

/// The page cache of the writing connection, in KiB; negative as `SQLite` wants
/// it. Filled only as far as the file is large.
const CACHE_KIB: &str = "-65536";

/// Brings all into the one file. Another process that reads it is not waited for for long.
const CHECKPOINT: &str = "PRAGMA busy_timeout = 250; PRAGMA wal_checkpoint(TRUNCATE)";

/// Every statement that is run, for a test to prepare.
pub const STATEMENTS: &[&str] = &[
    clock::SEEN,
    fence::FLOOR,
    fence::RAISE,
    fence::HIGHEST,
    events::READ,
    events::VERSIONS,
    events::PUT,
    events::ADD,
    events::UPDATE,
    events::DELETE,
    sessions::READ,
    sessions::VERSIONS,
    sessions::PUT,
    sessions::DELETE,
    sessions::PUT_PLACES,
    sessions::DELETE_PLACES,
    sessions::PLACES,
    sessions::KEEP_ALL,
    sessions::FORGET,
    sessions::NOBODY_WAITS,
    admin::LIST_SESSIONS,
    admin::LIST_EVENTS,
    admin::COUNT,
    maintenance::COUNT_EXPIRED_EVENTS,
    maintenance::COUNT_OLD_EVENTS,
    maintenance::COUNT_SESSIONS,
    maintenance::DELETE_EXPIRED_EVENTS,
    maintenance::DELETE_OLD_EVENTS,
    maintenance::DELETE_SESSIONS,
    maintenance::COUNT_LEASES,
    maintenance::FIGURES,
    migrate::APPLIED,
    migrate::RECORD,
    doctor::JOURNAL,
    maintenance::PROBE_EVENTS,
    maintenance::PROBE_SESSIONS,
    maintenance::PROBE_WAITERS,
    maintenance::PROBE_FENCE,
];

/// An embedded database file.
pub struct Sqlite {
    options: SqliteConnectOptions,
    marks: Arc<Invalidation>,
    writer: Arc<Writer>,
    retired: Arc<Retired>,
    file: Arc<DatabaseFile>,
    handles: TaskTracker,
}

impl Sqlite {
    /// Opens the file that `url` names, and makes it where there is none.
    ///
    /// # Errors
    /// [`StoreError::Internal`] when the file cannot be opened, or another process
    /// has it.
    pub async fn open(url: &str, clock: Clock) -> Result<Self, StoreError> {
        let (given, may_create) = file::read_url(url)?;
        let file = Arc::new(DatabaseFile::open(&given, may_create)?);
        let options = SqliteConnectOptions::new()
            .filename(file.path())
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5))
            .pragma("cache_size", CACHE_KIB)
            .disable_statement_logging();
        let writer = Writer::open(&options, &file).await.map_err(|error| file.refused(&error))?;
        file.watch()?;
        let marks = Arc::new(Invalidation {
            clock: StoreClock::new(clock),
            epoch: AtomicU64::new(0),
            file: Arc::clone(&file),
        });
        Ok(Self {
            options,
            marks,
            writer: Arc::new(writer),
            retired: Arc::default(),
            file,
            handles: TaskTracker::new(),
        })
    }

    /// Brings the schema up to date.
    ///
    /// # Errors
    /// [`StoreError::Internal`] when the schema is not one of ours.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let mut writer = self.writer.lock().await;
        migrate::run(&mut writer).await?;
        self.take_up(&mut writer).await
    }

    /// Checks that the schema is one that this binary can use.
    ///
    /// # Errors
    /// [`StoreError::Internal`] when it is not.
    pub async fn verify(&self) -> Result<(), StoreError> {
        let mut writer = self.writer.lock().await;
        migrate::verify(&mut writer).await?;
        self.take_up(&mut writer).await
    }

    /// Takes up the file where the process before this one left it: the clock goes on from what
    /// that last wrote, and the places of callers that waited there are kept for a while.
    async fn take_up(&self, writer: &mut SqliteConnection) -> Result<(), StoreError> {
        let memory = i64::try_from(CLAIM_MEMORY.as_micros()).map_err(StoreError::internal)?;
        let seen = sqlx::query_scalar(clock::SEEN).bind(memory).fetch_one(&mut *writer).await;
        self.marks.clock.begin_at(Timestamp::from_micros(seen.map_err(classify)?));
        maintenance::keep_places(writer, self.marks.clock.now()).await
    }
}

impl Store for Sqlite {
    type Connection = Handle;

    fn connection(&self, _work: Work) -> Handle {
        Handle {
            options: self.options.clone(),
            marks: Arc::clone(&self.marks),
            ids: Ids::Random,
            writer: Arc::clone(&self.writer),
            reader: None,
            retired: Arc::clone(&self.retired),
            file: Arc::clone(&self.file),
            _open: self.handles.token(),
        }
    }

    fn invalidations(&self) -> Arc<dyn Invalidations> {
        Arc::clone(&self.marks) as _
    }

    /// There is no other replica.
    fn hints(&self) -> mpsc::Receiver<Hint> {
        mpsc::channel(1).1
    }

    /// There is one writer.
    fn writers(&self, _wanted: usize) -> usize {
        1
    }

    fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        let handles = self.handles.clone();
        let (writer, retired) = (Arc::clone(&self.writer), Arc::clone(&self.retired));
        let file = Arc::clone(&self.file);
        async move {
            handles.close();
            handles.wait().await;
            // Only the last connection that closes leaves one file, and this must be it.
            let failed = async {
                for reader in retired.take() {
                    reader.close().await?;
                }
                let Some(writer) = Arc::into_inner(writer) else { return Ok(()) };
                let mut writer = writer.into_connection();
                writer.execute(CHECKPOINT).await?;
                writer.close().await
            };
            if let Err(error) = failed.await {
                tracing::warn!(%error, "cannot close the database file cleanly; the next start recovers it");
            }
            file.close();
        }
    }
}

/// What is to be known of marks that were read: in one process, all of it.
struct Invalidation {
    clock: StoreClock,
    epoch: AtomicU64,
    file: Arc<DatabaseFile>,
}

impl Invalidation {
    /// Marks were taken away, or may have been. Whatever deletes rows of marks
    /// that have not expired calls this before it answers.
    fn invalidate(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }
}

impl Invalidations for Invalidation {
    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    fn now(&self) -> Option<Timestamp> {
        self.file.is_in_place().then(|| self.clock.now())
    }
}

/// The shared writer, and a reader of its own.
pub struct Handle {
    options: SqliteConnectOptions,
    marks: Arc<Invalidation>,
    ids: Ids,
    writer: Arc<Writer>,
    reader: Option<SqliteConnection>,
    retired: Arc<Retired>,
    file: Arc<DatabaseFile>,
    /// Dropped last: the writer is closed by then only if nothing else refers to it.
    _open: TaskTrackerToken,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.reset();
    }
}

impl Connection for Handle {}

impl Reset for Handle {
    fn reset(&mut self) {
        self.retired.add(self.reader.take());
    }
}

impl Handle {
    fn now(&self) -> Timestamp {
        self.marks.clock.now()
    }

    async fn reader(&mut self) -> Result<&mut SqliteConnection, StoreError> {
        if self.reader.is_none() {
            let options = self.options.clone().read_only(true);
            self.reader = Some(options.connect().await.map_err(classify)?);
        }
        if let Err(error) = self.file.check() {
            // It may have been opened where another file is now.
            self.reset();
            return Err(error);
        }
        self.reader.as_mut().ok_or_else(|| StoreError::internal("no connection"))
    }
}

/// Readers that are of no use any more, to be closed before the writer is.
#[derive(Default)]
struct Retired(std::sync::Mutex<Vec<SqliteConnection>>);

impl Retired {
    fn add(&self, reader: Option<SqliteConnection>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(reader);
    }

    fn take(&self) -> Vec<SqliteConnection> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
