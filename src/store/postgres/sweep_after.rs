//! By what a sweep finds rows: `docs/adr/0011-a-coarse-column-for-sweeps.md`.

/// When a sweep deletes the row of an event that expires at `$expires`: at the end of the hour, or of
/// the minute if `$is_brief`, which is that it is kept for less than a day. It is indexed, and so coarse
/// that it usually stays the same while a turn begins, is renewed and ends: then its row is updated
/// without a write to an index.
macro_rules! sweep_after {
    ($expires:expr, $is_brief:expr) => {
        concat!(
            "CASE WHEN ",
            $is_brief,
            "
        THEN to_timestamp(floor(date_part('epoch', ",
            $expires,
            ") / 60) * 60 + 60)
        ELSE to_timestamp(floor(date_part('epoch', ",
            $expires,
            ") / 3600) * 3600 + 3600) END"
        )
    };
}
