//! Marking an event as handled.

use uuid::Uuid;

use super::{Claim, EventKey, Id, SessionKey, Timestamp, Ttl, key::hash128};

/// One attempt at a decision. The row that a decision leaves behind carries the
/// winner's, so that whoever reads it, now or after a lost reply, in one batch
/// or in the next, on this replica or another, sees alike who won: the attempt
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
            let parts = [&key.team, &key.session, &event.event, given.as_str()];
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

/// Asks to mark one event.
#[derive(Debug, Clone)]
pub struct Mark {
    /// The event.
    pub key: EventKey,
    /// How long it stays handled.
    pub ttl: Ttl,
    /// The attempt.
    pub request: RequestId,
}

/// An event that has been handled, by its live row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredEvent {
    /// When it was marked, or its turn ended.
    pub process_time: Timestamp,
    /// From this moment it is new again.
    pub expire_time: Timestamp,
    /// The attempt that won it; none on a row of the older bots.
    pub request: Option<RequestId>,
    /// How it was handled.
    pub by: By,
}

/// How an event was handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// By a mark.
    Mark,
    /// By a turn: the so-many-th that claimed it.
    Turn(u32),
    /// By none of so many turns: it was given up.
    Nobody(u32),
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
    /// What this row means to the attempt `request` at a mark.
    #[must_use]
    pub fn outcome(&self, request: RequestId) -> MarkOutcome {
        match self {
            Self::Processed(event) => event.outcome(request),
            Self::Claimed(claim) => MarkOutcome::Claimed(claim.clone()),
        }
    }
}

impl StoredEvent {
    /// What this row means to the attempt `request` at a mark.
    #[must_use]
    pub fn outcome(self, request: RequestId) -> MarkOutcome {
        if self.request == Some(request) && self.by == By::Mark {
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
}

impl MarkOutcome {
    /// The row that told it, if the event is handled.
    #[must_use]
    pub const fn event(&self) -> Option<StoredEvent> {
        match self {
            Self::First(event) | Self::Duplicate(event) => Some(*event),
            Self::Claimed(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempts_id_never_changes() {
        // Rows keep it: a repetition that reaches a newer version must still be known by it.
        let key = EventKey { team: "T1".into(), event: "Ev1".into() };
        let given = Id::parse("request_id", "r1".to_owned()).unwrap();
        let request = RequestId::for_event(&key, Some(&given));
        assert_eq!(
            request.as_uuid().as_u128(),
            120_435_365_485_588_991_856_196_149_365_384_910_913
        );
    }
}
