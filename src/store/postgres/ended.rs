//! How a turn ended, and which attempts count, in SQL: what [`crate::domain::Attempts`] and
//! [`crate::domain::ProcessedBy`] explain.

/// Whether the handler of the event in `$row`, which has been handled, rejected it. A binary of
/// the version before leaves `rejected_at` as it finds it, but never at `processed_at`.
macro_rules! rejected {
    ($row:literal) => {
        concat!("(", $row, ".rejected_at = ", $row, ".processed_at) IS TRUE")
    };
}
