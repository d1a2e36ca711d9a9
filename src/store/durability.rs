//! Whether what a store has committed survives a crash.

/// Whether a commit survives a crash of the store and its machine; otherwise, why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It does.
    Durable,
    /// Records are in memory only.
    Memory,
    /// PostgreSQL does not wait for its disk at all.
    Fsync,
    /// PostgreSQL cannot repair a page that was half written.
    FullPageWrites,
    /// PostgreSQL answers before its log is on disk.
    SynchronousCommit,
}

impl Durability {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Durable, Self::Memory, Self::Fsync, Self::FullPageWrites, Self::SynchronousCommit];

    /// Why it is not durable, as a metric's label; `none` if it is.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Durable => "none",
            Self::Memory => "memory",
            Self::Fsync => "fsync",
            Self::FullPageWrites => "full_page_writes",
            Self::SynchronousCommit => "synchronous_commit",
        }
    }

    /// What a crash can do; none if it loses nothing.
    #[must_use]
    pub const fn loss(self) -> Option<&'static str> {
        match self {
            Self::Durable => None,
            Self::Memory => {
                Some("records are in memory only: all of them are lost when the server stops")
            }
            Self::Fsync => Some("fsync is off: a crash of the machine can destroy the database"),
            Self::FullPageWrites => {
                Some("full_page_writes is off: a crash of the machine can damage the database")
            }
            Self::SynchronousCommit => Some(
                "synchronous_commit is off: a crash of the database loses marks and leases that \
                 were answered",
            ),
        }
    }

    /// Of PostgreSQL with these settings; one that is not known counts as safe.
    pub(super) fn of_postgres(
        fsync: Option<&str>,
        full_page_writes: Option<&str>,
        synchronous_commit: Option<&str>,
    ) -> Self {
        if fsync == Some("off") {
            Self::Fsync
        } else if full_page_writes == Some("off") {
            Self::FullPageWrites
        } else if synchronous_commit == Some("off") {
            Self::SynchronousCommit
        } else {
            Self::Durable
        }
    }
}

/// What a server needs to know of its store once, at the start.
#[derive(Debug, Clone)]
pub struct StoreInfo {
    /// `PostgreSQL`, `SQLite` or `memory`.
    pub kind: &'static str,
    /// The version of the database; empty for one without.
    pub version: String,
    /// Whether what it commits survives a crash.
    pub durability: Durability,
}
