//! PostgreSQL: the authority for any number of replicas.
//!
//! Architecture Invariant: what an operation changes is written by one statement, so in one commit,
//! which is run by a task that nobody cancels. No pool: a connection belongs to one or several
//! kinds of work, and runs one statement at a time.

use std::{
    future::Future,
    sync::{Arc, OnceLock, PoisonError},
    time::Duration,
};

use sqlx::{Connection as _, postgres::PgConnection};
use tokio::sync::{Mutex, mpsc};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::{Clock, Connection, Hint, Invalidations, Reset, Store, StoreError, StoreInfo, Work};
use crate::telemetry::StoreMetrics;

/// That two rows have one key, team and `$id`, so that the planner finds the first by it
/// whatever it thinks of the tables. The team is compared as one of a list, which is of no
/// use to a merge join, or a scan of a whole index: it prefers those for as long as it takes a
/// table to be empty. But only the team: of two lists it may look up the first, and read all
/// that the team has.
macro_rules! same_key {
    ($id:literal, $found:literal, $by:literal) => {
        concat!(
            $found,
            ".team_id = ANY (ARRAY[",
            $by,
            ".team_id]) AND ",
            $found,
            ".",
            $id,
            " = ",
            $by,
            ".",
            $id
        )
    };
}

/// Whether the claim of `$row` runs at `$at`. One that was ended is written to have ended when
/// it was made (`processed_at`), and stays ended if the clock is stepped back.
macro_rules! running {
    ($row:literal, $at:literal) => {
        concat!(
            "(",
            $row,
            ".claimed_until > ",
            $at,
            " AND ",
            $row,
            ".claimed_until > ",
            $row,
            ".processed_at)"
        )
    };
}

#[macro_use]
mod ended;
#[macro_use]
mod namespace;
#[macro_use]
mod resumed;
#[macro_use]
mod sweep_after;
mod about;
mod admin;
mod connect;
mod doctor;
mod events;
mod fence;
mod figures;
mod handle;
mod hints;
mod line;
mod maintenance;
mod migrate;
mod notifications;
mod notify_channel;
mod ordinality;
mod privileges;
mod records;
mod sessions;
mod share;
mod sqlstate;
mod statements;
mod steps;
mod timestamp;
mod turns;

use about::About;
use connect::Connector;
pub use connect::{Origin, Source};
pub use handle::Handle;
use handle::Starved;
use line::Line;
use namespace::Locks;
use notifications::CacheValidity;
pub use notifications::MAX_STALENESS;
use share::{ConnectionPlan, SessionLines, Which};
use sqlstate::classify;
pub use statements::STATEMENTS;

/// The limit of a statement that scans a whole table.
const PATIENCE: Duration = Duration::from_mins(2);

/// A PostgreSQL database.
pub struct Postgres {
    connector: Connector,
    timeout: Duration,
    clock: Clock,
    heard: Arc<CacheValidity>,
    /// Those of the schema, once that is known.
    locks: OnceLock<Locks>,
    /// This replica, as the others know it.
    replica: Uuid,
    plan: ConnectionPlan,
    /// The connections that several share, opened or not.
    short: Arc<Mutex<Line>>,
    scans: Arc<Mutex<Line>>,
    sessions: std::sync::Mutex<SessionLines>,
    starved: Arc<Starved>,
    /// Held by a listener while it starts, which takes one connection more.
    begins: Arc<Mutex<()>>,
    links: TaskTracker,
    /// What it is, once that is known.
    info: Option<StoreInfo>,
}

impl Postgres {
    /// The database at `url`. Nothing is opened yet. A statement that has no
    /// answer within `timeout` is given up: its outcome is unknown.
    ///
    /// # Errors
    /// When `url` cannot be read.
    pub fn new(url: &str, timeout: Duration, clock: Clock) -> Result<Self, StoreError> {
        Self::at(Source::at(url), timeout, clock, &StoreMetrics::default())
    }

    /// The same, of a database that is connected to as `source` says, counted by `metrics`.
    ///
    /// # Errors
    /// When it contradicts itself.
    pub fn at(
        source: Source,
        timeout: Duration,
        clock: Clock,
        metrics: &StoreMetrics,
    ) -> Result<Self, StoreError> {
        let connector = Connector::new(source, timeout, metrics.of_connections())?;
        let (replica, links) = (Uuid::new_v4(), TaskTracker::new());
        let line = |connector| Arc::new(Mutex::new(Line::new(connector)));
        let short = line(connector.for_short(timeout));
        let scans = line(connector.for_scans(timeout));
        let (plan, starved, begins) =
            (ConnectionPlan::of(usize::MAX / 8), Arc::default(), Arc::default());
        Ok(Self {
            connector,
            timeout,
            heard: Arc::new(CacheValidity::new(clock.clone())),
            clock,
            locks: OnceLock::new(),
            replica,
            plan,
            short,
            scans,
            sessions: std::sync::Mutex::default(),
            starved,
            begins,
            links,
            info: None,
        })
    }

    /// Shares connections where the database allows for fewer than `writers` for each kind
    /// of writing, and the others, take.
    ///
    /// # Errors
    /// [`StoreError::Misconfigured`] when it never allows for enough or the role lacks a privilege,
    /// [`StoreError::Unavailable`] when it is away.
    pub async fn share(&mut self, writers: usize) -> Result<(), StoreError> {
        let mut connection = self.connect().await?;
        self.plan = timed(self.timeout, share::plan(&mut connection, writers)).await?;
        self.info = Some(timed(self.timeout, About::of(&mut connection)).await?.info());
        let _ = connection.close().await;
        Ok(())
    }

    /// What it is, once [`Self::share`] has found out.
    #[must_use]
    pub fn info(&self) -> Option<&StoreInfo> {
        self.info.as_ref()
    }

    /// Brings the schema up to date, unless another replica does so, or a transaction holds a
    /// lock on the tables.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the database is away, [`StoreError::Conflict`] while
    /// another replica migrates, [`StoreError::LockTimeout`] while the tables cannot be locked.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let mut connection = self.connect().await?;
        let schema = migrate::run(&mut connection, self.connector.schema(), self.timeout).await?;
        self.locks.get_or_init(|| Locks::of(&schema));
        let _ = connection.close().await;
        Ok(())
    }

    /// Checks that the schema is one that this binary can use.
    ///
    /// # Errors
    /// [`StoreError::Internal`] when it is not.
    pub async fn verify(&self) -> Result<(), StoreError> {
        let mut connection = self.connect().await?;
        let schema = timed(self.timeout, migrate::verify(&mut connection)).await?;
        self.locks.get_or_init(|| Locks::of(&schema));
        let _ = connection.close().await;
        Ok(())
    }

    async fn connect(&self) -> Result<PgConnection, StoreError> {
        match tokio::time::timeout(self.timeout, self.connector.connect()).await {
            Ok(connected) => connected.map_err(classify),
            Err(_) => Err(StoreError::unavailable("timed out while connecting")),
        }
    }
}

/// Gives `work` up after `limit`.
async fn timed<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let done = tokio::time::timeout(limit, Box::pin(work)).await;
    done.unwrap_or_else(|_| Err(StoreError::unavailable("timed out waiting for the answer")))
}

impl Store for Postgres {
    type Connection = Handle;

    fn connection(&self, work: Work) -> Handle {
        let own = || Arc::new(Mutex::new(Line::new(self.connector.for_short(self.timeout))));
        let line = match self.plan.line(work) {
            Which::Own => own(),
            Which::Short => Arc::clone(&self.short),
            Which::Scans => Arc::clone(&self.scans),
            Which::Sessions(kind) => {
                let sessions = self.sessions.lock();
                sessions.unwrap_or_else(PoisonError::into_inner).next(kind, own)
            }
        };
        let timeout = if work == Work::Scans { PATIENCE } else { self.timeout };
        Handle::new(self, line, timeout)
    }

    fn invalidations(&self) -> Arc<dyn Invalidations> {
        let heard = Arc::clone(&self.heard);
        let (connector, begins) = (self.connector.clone(), Arc::clone(&self.begins));
        notifications::listen(connector, self.timeout, heard, begins, self.links.token())
    }

    fn hints(&self) -> mpsc::Receiver<Hint> {
        if !self.plan.hears_of_leases() {
            return mpsc::channel(1).1;
        }
        let listener = hints::Listener {
            connector: self.connector.clone(),
            timeout: self.timeout,
            locks: self.locks.get().copied().unwrap_or_default(),
            replica: self.replica,
            begins: Arc::clone(&self.begins),
        };
        listener.listen(self.links.token())
    }

    fn writers(&self, wanted: usize) -> usize {
        self.plan.writers(wanted)
    }

    fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        let links = self.links.clone();
        async move {
            links.close();
            links.wait().await;
        }
    }
}

impl Connection for Handle {}

impl Reset for Handle {
    /// A connection whose statement did not end is not used again anyway.
    fn reset(&mut self) {}
}
