//! What an error of PostgreSQL means, by its SQLSTATE:
//! <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
//!
//! Only the two codes that say "this text cannot be stored" blame the caller.
//! An unknown code is the database's condition, never the data's: a caller that
//! is blamed for an outage drops its event for good.

use std::io;

use sqlx::postgres::PgDatabaseError;

use crate::{store::StoreError, telemetry::ErrorClass};

/// Sorts an error of sqlx.
pub(super) fn classify(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Database(database) => match database.try_downcast_ref::<PgDatabaseError>() {
            Some(error) => of_database(error),
            None => StoreError::unusable(database),
        },
        sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::Decode(_)
        | sqlx::Error::Encode(_)
        | sqlx::Error::RowNotFound
        | sqlx::Error::TypeNotFound { .. } => StoreError::internal(error),
        _ => StoreError::unavailable(error),
    }
}

/// The class of an error, for metrics.
pub(super) fn error_class(error: &sqlx::Error) -> ErrorClass {
    let database = match error {
        sqlx::Error::Database(database) => database,
        sqlx::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => {
            return ErrorClass::Timeout;
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::WorkerCrashed => return ErrorClass::Connection,
        _ => return ErrorClass::Other,
    };
    let code = database.code();
    let code = code.as_deref().unwrap_or_default();
    match database.try_downcast_ref::<PgDatabaseError>().map(of_database) {
        // One rule says what an error means; a class is finer only of what makes the store
        // unavailable or unusable.
        Some(StoreError::Conflict) => ErrorClass::Conflict,
        Some(StoreError::LockTimeout(_)) => ErrorClass::Timeout,
        Some(StoreError::Rejected(_) | StoreError::InvalidData(_) | StoreError::Internal(_)) => {
            ErrorClass::Other
        }
        _ => match (code, code.get(..2).unwrap_or_default()) {
            // query_canceled: by a timeout of the server's.
            ("57014", _) => ErrorClass::Timeout,
            ("25006", _) => ErrorClass::ReadOnly,
            ("42501", _) | (_, "28") => ErrorClass::Privileges,
            (_, "53" | "54") => ErrorClass::Capacity,
            (_, "08" | "57") => ErrorClass::Connection,
            _ => ErrorClass::Other,
        },
    }
}

fn of_database(error: &PgDatabaseError) -> StoreError {
    let code = error.code();
    let cause = format!("SQLSTATE {code}: {}", error.message());
    // PostgreSQL adds a context to what a function raises. No statement of ours calls one
    // that raises, so that is a trigger, or a function of a policy or a CHECK.
    let in_function = error.r#where().is_some();
    match (code, code.get(..2).unwrap_or_default()) {
        // character_not_in_repertoire, untranslatable_character: the database's encoding has
        // no such character. All that a caller can give is a text, and its length is
        // checked before, so no other data exception is the caller's.
        ("22021" | "22P05", _) => StoreError::InvalidData(cause.into()),
        // serialization_failure, deadlock_detected: another transaction goes first.
        ("40001" | "40P01", _) => StoreError::Conflict,
        // division_by_zero: raised by `succeeded!`. unique_violation: another caller took the same
        // place in a queue, or added the same row.
        ("22012" | "23505", _) if !in_function => StoreError::Conflict,
        // lock_not_available: somebody outside has locked a row, or a table.
        ("55P03", _) => StoreError::LockTimeout(cause.into()),
        // duplicate_prepared_statement, invalid_sql_statement_name, protocol_violation: on a
        // connection of our own these cannot happen.
        ("42P05" | "26000", _) => proxy(&cause),
        ("08P01", _) if is_about_proxy(error.message()) => proxy(&cause),
        // new row violates row-level security policy; another 42501 lacks a privilege.
        ("42501", _) if error.routine() == Some("ExecWithCheckOptions") => {
            StoreError::Rejected(cause.into())
        }
        // insufficient_privilege, undefined_table: the database's owner can cure that.
        ("42501" | "42P01", _) => StoreError::unusable(cause),
        // 08 connection, 25 a standby refuses writes, 28 authorization, 40 rollback, 53 out
        // of resources, 57 operator intervention, 58 system error: true for every statement.
        (_, "08" | "25" | "28" | "40" | "53" | "57" | "58") => StoreError::unavailable(cause),
        // 09, 27, 38, 39, P0 raised by a trigger; 22, 23, 44 by what a trigger, a CHECK, a foreign
        // key or a changed column makes of a row: a rule of the owner's.
        (_, "09" | "22" | "23" | "27" | "38" | "39" | "44" | "P0") => {
            StoreError::Rejected(cause.into())
        }
        // A trigger of the owner's has a mistake.
        (_, "42") if in_function => StoreError::Rejected(cause.into()),
        // 42 syntax error, undefined column or type: a mistake of ours, or a schema not ours.
        (_, "42") => StoreError::internal(cause),
        // Among them 54 program_limit_exceeded, as when no transaction ids are left, and XX,
        // damaged data.
        _ => StoreError::unusable(cause),
    }
}

/// PgBouncer says 08P01 of all that goes wrong, also that its server is away. It speaks
/// English only.
fn is_about_proxy(message: &str) -> bool {
    ["prepared statement", "startup parameter"].iter().any(|cause| message.contains(cause))
}

/// A proxy between the service and PostgreSQL cannot be used.
fn proxy(cause: &str) -> StoreError {
    StoreError::Misconfigured(
        format!(
            "the proxy in front of PostgreSQL does not pass prepared statements or startup \
             parameters on: use PgBouncer 1.21 or newer with max_prepared_statements above 0 and \
             ignore_startup_parameters = extra_float_digits,options, or pool_mode = session, or \
             connect without the proxy ({cause})"
        )
        .into(),
    )
}
