//! The records that decisions are about.

use std::{sync::Arc, time::Duration};

use crate::domain::{
    Attempts, Claim, Detail, EventRow, FencingToken, Labels, Lease, LeaseId, PayloadDigest,
    ProcessedBy, RequestId, ResumedBy, SessionRow, StoredEvent, Timestamp, TurnResult,
};

/// Distinguishes one state of a record from another: chosen at random with each write, so that a
/// record that was deleted and written again is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub i64);

/// A session: who has it, and who waits for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Session {
    /// The current or latest lease; none where there is no such session.
    pub latest: Option<Latest>,
    /// The places in its queue, first to last, those included that a server has left behind.
    /// Empty unless somebody waits, or it was asked for.
    pub queue: Vec<Waiter>,
}

/// The current or latest lease of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latest {
    /// Of the record, and its queue.
    pub version: Version,
    /// The lease's name.
    pub lease: LeaseId,
    /// Its fencing token: the highest of the session.
    pub token: FencingToken,
    /// Who holds or held it.
    pub holder: String,
    /// What its holder noted on it.
    pub labels: Labels,
    /// The work that the session is bound to.
    pub epic: Option<String>,
    /// The attempt that was granted it.
    pub request: RequestId,
    /// When it was granted.
    pub acquire_time: Timestamp,
    /// When it ends or ended.
    pub expire_time: Timestamp,
    /// Whether it was given back.
    pub released: bool,
    /// How long it ran when it was granted or last renewed; none in a row from before that
    /// was noted.
    pub ttl: Option<Duration>,
    /// Who has carried it on.
    pub resumed: ResumedBy,
    /// Whether somebody waits for the session, and may have it: then nobody else takes it.
    pub waiting: bool,
}

/// A place in the queue of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiter {
    /// Its number, which the store gives it: the lowest is first. None while it is new.
    pub ticket: Option<i64>,
    /// The lease that the caller is to be given.
    pub lease: LeaseId,
    /// The caller's attempt.
    pub request: RequestId,
    /// Who it says that it is.
    pub holder: String,
    /// What it notes on the lease.
    pub labels: Labels,
    /// The work that it would bind the session to.
    pub epic: Option<String>,
    /// How long the lease is to run.
    pub ttl: Duration,
    /// Of the payload of the event that it wants the session for.
    pub digest: Option<PayloadDigest>,
    /// When its server left the place behind; none while the caller waits.
    pub left_at: Option<Timestamp>,
    /// Whether the server that it waits on is there, as far as the store knows.
    pub is_there: bool,
}

impl Latest {
    /// Whether the lease runs at `now`.
    #[must_use]
    pub fn is_live(&self, now: Timestamp) -> bool {
        !self.released && self.expire_time > now
    }

    /// The lease as its holder knows it at `now`.
    #[must_use]
    pub fn as_lease(&self, now: Timestamp) -> Lease {
        Lease {
            id: self.lease,
            token: self.token,
            holder: self.holder.clone(),
            acquire_time: self.acquire_time,
            expire_time: self.expire_time,
            remaining: self.expire_time.since(now),
            epic: self.epic.clone(),
            labels: self.labels.clone(),
        }
    }
}

impl Session {
    /// Who has carried its lease on.
    #[must_use]
    pub fn resumed(&self) -> ResumedBy {
        self.latest.as_ref().map_or(ResumedBy::Nobody, |latest| latest.resumed)
    }

    /// How the session stands at `now`; none where there is none.
    #[must_use]
    pub fn row(&self, now: Timestamp) -> Option<SessionRow> {
        let latest = self.latest.as_ref()?;
        let is_next = |waiter: &&Waiter| waiter.left_at.is_none() && waiter.is_there;
        let waits = self.queue.iter().filter(is_next);
        Some(SessionRow {
            lease: latest.as_lease(now),
            request: latest.request,
            live: latest.is_live(now),
            waiting: latest.waiting,
            queue: waits.filter(|_| latest.waiting).map(|waiter| waiter.lease).collect(),
        })
    }
}

/// An event: what is on record under one of its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Of the record, the same under all names that were taken with it.
    pub version: Version,
    /// All names that were taken with it, its own first.
    pub names: Vec<String>,
    /// The attempt that has it or handled it; none in a row of the older bots.
    pub request: Option<RequestId>,
    /// Of the payload that it was taken with, under its own name.
    pub digest: Option<PayloadDigest>,
    /// When it was marked or claimed, or its turn ended.
    pub time: Timestamp,
    /// From when on it is as if it were not on record.
    pub expire_time: Timestamp,
    /// How it stands.
    pub state: State,
    /// The attempts at it; none for a mark.
    pub attempts: Option<Attempts>,
    /// Who claimed it last.
    pub holder: Option<String>,
    /// Why it was rejected, or why its latest turn that reported a failure failed.
    pub detail: Option<Detail>,
    /// Who has carried its turn on.
    pub resumed: ResumedBy,
}

/// How an event stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// A run has claimed it until then.
    Claimed(Timestamp),
    /// It is handled.
    Handled(ProcessedBy, Option<Arc<TurnResult>>),
}

impl Event {
    /// Whether it is handled, or a claim to it runs, at `now`. A claim that was ended is written
    /// to have ended when it was made, and stays ended if the clock is stepped back.
    #[must_use]
    pub fn is_live(&self, now: Timestamp) -> bool {
        let has_ended = matches!(self.state, State::Claimed(until) if until <= self.time);
        self.ends() > now && self.expire_time > now && !has_ended
    }

    /// When it ends as it stands.
    #[must_use]
    pub fn ends(&self) -> Timestamp {
        match &self.state {
            State::Claimed(until) => *until,
            State::Handled(..) => self.expire_time,
        }
    }

    /// How it stands at `now`.
    #[must_use]
    pub fn row(&self, now: Timestamp) -> EventRow {
        match &self.state {
            State::Claimed(until) => EventRow::Claimed(Claim {
                request: self.request.unwrap_or(RequestId::from_uuid(uuid::Uuid::nil())),
                holder: self.holder.clone().unwrap_or_default(),
                attempt: self.attempts.map_or(0, |attempts| attempts.claimed),
                claim_time: self.time,
                lapse_time: *until,
                remaining: if self.is_live(now) { until.since(now) } else { Duration::ZERO },
                digest: self.digest,
                detail: self.detail.clone(),
            }),
            State::Handled(by, _) => EventRow::Processed(StoredEvent {
                process_time: self.time,
                expire_time: self.expire_time,
                request: self.request,
                by: *by,
                detail: self.detail.clone().filter(|_| by.has_detail()),
                digest: self.digest,
            }),
        }
    }
}
