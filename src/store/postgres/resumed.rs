//! Who has carried a lease or a turn on, in SQL: the columns `repeated` and `resumed_by`,
//! whose values [`crate::domain::ResumedBy`] explains.

/// What `resumed_by` holds where the holder has carried something on by a call that
/// returned.
macro_rules! no_stream {
    () => {
        "'00000000-0000-0000-0000-000000000000'::uuid"
    };
}

/// Who has carried on what `$row` grants, as `ResumedBy::of_row` reads it.
macro_rules! resumed_by {
    ($row:literal) => {
        concat!(
            "(CASE WHEN ",
            $row,
            ".repeated THEN COALESCE(",
            $row,
            ".resumed_by, ",
            no_stream!(),
            ") END)"
        )
    };
}

/// Whether what `$row` grants may be ended for `$stream`, which keeps it: nobody else has
/// carried it on. With a null `$stream`, always true.
macro_rules! unless_resumed {
    ($row:literal, $stream:literal) => {
        concat!("(", resumed_by!($row), " = ", $stream, ") IS NOT FALSE")
    };
}

/// Whether another stream than `$stream` has taken over what `$row` grants. With a null
/// `$stream`, never true.
macro_rules! is_replaced {
    ($row:literal, $stream:literal) => {
        concat!("(", resumed_by!($row), " NOT IN (", no_stream!(), ", ", $stream, ")) IS TRUE")
    };
}

/// Notes in `$row` that it was renewed: a call that returned has carried it on, a stream
/// changes nothing, since it renews what it already has.
macro_rules! renewed_by {
    ($row:literal, $stream:literal) => {
        concat!(
            "repeated = ",
            $row,
            ".repeated OR ",
            $stream,
            " IS NULL, resumed_by = CASE WHEN ",
            $stream,
            " IS NULL THEN ",
            no_stream!(),
            " WHEN ",
            $row,
            ".repeated THEN ",
            $row,
            ".resumed_by END"
        )
    };
}

/// Notes that the request which `$by` repeats has granted again, to its stream or, with none,
/// to a call that returned.
macro_rules! repeated_by {
    ($by:literal) => {
        concat!("repeated = true, resumed_by = COALESCE(", $by, ".stream, ", no_stream!(), ")")
    };
}
