//! How a turn ended, and which attempts count, in SQL: what [`crate::domain::Attempts`] and
//! [`crate::domain::By`] explain.

/// Whether the handler of the event in `$row`, which has been handled, rejected it. A binary of
/// the version before leaves `rejected_at` as it finds it, but never at `processed_at`.
macro_rules! rejected {
    ($row:literal) => {
        concat!("(", $row, ".rejected_at = ", $row, ".processed_at) IS TRUE")
    };
}

/// How many attempts of the event in `$row` count against `max_attempts`, as
/// `domain::Attempts` has it.
macro_rules! counted {
    ($row:literal) => {
        concat!("(", $row, ".attempt - COALESCE(", $row, ".uncounted, 0))")
    };
}

/// How many attempts of the event in `$row`, whose claim has ended, do not count: the latest
/// does not either if it was interrupted and lapsed.
macro_rules! uncounted {
    ($row:literal) => {
        concat!(
            "NULLIF(COALESCE(",
            $row,
            ".uncounted, 0) + ((",
            $row,
            ".interrupted = ",
            $row,
            ".attempt AND ",
            $row,
            ".claimed_until > ",
            $row,
            ".processed_at) IS TRUE)::integer, 0)"
        )
    };
}

/// Sets what only turns leave in a row to nothing.
macro_rules! no_turn {
    () => {
        "claimed_until = NULL, attempt = NULL, holder = NULL, result = NULL, result_type = NULL,
        rejected_at = NULL, detail = NULL, uncounted = NULL, interrupted = NULL, repeated = NULL,
        resumed_by = NULL"
    };
}
