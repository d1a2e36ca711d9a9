//! What the installs in one database must not share: channels and advisory locks, which
//! PostgreSQL has one set of for each database. Each schema has its own; those of `public` have
//! no addition.

use xxhash_rust::xxh3::xxh3_64;

use crate::domain::SessionKey;

/// The advisory lock that elects the sweeper: "oncegate" in ASCII.
const SWEEPER: i64 = 0x6f6e_6365_6761_7465;

/// A channel of this schema, as an SQL expression.
macro_rules! own_channel {
    ($name:literal) => {
        concat!(
            "'",
            $name,
            "' || CASE current_schema() WHEN 'public' THEN '' ELSE '_' || current_schema() END"
        )
    };
}

/// Where replicas notify each other of deleted marks.
macro_rules! channel {
    () => {
        own_channel!("oncegate_invalidations")
    };
}

/// Where replicas send each other hints. The payload is a lease that was handed to a caller
/// that waits, as a UUID, which is all that the first versions know; or a letter before
/// something else (`hints.rs`).
macro_rules! hint_channel {
    () => {
        own_channel!("oncegate_handed")
    };
}

/// The names of the channels, as a connection has to spell them to listen.
pub(super) const INVALIDATIONS: &str = concat!("SELECT ", channel!());
pub(super) const HINTS: &str = concat!("SELECT ", hint_channel!());

/// The advisory locks of one schema.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Locks {
    /// Separates them from those of another schema.
    salt: i64,
}

impl Locks {
    pub(super) fn of(schema: &str) -> Self {
        let salt = if schema == "public" { 0 } else { xxh3_64(schema.as_bytes()) };
        Self { salt: salt.cast_signed() }
    }

    pub(super) fn session(self, key: &SessionKey) -> i64 {
        key.lock_key() ^ self.salt
    }

    /// The lock key of the sessions that have this lock.
    pub(super) fn lock_key(self, lock: i64) -> i64 {
        lock ^ self.salt
    }

    pub(super) fn sweeper(self) -> i64 {
        SWEEPER ^ self.salt
    }
}
