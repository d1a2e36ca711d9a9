//! Metrics of the store.

use std::{
    sync::atomic::AtomicU64,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

/// How long a reading of the store's clock may take: it is known to half of that.
const MAX_CLOCK_READING: Duration = Duration::from_millis(250);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NoLabels {}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabel {
    class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TableLabel {
    table: &'static str,
}

/// A gauge without a series while its value is not known.
type KnownGauge = Family<NoLabels, Gauge<f64, AtomicU64>>;
type KnownCount = Family<NoLabels, Gauge>;

/// Why a statement failed, or a connection could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// The connection was lost, or cannot be opened.
    Connection,
    /// There was no answer in time, or a lock could not be had in time.
    Timeout,
    /// Another transaction went first; the server retries.
    Conflict,
    /// Too many connections, or no room.
    Capacity,
    /// The database takes no writes.
    ReadOnly,
    /// The role may not do this, or not connect.
    Privileges,
    /// Everything else.
    Other,
}

impl ErrorClass {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Connection,
        Self::Timeout,
        Self::Conflict,
        Self::Capacity,
        Self::ReadOnly,
        Self::Privileges,
        Self::Other,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Timeout => "timeout",
            Self::Conflict => "conflict",
            Self::Capacity => "capacity",
            Self::ReadOnly => "read_only",
            Self::Privileges => "privileges",
            Self::Other => "other",
        }
    }
}

/// Of one store. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct StoreMetrics {
    connections: Family<StateLabel, Gauge>,
    reconnects: Family<NoLabels, Counter>,
    errors: Family<ClassLabel, Counter>,
    /// Operations whose caller was answered that their outcome is unknown.
    pub unknown_outcomes: Counter,
    clock_offset: KnownGauge,
    leases: KnownCount,
    sweep_lag: KnownGauge,
    sweep_interval: KnownGauge,
    last_sweep: KnownGauge,
    table_bytes: Family<TableLabel, Gauge>,
    table_live_rows: Family<TableLabel, Gauge>,
    table_dead_rows: Family<TableLabel, Gauge>,
    table_autovacuum: Family<TableLabel, Gauge<f64, AtomicU64>>,
    xid_age: KnownCount,
    schema_version: KnownCount,
}

/// Of the connections to a database server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StoreConnectionMetrics {
    /// Open ones.
    pub open: Gauge,
    /// Those that are being opened.
    pub connecting: Gauge,
    /// Those that were opened again.
    pub reconnects: Counter,
    errors: Family<ClassLabel, Counter>,
}

/// The state of one table.
#[derive(Debug, Clone, PartialEq)]
pub struct TableFigures {
    /// Its name.
    pub table: &'static str,
    /// Its size with its indexes, in bytes.
    pub bytes: i64,
    /// Rows that are not deleted, as the database estimates.
    pub live_rows: i64,
    /// Rows that are deleted and take room until the next vacuum.
    pub dead_rows: i64,
    /// When autovacuum was last done with it, in seconds since 1970; none if never.
    pub last_autovacuum: Option<f64>,
}

impl StoreMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register(
            "store_connections",
            "Connections of this replica to the database server, by state",
            self.connections.clone(),
        );
        r.register(
            "store_reconnects",
            "Connections to the database server that were lost and opened again",
            self.reconnects.clone(),
        );
        r.register(
            "store_errors",
            "Statements that the database server failed or did not answer, and connections that \
             could not be opened, by class; conflicts are retried",
            self.errors.clone(),
        );
        r.register(
            "store_unknown_outcomes",
            "Operations whose callers were answered that the outcome is unknown",
            self.unknown_outcomes.clone(),
        );
        r.register_with_unit(
            "store_clock_offset",
            "The store's clock minus the clock of this machine, measured at each sweep; absent \
             while it cannot be read",
            Unit::Seconds,
            self.clock_offset.clone(),
        );
        r.register(
            "leases_held",
            "Leases held on all replicas, counted at each sweep; absent while they cannot be counted",
            self.leases.clone(),
        );
        r.register_with_unit(
            "sweep_lag",
            "How long the oldest expired event has been due for deletion, after each sweep of this \
             replica; absent while that is not known",
            Unit::Seconds,
            self.sweep_lag.clone(),
        );
        r.register_with_unit(
            "sweep_interval",
            "Interval of the sweeps of this replica",
            Unit::Seconds,
            self.sweep_interval.clone(),
        );
        r.register_with_unit(
            "last_sweep_timestamp",
            "End of the last sweep that this replica has done, since 1970; its start before the \
             first one",
            Unit::Seconds,
            self.last_sweep.clone(),
        );
        r.register_with_unit(
            "table",
            "Size of a table with its indexes, read at each sweep, and absent while it cannot be \
             read; of PostgreSQL only",
            Unit::Bytes,
            self.table_bytes.clone(),
        );
        r.register(
            "table_live_rows",
            "Rows of a table, as PostgreSQL estimates; of PostgreSQL only",
            self.table_live_rows.clone(),
        );
        r.register(
            "table_dead_rows",
            "Deleted rows that take room until the next vacuum; of PostgreSQL only",
            self.table_dead_rows.clone(),
        );
        r.register_with_unit(
            "table_last_autovacuum_timestamp",
            "End of the last autovacuum of a table, since 1970; absent if there was none; of \
             PostgreSQL only",
            Unit::Seconds,
            self.table_autovacuum.clone(),
        );
        r.register(
            "xid_age",
            "Age of the oldest transaction id of all databases of the server, in transactions: at 2 \
             billion it takes no more writes; of PostgreSQL only",
            self.xid_age.clone(),
        );
        r.register(
            "schema_version",
            "Newest migration of the database, read at each sweep",
            self.schema_version.clone(),
        );
    }

    /// The metrics of the connections to a database server, at zero.
    #[must_use]
    pub fn of_connections(&self) -> StoreConnectionMetrics {
        let state = |state| self.connections.get_or_create_owned(&StateLabel { state });
        for class in ErrorClass::ALL {
            drop(self.errors.get_or_create(&ClassLabel { class: class.label() }));
        }
        StoreConnectionMetrics {
            open: state("open"),
            connecting: state("connecting"),
            reconnects: self.reconnects.get_or_create_owned(&NoLabels {}),
            errors: self.errors.clone(),
        }
    }

    /// The store's clock was read, in microseconds since 1970, within the given time until now;
    /// or it could not be.
    pub fn clock_read(&self, read: Option<(i64, Duration)>) {
        let Some((micros, took)) = read.filter(|(_, took)| *took <= MAX_CLOCK_READING) else {
            self.clock_offset.clear();
            return;
        };
        #[expect(clippy::cast_precision_loss, reason = "exact for 285 years")]
        let store = micros as f64 / 1e6;
        let here = now() - took.as_secs_f64() / 2.0;
        self.clock_offset.get_or_create(&NoLabels {}).set(store - here);
    }

    /// Sweeps begin, one in each `interval`.
    pub fn sweeping(&self, interval: Duration) {
        self.sweep_interval.get_or_create(&NoLabels {}).set(interval.as_secs_f64());
        self.swept();
    }

    /// A sweep was done.
    pub fn swept(&self) {
        self.last_sweep.get_or_create(&NoLabels {}).set(now());
    }

    /// How many leases are held, if they could be counted.
    pub fn leases(&self, count: Option<u64>) {
        show_count(&self.leases, count.map(|count| i64::try_from(count).unwrap_or(i64::MAX)));
    }

    /// How long the oldest row that the next sweep would delete has been due, if that is known.
    pub fn sweep_lag(&self, lag: Option<Duration>) {
        if let Some(lag) = lag {
            self.sweep_lag.get_or_create(&NoLabels {}).set(lag.as_secs_f64());
        } else {
            self.sweep_lag.clear();
        }
    }

    /// The newest migration of the database, if it could be read.
    pub fn schema_version(&self, version: Option<i64>) {
        show_count(&self.schema_version, version);
    }

    /// The age of the oldest transaction id, if it could be read.
    pub fn xid_age(&self, age: Option<i64>) {
        show_count(&self.xid_age, age);
    }

    /// The state of the tables; none, if it could not be read.
    pub fn tables(&self, tables: &[TableFigures]) {
        // What is not shown again is not known any more.
        if tables.is_empty() {
            self.table_bytes.clear();
            self.table_live_rows.clear();
            self.table_dead_rows.clear();
            self.table_autovacuum.clear();
        }
        for figures in tables {
            let label = TableLabel { table: figures.table };
            self.table_bytes.get_or_create(&label).set(figures.bytes);
            self.table_live_rows.get_or_create(&label).set(figures.live_rows);
            self.table_dead_rows.get_or_create(&label).set(figures.dead_rows);
            if let Some(at) = figures.last_autovacuum {
                self.table_autovacuum.get_or_create(&label).set(at);
            } else {
                self.table_autovacuum.remove(&label);
            }
        }
    }
}

/// Shows a count, or no series while it is not known.
fn show_count(gauge: &KnownCount, count: Option<i64>) {
    if let Some(count) = count {
        gauge.get_or_create(&NoLabels {}).set(count);
    } else {
        gauge.clear();
    }
}

impl StoreConnectionMetrics {
    /// A statement failed, or a connection could not be opened.
    pub fn failed(&self, class: ErrorClass) {
        self.errors.get_or_create(&ClassLabel { class: class.label() }).inc();
    }
}

/// Counts one as long as it lives, such as a connection that is open.
#[derive(Debug)]
pub struct Counted(Gauge);

impl Counted {
    /// One more.
    #[must_use]
    pub fn one(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// This machine's clock, in seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "a metric: nothing is decided by it")]
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
