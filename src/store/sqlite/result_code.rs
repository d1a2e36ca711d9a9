//! What the result codes of `SQLite` mean.

use crate::store::StoreError;

/// `SQLITE_CONSTRAINT_COMMITHOOK`: the writer's hook refused a commit.
const COMMIT_REFUSED: i32 = 531;

/// Sorts an error by its result code: <https://www.sqlite.org/rescode.html>. None is a
/// caller's fault: `SQLite` keeps every text.
pub(super) fn classify(error: sqlx::Error) -> StoreError {
    let sqlx::Error::Database(database) = &error else {
        return match error {
            sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed => StoreError::unknown(error),
            _ => StoreError::internal(error),
        };
    };
    let extended: i32 = database.code().and_then(|code| code.parse().ok()).unwrap_or_default();
    if extended == COMMIT_REFUSED {
        return StoreError::unavailable("the database file was moved or replaced");
    }
    match extended & 0xff {
        // IOERR: a commit that could not be synced may be in the file after a restart.
        10 => StoreError::unknown(error),
        // PERM, BUSY, LOCKED, NOMEM, READONLY, INTERRUPT, CORRUPT, FULL, CANTOPEN, PROTOCOL,
        // SCHEMA, AUTH, NOTADB: the file's state or the disk's.
        3 | 5..=9 | 11 | 13..=15 | 17 | 23 | 26 => StoreError::unavailable(error),
        // TOOBIG, CONSTRAINT, MISMATCH: a trigger, a CHECK or a changed column.
        18..=20 => StoreError::Rejected(error.to_string().into()),
        // INTERNAL, MISUSE, RANGE: a mistake of ours.
        2 | 21 | 25 => StoreError::internal(error),
        // Among them ERROR: a table is missing, or a trigger has a mistake.
        _ => StoreError::unusable(error),
    }
}
