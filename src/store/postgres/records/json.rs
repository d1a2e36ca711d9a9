//! Rows as JSON, in which a statement takes and answers them: one text for any number of rows.

use sqlx::{Row as _, postgres::PgRow};

use crate::store::StoreError;

/// A moment as microseconds since 1970; the farthest there are where it is infinite.
macro_rules! micros {
    ($moment:expr) => {
        concat!(
            "(CASE ",
            $moment,
            " WHEN 'infinity' THEN 9223372036854775807 WHEN '-infinity' THEN -9223372036854775808
            ELSE (extract(epoch FROM ",
            $moment,
            ") * 1000000)::bigint END)"
        )
    };
}

/// Microseconds since 1970 as a moment.
macro_rules! moment_of {
    ($micros:expr) => {
        concat!(
            "(CASE ",
            $micros,
            " WHEN 9223372036854775807 THEN 'infinity'
            ELSE 'epoch'::timestamptz + ",
            $micros,
            " * interval '1 microsecond' END)"
        )
    };
}

pub(super) use {micros, moment_of};

/// The rows of one array of a statement.
pub(super) fn text(rows: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(rows).map_err(StoreError::internal)
}

/// A value that a row has as JSON, if it has any.
pub(super) fn value<T: serde::de::DeserializeOwned>(
    row: &PgRow,
    column: &str,
) -> Result<Option<T>, StoreError> {
    let text: Option<&str> = row.try_get(column).map_err(StoreError::internal)?;
    text.map(|text| serde_json::from_str(text).map_err(StoreError::internal)).transpose()
}
