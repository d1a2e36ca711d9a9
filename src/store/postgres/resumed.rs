//! Who has carried a lease or a turn on, in SQL: the column `resumed_by`, whose values
//! [`crate::domain::ResumedBy`] explains.

/// What `resumed_by` holds where the holder has carried something on by a call that
/// returned.
macro_rules! no_stream {
    () => {
        "'00000000-0000-0000-0000-000000000000'::uuid"
    };
}

/// Who has carried on what `$row` grants, as [`crate::domain::ResumedBy`]. A replica of
/// the version before notes only that its request was repeated.
macro_rules! resumed_by {
    ($row:literal) => {
        concat!(
            "COALESCE(",
            $row,
            ".resumed_by, CASE WHEN ",
            $row,
            ".repeated THEN ",
            no_stream!(),
            " END)"
        )
    };
}

/// Whether what `$row` grants may be ended for `$stream`, which keeps it: nobody else has
/// carried it on. Where `$stream` is null, whoever has.
macro_rules! unless_resumed {
    ($row:literal, $stream:literal) => {
        concat!("(", resumed_by!($row), " = ", $stream, ") IS NOT FALSE")
    };
}

/// Whether a stream has taken over what `$row` grants from `$stream`, or from none.
macro_rules! is_replaced {
    ($row:literal, $stream:literal) => {
        concat!("(", resumed_by!($row), " NOT IN (", no_stream!(), ", ", $stream, ")) IS TRUE")
    };
}

/// Notes in `$row` that it runs on: what a stream renews it has had before.
macro_rules! renewed_by {
    ($row:literal, $stream:literal) => {
        concat!(
            "resumed_by = CASE WHEN ",
            $stream,
            " IS NULL THEN ",
            no_stream!(),
            " ELSE ",
            $row,
            ".resumed_by END"
        )
    };
}

/// Notes that what `$by` asks for again is its stream's by now, or nobody's.
macro_rules! repeated_by {
    ($by:literal) => {
        concat!("repeated = true, resumed_by = COALESCE(", $by, ".stream, ", no_stream!(), ")")
    };
}
