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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

    /// Who has carried a turn on last, of which the event's row says this, and the row of its
    /// session's lease says `lease`: what is carried on alone is the lease.
    #[must_use]
    pub fn with_lease(self, lease: Self) -> Self {
        if self == Self::Call || lease == Self::Nobody { self } else { lease }
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

/// What the request of a call was granted before, as the call has found it: a lease, by its id, or
/// a claim, by its time. The call has it once it carries it on, and names this to do so.
///
/// An operation may reach the store after its caller has gone, and after a newer call with the same
/// request. It carries on nothing that was granted, or that another has carried on, since: it would
/// take the place of that call, and would end or keep what that call has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PriorGrant<T> {
    /// What was found.
    pub id: T,
    /// Who had carried it on by then. Calls that return look alike: the row does not distinguish
    /// them.
    pub resumed: ResumedBy,
}

impl<T: PartialEq> PriorGrant<T> {
    /// Whether what was found is still as it was, or was carried on since by `stream` itself, whose
    /// answer was lost.
    #[must_use]
    pub fn is_current(&self, id: &T, resumed: ResumedBy, stream: Option<StreamId>) -> bool {
        let is_own = stream.is_some_and(|own| resumed == ResumedBy::Stream(own));
        self.id == *id && (resumed == self.resumed || is_own)
    }
}

/// How a call came to a lease or a turn that its request has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obtained {
    /// It was granted just now.
    Granted,
    /// It had been granted before, and was last carried on as this says. Now this call carries it
    /// on.
    Resumed(ResumedBy),
    /// It had been granted before, and was last carried on as this says: it is not this call's.
    Found(ResumedBy),
}

impl Obtained {
    /// Whether it was granted just now.
    #[must_use]
    pub fn is_new(self) -> bool {
        self == Self::Granted
    }

    /// `stream`, where it has taken over what it must end if it breaks before it is answered. What
    /// the holder has carried on by a call ends by no stream: that call may be newer than this one.
    #[must_use]
    pub fn taken_over(self, stream: Option<StreamId>) -> Option<StreamId> {
        match self {
            Self::Resumed(ResumedBy::Nobody | ResumedBy::Stream(_)) => stream,
            Self::Granted | Self::Resumed(ResumedBy::Call) | Self::Found(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another call that returned may be the newer one: a late stream ends nothing of it.
    #[test]
    fn a_stream_that_is_not_answered_ends_nothing_that_a_call_had_carried_on() {
        let (stream, other) = (StreamId::random(), StreamId::random());
        let taken_over = |resumed| Obtained::Resumed(resumed).taken_over(Some(stream));
        assert_eq!(taken_over(ResumedBy::Call), None);
        for resumed in [ResumedBy::Nobody, ResumedBy::Stream(other), ResumedBy::Stream(stream)] {
            assert_eq!(taken_over(resumed), Some(stream));
        }
        assert_eq!(Obtained::Resumed(ResumedBy::Nobody).taken_over(None), None);
        for not_taken in [Obtained::Granted, Obtained::Found(ResumedBy::Nobody)] {
            assert_eq!(not_taken.taken_over(Some(stream)), None);
        }
    }

    #[test]
    fn a_turn_was_carried_on_as_its_event_says_unless_its_lease_was_alone() {
        let [first, second] = [(); 2].map(|()| ResumedBy::Stream(StreamId::random()));
        let (nobody, call) = (ResumedBy::Nobody, ResumedBy::Call);
        for event in [nobody, call, first] {
            assert_eq!(event.with_lease(nobody), event, "the lease was granted since, or never");
            assert_eq!(event.with_lease(event), event);
            assert_eq!(event.with_lease(call), call, "alone");
        }
        assert_eq!(nobody.with_lease(first), first, "alone");
        assert_eq!(first.with_lease(second), second, "alone, or it would be the same");
        // A call that renews the turn notes that of its event.
        assert_eq!(call.with_lease(first), call);
    }
}
