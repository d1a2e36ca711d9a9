//! Who carries a lease or a turn on, once it was granted.

use uuid::Uuid;

/// Names a stream that keeps a lease or a turn: one call of `HoldSessionLease` or
/// `RunTurn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(Uuid);

impl StreamId {
    /// A new stream's name: 122 random bits.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// As the rows keep it.
    #[must_use]
    pub const fn as_uuid(self) -> Uuid {
        self.0
    }
}

/// Who has carried a lease or a turn on, other than the call that it was granted to: the
/// last that did. A stream that breaks ends what it kept only if nobody else has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResumedBy {
    /// Nobody has.
    Nobody,
    /// Its holder has, by a call that returned: no stream's break ends it any more.
    Call,
    /// A stream has, by repeating the request: it has taken the older one's place.
    Stream(StreamId),
}

impl ResumedBy {
    /// What is noted when `stream`, or none, carries something on that it was not granted.
    #[must_use]
    pub fn of(stream: Option<StreamId>) -> Self {
        stream.map_or(Self::Call, Self::Stream)
    }

    /// As a row's `repeated` and `resumed_by` have it. The second counts only beside the
    /// first: a replica of the version before resets `repeated` with each grant, and leaves
    /// `resumed_by` as an earlier holder's stream wrote it.
    #[must_use]
    pub fn of_row(repeated: bool, resumed_by: Option<Uuid>) -> Self {
        match resumed_by {
            _ if !repeated => Self::Nobody,
            Some(stream) if !stream.is_nil() => Self::Stream(StreamId(stream)),
            _ => Self::Call,
        }
    }

    /// What a row's `repeated` says.
    #[must_use]
    pub fn is_repeated(self) -> bool {
        self != Self::Nobody
    }

    /// What a row's `resumed_by` says.
    #[must_use]
    pub fn as_uuid(self) -> Option<Uuid> {
        match self {
            Self::Nobody => None,
            Self::Call => Some(Uuid::nil()),
            Self::Stream(stream) => Some(stream.0),
        }
    }

    /// Whether nobody has carried on what `stream` keeps but itself.
    #[must_use]
    pub fn leaves_to(self, stream: StreamId) -> bool {
        matches!(self, Self::Nobody) || self == Self::Stream(stream)
    }

    /// Whether another stream has taken the place of `stream`.
    #[must_use]
    pub fn replaces(self, stream: StreamId) -> bool {
        matches!(self, Self::Stream(other) if other != stream)
    }
}
