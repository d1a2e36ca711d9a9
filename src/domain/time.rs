//! Moments and durations, in the microseconds that both stores keep.

use std::{ops::RangeInclusive, time::Duration};

use super::Invalid;

/// A moment by the store's clock: microseconds since 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The moment `micros` microseconds after the start of 1970.
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the start of 1970.
    #[must_use]
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// The moment when a record that begins now ends.
    #[must_use]
    pub fn after(self, ttl: Ttl) -> Self {
        self.plus(ttl.0)
    }

    /// The moment `span` later.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)))
    }

    /// The moment `span` earlier.
    #[must_use]
    pub fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)))
    }

    /// This moment as the end of a record that runs for `ttl` from each time it is written.
    /// Such a record cannot end later than `now` + `ttl`, unless the clock was stepped back
    /// since it was written: then it counts as ending at `now` + `ttl`. Less than a second is
    /// no step: a statement may have read `now` just before it wrote the record.
    #[must_use]
    pub fn trusted(self, ttl: Duration, now: Self) -> Self {
        let latest = now.plus(ttl);
        if self > latest.plus(Duration::from_secs(1)) { latest } else { self }
    }

    /// The time from `earlier` until this moment; zero when it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }
}

/// How long a record lives: within one of the ranges of [`super::limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ttl(Duration);

impl Ttl {
    /// Takes `given`, or `default` where the caller named none.
    ///
    /// # Errors
    /// [`Invalid`] on `ttl`, when `given` is outside `range`.
    pub fn parse(
        given: Option<Duration>,
        default: Duration,
        range: &RangeInclusive<Duration>,
    ) -> Result<Self, Invalid> {
        bounded("ttl", given.unwrap_or(default), range).map(Self)
    }

    /// How long it is.
    #[must_use]
    pub const fn span(self) -> Duration {
        self.0
    }

    /// The TTL in whole microseconds.
    #[must_use]
    pub fn as_micros(self) -> i64 {
        i64::try_from(self.0.as_micros()).unwrap_or(i64::MAX)
    }
}

/// Checks that the duration of `field` lies within `range`.
///
/// # Errors
/// [`Invalid`] on `field`, with the range.
pub fn bounded(
    field: &'static str,
    value: Duration,
    range: &RangeInclusive<Duration>,
) -> Result<Duration, Invalid> {
    if range.contains(&value) {
        return Ok(value);
    }
    let (least, most) = (range.start(), range.end());
    let problem = format!(
        "must be {} to {}",
        humantime::format_duration(*least),
        humantime::format_duration(*most)
    );
    Err(Invalid::new(field, problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_trusted_unless_only_a_step_of_the_clock_explains_it() {
        let (now, ttl) = (Timestamp::from_micros(1_000_000_000), Duration::from_secs(5));
        let seconds = |count| now.plus(Duration::from_secs(count));
        for end in [now, seconds(1), seconds(5), seconds(6)] {
            assert_eq!(end.trusted(ttl, now), end);
        }
        let hour = seconds(3_600);
        assert_eq!(hour.trusted(ttl, now), seconds(5));
    }
}
