//! The queue of a session: who waits, and who is next.
//!
//! | place | an enqueue of the same request | a hand-over | it is left | its server stops |
//! |---|---|---|---|---|
//! | none | takes one at the end, if there is room | | | |
//! | waits | takes it over, once; later it was replaced | is next, if it wants what the session is bound to | gone | left behind |
//! | left behind | takes it over, and waits again | passed over | gone | left behind |
//! | left behind for longer than [`PLACE_KEPT`] | gone | gone | gone | gone |

use std::time::Duration;

use super::{Draft, Latest, Operation, RuleError, Session, Waiter, Wanted};
use crate::domain::{
    Acquire, LeaseId, ResumedBy, SessionKey, SessionRow, Timestamp, limits::MAX_WAITERS_PER_SESSION,
};

/// How long a place in a queue is kept for the next call with the same request, once its replica
/// has left.
pub const PLACE_KEPT: Duration = Duration::from_secs(10);

/// Takes a place in a session's queue.
#[derive(Debug, Clone)]
pub struct Enqueue {
    /// What is wanted.
    pub acquire: Acquire,
    /// The lease that is to be given.
    pub lease: LeaseId,
    /// Take the place that an earlier call with the same request has or had on a replica, rather
    /// than one at the end.
    pub takes_over: bool,
}

/// What became of an [`Enqueue`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enqueued {
    /// The caller has a place: whoever has a lower ticket is before it.
    Waits(i64),
    /// It has the place of an earlier call with the same request, which was to be given this
    /// lease.
    TookOver(i64, LeaseId),
    /// A newer call with the same request has its place.
    Replaced,
    /// The lease has come since, of a place that an earlier run took.
    Given,
    /// The session is there for the taking.
    Free,
    /// Too many wait already.
    Full,
}

impl Operation for Enqueue {
    /// [`Enqueued::Waits`] carries no ticket yet: the store gives it one.
    type Answer = Enqueued;

    fn wants(&self, wanted: &mut Wanted) {
        wanted.queue(&self.acquire.key);
    }

    fn decide(&self, draft: &mut Draft<'_>) -> Result<Enqueued, RuleError> {
        let Acquire { key, holder, request, ttl, epic, labels, digest, .. } = &self.acquire;
        let now = draft.now();
        let mut session = draft.session(key);
        let Some(latest) = session.latest.as_mut() else { return Ok(Enqueued::Free) };
        if !latest.is_live(now) && !latest.waiting {
            return Ok(Enqueued::Free);
        }
        session.queue.retain(|waiter| !is_forgotten(waiter, now));
        let place = Waiter {
            ticket: None,
            lease: self.lease,
            request: *request,
            holder: holder.clone(),
            labels: labels.clone(),
            epic: epic.clone(),
            ttl: ttl.span(),
            digest: *digest,
            left_at: None,
        };
        let earlier = session
            .queue
            .iter_mut()
            .find(|waiter| waiter.request == *request && waiter.digest == *digest);
        let enqueued = if let Some(earlier) = earlier {
            if !self.takes_over {
                return Ok(Enqueued::Replaced);
            }
            let ticket = earlier.ticket;
            let was = std::mem::replace(earlier, Waiter { ticket, ..place });
            Enqueued::TookOver(ticket.unwrap_or_default(), was.lease)
        } else {
            if waiting(&session.queue).count() >= MAX_WAITERS_PER_SESSION {
                return Ok(Enqueued::Full);
            }
            session.queue.push(place);
            Enqueued::Waits(0)
        };
        latest.waiting = true;
        draft.put_session(key, session);
        Ok(enqueued)
    }
}

/// Hands a session on to whoever is next, if it is free and anybody waits.
#[derive(Debug, Clone)]
pub struct HandOn<'a>(pub &'a SessionKey);

impl Operation for HandOn<'_> {
    /// How the session stands then, and whether it was handed on.
    type Answer = (Option<SessionRow>, bool);

    fn wants(&self, wanted: &mut Wanted) {
        wanted.session(self.0);
    }

    fn decide(&self, draft: &mut Draft<'_>) -> Result<Self::Answer, RuleError> {
        let now = draft.now();
        let mut session = draft.session(self.0);
        let is_due =
            session.latest.as_ref().is_some_and(|latest| !latest.is_live(now) && latest.waiting);
        let mut is_handed_on = false;
        if is_due {
            is_handed_on = hand_on(draft, &mut session)?;
            draft.put_session(self.0, session.clone());
        }
        Ok((session.row(now), is_handed_on))
    }
}

/// Gives a place up, or leaves it behind for the next call with the same request.
#[derive(Debug, Clone)]
pub struct Leave<'a> {
    /// The session.
    pub key: &'a SessionKey,
    /// The lease that the place was to end in.
    pub lease: LeaseId,
    /// Whether it is left behind.
    pub keep: bool,
}

impl Operation for Leave<'_> {
    /// Whether it was there: if not, the lease may have been given.
    type Answer = bool;

    fn wants(&self, wanted: &mut Wanted) {
        wanted.queue(self.key);
    }

    fn decide(&self, draft: &mut Draft<'_>) -> Result<bool, RuleError> {
        let now = draft.now();
        let mut session = draft.session(self.key);
        let Some(place) = session.queue.iter().position(|waiter| waiter.lease == self.lease) else {
            return Ok(false);
        };
        if self.keep {
            session.queue[place].left_at = Some(now);
        } else {
            session.queue.remove(place);
        }
        draft.put_session(self.key, session);
        Ok(true)
    }
}

/// Hands a free session on to whoever is next for it. Answers whether there is anybody.
///
/// # Errors
/// [`RuleError::TokensExhausted`].
pub(super) fn hand_on(draft: &mut Draft<'_>, session: &mut Session) -> Result<bool, RuleError> {
    let Session { latest: Some(latest), queue } = session else { return Ok(false) };
    let bound = latest.epic.take();
    let is_next = |waiter: &Waiter| {
        let differs = waiter.epic.as_ref().zip(bound.as_ref()).is_some_and(|(own, of)| own != of);
        waiter.left_at.is_none() && !differs
    };
    let Some(next) = queue.iter().position(is_next) else {
        (latest.epic, latest.waiting) = (bound, false);
        return Ok(false);
    };
    let now = draft.now();
    let Waiter { lease, request, holder, labels, epic, ttl, .. } = queue.remove(next);
    *latest = Latest {
        version: latest.version,
        lease,
        token: draft.token(Some(latest.token))?,
        holder,
        labels,
        epic: bound.or(epic),
        request,
        acquire_time: now,
        expire_time: now.plus(ttl),
        released: false,
        ttl: Some(ttl),
        resumed: ResumedBy::Nobody,
        waiting: waiting(queue).next().is_some(),
    };
    Ok(true)
}

/// Those whose callers wait.
pub(super) fn waiting(queue: &[Waiter]) -> impl Iterator<Item = &Waiter> {
    queue.iter().filter(|waiter| waiter.left_at.is_none())
}

/// Whether a place was left behind for too long.
fn is_forgotten(waiter: &Waiter, now: Timestamp) -> bool {
    waiter.left_at.is_some_and(|left| left.plus(PLACE_KEPT) <= now)
}
