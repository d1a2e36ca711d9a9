//! Marking an event as handled.

use std::{collections::HashSet, iter::once};

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

use super::{
    Claim, Detail, EventKey, Id, Invalid, SessionKey, Timestamp, Ttl,
    key::{hash128, stored},
    limits,
};

/// One attempt at a decision. The row that a decision leaves behind carries the
/// winner's, so that every reader, now or after a lost reply, in one batch
/// or in the next, on this replica or another, sees the same winner: the attempt
/// that finds its own id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(Uuid);

impl RequestId {
    /// The caller's attempt at an event, or one of its own where it named none.
    #[must_use]
    pub fn for_event(key: &EventKey, given: Option<&Id>) -> Self {
        Self::of(&key.team, &key.event, given)
    }

    /// The caller's attempt at a session, or one of its own where it named none.
    #[must_use]
    pub fn for_session(key: &SessionKey, given: Option<&Id>) -> Self {
        Self::of(&key.team, &key.session, given)
    }

    /// The caller's attempt at a session for the sake of an event: that of another event
    /// is another.
    #[must_use]
    pub fn for_turn(key: &SessionKey, event: &EventKey, given: Option<&Id>) -> Self {
        Self(given.map_or_else(Uuid::new_v4, |given| {
            let parts = [&*key.team, &key.session, &event.event, given.as_str()];
            Uuid::from_u128(hash128(0, parts))
        }))
    }

    /// Hashed together with the key, a request id that a caller uses for several
    /// keys is a different attempt at each.
    fn of(team: &str, id: &str, given: Option<&Id>) -> Self {
        Self(given.map_or_else(Uuid::new_v4, |given| {
            Uuid::from_u128(hash128(0, [team, id, given.as_str()]))
        }))
    }

    /// The attempt that a row carries.
    #[must_use]
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// As the rows keep it.
    #[must_use]
    pub const fn as_uuid(self) -> Uuid {
        self.0
    }
}

/// Tells one delivery's payload from another's: 128 bits of the digest that the caller
/// made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PayloadDigest(Uuid);

impl PayloadDigest {
    /// Checks the digest in `field`, where empty means that there is none.
    ///
    /// # Errors
    /// [`Invalid`] on `field`, when the digest is too long.
    pub fn optional(field: &'static str, given: &[u8]) -> Result<Option<Self>, Invalid> {
        if given.len() > limits::MAX_DIGEST_BYTES {
            let (most, is) = (limits::MAX_DIGEST_BYTES, given.len());
            return Err(Invalid::new(field, format!("must be at most {most} bytes, is {is}")));
        }
        let hash = || Self(Uuid::from_u128(xxh3_128(given)));
        Ok((!given.is_empty()).then(hash))
    }

    /// The digest that a row carries.
    #[must_use]
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// As the rows keep it.
    #[must_use]
    pub const fn as_uuid(self) -> Uuid {
        self.0
    }
}

/// An event as it was delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// The event.
    pub key: EventKey,
    /// Further names of it, sorted: all are taken with the event, or none.
    pub aliases: Vec<String>,
    /// Of its payload, where it is to be compared.
    pub digest: Option<PayloadDigest>,
}

impl Delivered {
    /// An event that is known by `aliases` as well, handled by `consumer`.
    #[must_use]
    pub fn new(
        key: EventKey,
        aliases: Vec<String>,
        consumer: Option<&Id>,
        digest: Option<PayloadDigest>,
    ) -> Self {
        let key = key.of_consumer(consumer);
        let mut aliases: Vec<_> =
            aliases.into_iter().map(|alias| stored(alias, consumer)).collect();
        aliases.sort_unstable();
        aliases.dedup();
        aliases.retain(|alias| *alias != key.event);
        Self { key, aliases, digest }
    }

    /// Whether `other` is known by the very same names.
    #[must_use]
    pub fn is_named_as(&self, other: &Self) -> bool {
        self.key == other.key && self.aliases == other.aliases
    }

    /// All names of the event, its own first.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        once(&self.key.event).chain(&self.aliases).map(String::as_str)
    }

    /// Which of `rows`, found under names of this event, answers the attempt `request`: its own,
    /// whatever became of the others; or that of the event's own name; or any. What an alias was taken with is another delivery's payload.
    #[must_use]
    pub fn answering_record(
        &self,
        request: RequestId,
        mut rows: Vec<(String, EventRow)>,
    ) -> Option<EventRow> {
        let is_own = |name: &String| *name == self.key.event;
        rows.sort_by_key(|(name, row)| (!row.is_of(request), !is_own(name)));
        let (name, row) = rows.into_iter().next()?;
        Some(if is_own(&name) { row } else { row.with_digest(None) })
    }

    /// Whether the row that was found has the digest of another payload. Without a digest it matches
    /// any.
    #[must_use]
    pub fn contradicts(&self, kept: Option<PayloadDigest>) -> bool {
        self.digest.zip(kept).is_some_and(|(given, kept)| given != kept)
    }
}

/// The names that a batch is about: no statement can write one row twice.
#[derive(Debug, Default)]
pub struct KeySet<'a>(HashSet<(&'a str, &'a str)>);

impl<'a> KeySet<'a> {
    /// Takes all names of `event`, unless one of them is taken.
    pub fn take_of(&mut self, event: &'a Delivered) -> bool {
        self.take(&event.key.team, event.names())
    }

    /// Takes `names` of a team's, unless one of them is taken.
    pub fn take(&mut self, team: &'a str, names: impl Iterator<Item = &'a str> + Clone) -> bool {
        let is_free = names.clone().all(|name| !self.0.contains(&(team, name)));
        if is_free {
            self.0.extend(names.map(|name| (team, name)));
        }
        is_free
    }
}

/// Asks to mark one event.
#[derive(Debug, Clone)]
pub struct Mark {
    /// The event.
    pub event: Delivered,
    /// How long it stays handled.
    pub ttl: Ttl,
    /// The attempt.
    pub request: RequestId,
}

/// An event that has been handled, by its live row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// When it was marked, or its turn ended.
    pub process_time: Timestamp,
    /// From this moment it is new again.
    pub expire_time: Timestamp,
    /// The attempt that won it; none on a row of the older bots.
    pub request: Option<RequestId>,
    /// How it was handled.
    pub by: ProcessedBy,
    /// Why it was rejected, or why its latest turn failed before it was given up.
    pub detail: Option<Detail>,
    /// Of the payload that it was taken with; none if the caller gave none, or in the row of an
    /// alias.
    pub digest: Option<PayloadDigest>,
}

/// How an event was handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessedBy {
    /// By a mark.
    Mark,
    /// By a turn; its attempt number.
    Turn(u32),
    /// By a turn, whose handler refused the event for good; its attempt number.
    Rejected(u32),
    /// By no turn: it was given up after this number of attempts.
    GaveUp(u32),
}

impl ProcessedBy {
    /// As a row of an event that has been handled has it. `attempt`: none for a mark.
    #[must_use]
    pub fn of_row(attempt: Option<u32>, succeeded: bool, rejected: bool) -> Self {
        match attempt {
            None => Self::Mark,
            Some(attempt) if succeeded => Self::Turn(attempt),
            Some(attempt) if rejected => Self::Rejected(attempt),
            Some(attempts) => Self::GaveUp(attempts),
        }
    }

    /// Whether the detail in the row is about this. Otherwise it may be left from before: a
    /// binary of the version before does not clear it.
    #[must_use]
    pub const fn has_detail(self) -> bool {
        matches!(self, Self::Rejected(_) | Self::GaveUp(_))
    }
}

/// A live row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventRow {
    /// The event has been handled.
    Processed(StoredEvent),
    /// A run has claimed it.
    Claimed(Claim),
}

impl EventRow {
    /// What this row means to `mark`.
    #[must_use]
    pub fn outcome(&self, mark: &Mark) -> MarkOutcome {
        match self {
            Self::Processed(event) => event.clone().outcome(mark),
            Self::Claimed(claim) if mark.event.contradicts(claim.digest) => MarkOutcome::Mismatch,
            Self::Claimed(claim) => MarkOutcome::Claimed(claim.clone()),
        }
    }

    /// Of the payload that it was taken with, if the row has it.
    #[must_use]
    pub const fn digest(&self) -> Option<PayloadDigest> {
        match self {
            Self::Processed(event) => event.digest,
            Self::Claimed(claim) => claim.digest,
        }
    }

    /// The same, of another payload, or of any.
    #[must_use]
    pub fn with_digest(self, digest: Option<PayloadDigest>) -> Self {
        match self {
            Self::Processed(event) => Self::Processed(StoredEvent { digest, ..event }),
            Self::Claimed(claim) => Self::Claimed(Claim { digest, ..claim }),
        }
    }

    /// Whether the attempt `request` has claimed it.
    #[must_use]
    pub fn is_claim_of(&self, request: RequestId) -> bool {
        matches!(self, Self::Claimed(claim) if claim.request == request)
    }

    /// Whether the attempt `request` left it.
    #[must_use]
    pub fn is_of(&self, request: RequestId) -> bool {
        match self {
            Self::Processed(event) => event.request == Some(request),
            Self::Claimed(claim) => claim.request == request,
        }
    }
}

impl StoredEvent {
    /// What this row means to `mark`.
    #[must_use]
    pub fn outcome(self, mark: &Mark) -> MarkOutcome {
        if mark.event.contradicts(self.digest) {
            MarkOutcome::Mismatch
        } else if self.request == Some(mark.request) && self.by == ProcessedBy::Mark {
            MarkOutcome::First(self)
        } else {
            MarkOutcome::Duplicate(self)
        }
    }
}

/// What became of a mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MarkOutcome {
    /// The event is this attempt's to handle.
    First(StoredEvent),
    /// Another attempt has handled it.
    Duplicate(StoredEvent),
    /// A run has claimed it.
    Claimed(Claim),
    /// It is on record with another payload.
    Mismatch,
}

impl MarkOutcome {
    /// The row that it comes from, if the event is handled.
    #[must_use]
    pub const fn event(&self) -> Option<&StoredEvent> {
        match self {
            Self::First(event) | Self::Duplicate(event) => Some(event),
            Self::Claimed(_) | Self::Mismatch => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Team;

    #[test]
    fn an_attempts_id_never_changes() {
        // Rows keep it: a repetition that reaches a newer version must still be known by it.
        let key = EventKey { team: Team::stored("T1"), event: "Ev1".into() };
        let given = Id::parse("request_id", "r1".to_owned()).unwrap();
        let request = RequestId::for_event(&key, Some(&given));
        assert_eq!(
            request.as_uuid().as_u128(),
            120_435_365_485_588_991_856_196_149_365_384_910_913
        );
    }
}
