//! The lease of a session.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use uuid::Uuid;

use super::{
    Doubt, Id, Invalid, Obtained, PayloadDigest, PriorGrant, RequestId, SessionKey, StreamId,
    Timestamp, Ttl, limits::MAX_LABELS,
};

/// Names one lease; known to its holder only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(Uuid);

impl LeaseId {
    /// A new lease's name: 122 random bits.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// The lease that a row carries.
    #[must_use]
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// Reads a lease id as a caller gives it back.
    ///
    /// # Errors
    /// [`Invalid`] on `lease_id`, when it is not one.
    pub fn parse(value: &str) -> Result<Self, Invalid> {
        Uuid::try_parse(value)
            .map(Self)
            .map_err(|_| Invalid::new("lease_id", "must be a lease_id that the server returned"))
    }

    /// As the rows keep it.
    #[must_use]
    pub const fn as_uuid(self) -> Uuid {
        self.0
    }
}

/// The id that the lease of an operation gets, drawn for it: a further run of the operation knows by
/// this that an earlier one, whose answer was lost, was granted the lease.
///
/// It is granted once. If an answer was lost, and the lease has ended since, another call had found
/// and carried on the lease: a release by that call, sent again, must not end a new one.
#[derive(Debug)]
pub struct OwnLease {
    id: LeaseId,
    is_spent: AtomicBool,
}

impl OwnLease {
    /// A new id.
    #[must_use]
    pub fn random() -> Self {
        LeaseId::random().into()
    }

    /// The id.
    #[must_use]
    pub const fn id(&self) -> LeaseId {
        self.id
    }

    /// Marks it as granted, or possibly granted, by a run that did not decide the operation: it is not
    /// granted any more. A further run goes on with the lease, if it finds it.
    pub fn spend(&self) {
        self.is_spent.store(true, Ordering::Relaxed);
    }

    /// Whether it may have been granted.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.is_spent.load(Ordering::Relaxed)
    }
}

impl From<LeaseId> for OwnLease {
    fn from(id: LeaseId) -> Self {
        Self { id, is_spent: AtomicBool::new(false) }
    }
}

impl Clone for OwnLease {
    fn clone(&self) -> Self {
        Self { id: self.id, is_spent: AtomicBool::new(self.is_spent()) }
    }
}

/// A number that rises with every grant of a session: a hybrid logical clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FencingToken(pub i64);

impl FencingToken {
    /// For how long after its token a session's row is not swept, in microseconds. A grant in a
    /// session without a row may not see the floor that a sweep has raised, and must be above it by its
    /// clock, which it read before it waited for the sweep. It is unless the token was ahead of the clock,
    /// or the clock was stepped back: this is how far.
    pub const UNSWEPT_MICROS: i64 = 10_000_000;

    /// The highest token: 2^53 - 1, the highest integer that JavaScript and JSON readers
    /// keep exactly. The clock reaches it in the year 2255. A grant beyond it is refused.
    pub const MAX: Self = Self((1 << 53) - 1);

    /// The highest floor that an operator may set: as many tokens are left above it, and the
    /// clock reaches it in the year 2112.
    pub const MAX_FLOOR: Self = Self(1 << 52);

    /// The token of a grant at `now`: above that of the session's `row`, if there is one,
    /// above the store's `floor`, and not below the clock. None beyond [`Self::MAX`].
    ///
    /// - The row keeps tokens rising while the clock is stepped back.
    /// - The floor is the highest token of any session row that was deleted, or what an
    ///   operator raised it to: it stands in for the rows that are gone.
    /// - The clock, in microseconds since 1970, keeps them rising where row and floor were
    ///   lost, as by a restore to an earlier state: whatever was lost was granted earlier.
    ///
    /// PostgreSQL applies the same rule within its statements (`new_token!`, `next_token!`).
    #[must_use]
    pub fn next(row: Option<Self>, floor: Self, now: Timestamp) -> Option<Self> {
        let above = row.map_or(floor, |row| row.max(floor));
        let next = Self(above.0.saturating_add(1).max(now.as_micros()));
        (next <= Self::MAX).then_some(next)
    }
}

/// What a holder notes on its lease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// Checks the labels a caller gives.
    ///
    /// # Errors
    /// [`Invalid`] on `labels`, when there are too many or one breaks a rule.
    pub fn parse(given: impl IntoIterator<Item = (String, String)>) -> Result<Self, Invalid> {
        let labels = given
            .into_iter()
            .map(|(name, value)| {
                let name = Id::parse("labels", name)?.into_string();
                let value = Id::optional("labels", value)?.map(Id::into_string);
                Ok((name, value.unwrap_or_default()))
            })
            .collect::<Result<BTreeMap<_, _>, Invalid>>()?;
        if labels.len() > MAX_LABELS {
            let problem = format!("must be at most {MAX_LABELS}, are {}", labels.len());
            return Err(Invalid::new("labels", problem));
        }
        Ok(Self(labels))
    }

    /// As the rows keep them: a JSON object of strings.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::json!(self.0).to_string()
    }

    /// The labels that a row carries; none where it cannot be read.
    #[must_use]
    pub fn from_json(json: &str) -> Self {
        Self(serde_json::from_str(json).unwrap_or_default())
    }

    /// Names and values, in the names' order.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &String)> {
        self.0.iter()
    }
}

/// Asks for the lease of a session.
#[derive(Debug, Clone)]
pub struct Acquire {
    /// The session.
    pub key: SessionKey,
    /// Who asks.
    pub holder: String,
    /// The attempt.
    pub request: RequestId,
    /// The id that the lease gets.
    pub lease: OwnLease,
    /// How long the lease runs.
    pub ttl: Ttl,
    /// The work to bind the session to.
    pub epic: Option<String>,
    /// What to note on the lease.
    pub labels: Labels,
    /// The stream that is to keep it; none for a call that returns.
    pub stream: Option<StreamId>,
    /// The lease of the same request that this call has found, and carries on.
    pub resumes: Option<PriorGrant<LeaseId>>,
    /// Of the payload of the event that it is wanted for, if that is given: a call with the same
    /// request and another payload does not repeat this one.
    pub digest: Option<PayloadDigest>,
}

impl Acquire {
    /// The same, by a further operation, which carries on what was found.
    #[must_use]
    pub fn anew(&self, resumes: Option<PriorGrant<LeaseId>>) -> Self {
        Self { lease: OwnLease::random(), resumes, ..self.clone() }
    }
}

/// A lease, as its holder knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its name.
    pub id: LeaseId,
    /// Its fencing token.
    pub token: FencingToken,
    /// Who holds it.
    pub holder: String,
    /// When it was granted.
    pub acquire_time: Timestamp,
    /// When it ends.
    pub expire_time: Timestamp,
    /// How long it still runs.
    pub remaining: Duration,
    /// What the session is bound to.
    pub epic: Option<String>,
    /// What its holder noted on it.
    pub labels: Labels,
}

impl Lease {
    /// How long it is held in all, unless it is renewed or released.
    #[must_use]
    pub fn held_for(&self) -> Duration {
        self.expire_time.since(self.acquire_time)
    }
}

/// A session's row, read at one moment of the store's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    /// The current or latest lease.
    pub lease: Lease,
    /// The attempt that was granted it.
    pub request: RequestId,
    /// Whether the lease still ran at that moment.
    pub live: bool,
    /// Whether it may have waiters. Then only a hand-over grants it, to the first of them.
    pub waiting: bool,
    /// The leases that its waiters are to be given, first to last, if the store was asked for
    /// them.
    pub queue: Vec<LeaseId>,
}

/// What an acquire left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acquired {
    /// The session's row, after the decision.
    pub row: SessionRow,
    /// How the request came to the lease; none where it does not have it.
    pub obtained: Option<Obtained>,
}

/// Lets a lease run on.
#[derive(Debug, Clone)]
pub struct Renew {
    /// The session.
    pub key: SessionKey,
    /// The lease.
    pub lease: LeaseId,
    /// How long it runs from now.
    pub ttl: Ttl,
    /// The stream that keeps the lease; none where its holder carries it on by a call
    /// that returns.
    pub stream: Option<StreamId>,
}

/// What became of a [`Renew`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewed {
    /// The lease runs on, or has ended without being given back: its row shows which.
    Found(SessionRow),
    /// It was given back, or the session passed to another.
    Gone,
    /// Another stream has taken the lease over: nothing is changed.
    Resumed,
}

/// Gives a lease back.
#[derive(Debug, Clone)]
pub struct Release {
    /// The session.
    pub key: SessionKey,
    /// The lease.
    pub lease: LeaseId,
    /// End it only if no other call than this stream has carried it on; none: always.
    pub unless_resumed: Option<StreamId>,
    pub(crate) doubt: Doubt,
}

impl Release {
    /// Gives a lease back; `unless_resumed` by another call than this stream.
    #[must_use]
    pub fn new(key: SessionKey, lease: LeaseId, unless_resumed: Option<StreamId>) -> Self {
        Self { key, lease, unless_resumed, doubt: Doubt::default() }
    }
}

/// Another caller's lease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Who holds it; empty while it is about to go to the first in a queue.
    pub holder: String,
    /// When it ends.
    pub expire_time: Option<Timestamp>,
    /// How long it still runs.
    pub remaining: Duration,
    /// How many wait for it.
    pub queue_length: usize,
}

/// What a session's row means to a caller that asks for its lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The caller has the lease.
    Granted(Lease),
    /// Another caller's lease runs.
    Held(Held),
    /// The session is bound to this other work.
    EpicMismatch(String),
    /// No lease runs: the session is free.
    Free,
}

impl SessionRow {
    /// What this row means to `acquire`.
    #[must_use]
    pub fn decision(&self, acquire: &Acquire) -> Decision {
        if self.live && self.request == acquire.request {
            return Decision::Granted(self.lease.clone());
        }
        match (&self.lease.epic, &acquire.epic) {
            (Some(bound), Some(asked)) if bound != asked => {
                return Decision::EpicMismatch(bound.clone());
            }
            _ => {}
        }
        if self.live || self.waiting { Decision::Held(self.held()) } else { Decision::Free }
    }

    /// Who holds the session, if it is held, and how many callers wait for it.
    #[must_use]
    pub fn held(&self) -> Held {
        let queue_length = self.queue.len();
        if !self.live {
            return Held { queue_length, ..Held::default() };
        }
        Held {
            holder: self.lease.holder.clone(),
            expire_time: Some(self.lease.expire_time),
            remaining: self.lease.remaining,
            queue_length,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_above_row_and_floor_and_not_below_the_clock() {
        let next = |row: Option<i64>, floor, now| {
            let row = row.map(FencingToken);
            let next = FencingToken::next(row, FencingToken(floor), Timestamp::from_micros(now));
            next.map(|token| token.0)
        };
        assert_eq!(next(None, 0, 1_000), Some(1_000), "the clock");
        assert_eq!(next(Some(7), 3, 1_000), Some(1_000), "the clock");
        assert_eq!(next(Some(1_000), 3, 1_000), Some(1_001), "the row, within one microsecond");
        assert_eq!(next(Some(1_000), 3, 400), Some(1_001), "the row, the clock stepped back");
        assert_eq!(next(None, 1_000, 400), Some(1_001), "the floor, the row deleted");
        assert_eq!(next(Some(500), 1_000, 400), Some(1_001), "the floor, raised");
        let last = FencingToken::MAX.0;
        assert_eq!(next(Some(last - 1), 0, 400), Some(last));
        for (row, floor, now) in
            [(last, 0, 400), (0, last, 400), (0, 0, last + 1), (i64::MAX, 0, 0)]
        {
            assert_eq!(next(Some(row), floor, now), None, "refused beyond 2^53 - 1");
        }
    }
}
