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
