//! The queue of a session: who waits, and who is next.
//!
//! | place | an enqueue of the same request | a hand-over | it is left | its server is gone |
//! |---|---|---|---|---|
//! | none | takes one at the end, if there is room | | nothing | |
//! | waits | takes it over if it names its lease; otherwise is answered that lease | is next, unless it wants other work than the session is bound to | removed, or left behind | passed over, and kept |
//! | left behind | the same: it waits again | passed over, and kept | removed, or left behind anew | |
//! | left behind for as long as [`PLACE_KEPT`] | takes one at the end; this one is removed | passed over, and kept | removed, or nothing | |
//!
//! - An enqueue takes no place where an acquire would not find the session held.
//! - An enqueue that is repeated with its lease finds its place, or the lease that has come since. If
//!   that may have ended, it takes no place for it again.
//! - There is room for [`MAX_WAITERS_PER_SESSION`] waiters whose servers run. A place that is taken
//!   over needs none.

use std::time::Duration;

use super::{Draft, Latest, Notice, Operation, RuleError, Session, Waiter, Wanted};
use crate::domain::{
    Acquire, Decision, Enqueue, Enqueued, LeaseId, ResumedBy, SessionKey, SessionRow, Timestamp,
    limits::MAX_WAITERS_PER_SESSION,
};

/// How long a place in a queue is kept for the next call with the same request, once its replica
/// has left.
pub const PLACE_KEPT: Duration = Duration::from_secs(10);

impl Operation for Enqueue {
    /// [`Enqueued::Waits`] carries no ticket while the place is new: the store gives it one.
    type Answer = Enqueued;

    fn wants(&self, wanted: &mut Wanted) {
        wanted.queue(&self.acquire.key);
    }

    fn spend(&self) {
        self.acquire.lease.spend();
    }

    fn decide(&self, draft: &mut Draft<'_>) -> Result<Enqueued, RuleError> {
        let Acquire { key, holder, request, lease, ttl, epic, labels, digest, .. } = &self.acquire;
        let (now, lease) = (draft.now(), lease.id());
        let mut session = draft.session(key);
        let Some(latest) = session.latest.as_mut() else { return Ok(Enqueued::Free) };
        // An earlier run of this very call, whose answer was lost.
        if latest.lease == lease && latest.is_live(now) {
            return Ok(Enqueued::Given);
        }
        session.queue.retain(|waiter| !is_forgotten(waiter, now));
        let own = session.queue.iter().find(|waiter| waiter.lease == lease);
        if let Some(ticket) = own.and_then(|own| own.ticket) {
            return Ok(Enqueued::Waits(ticket));
        }
        if self.acquire.lease.is_spent() {
            return Ok(Enqueued::Spent);
        }
        let decision = session.row(now).map(|row| row.decision(&self.acquire));
        let (Some(Decision::Held(_)), Some(latest)) = (decision, session.latest.as_mut()) else {
            return Ok(Enqueued::Free);
        };
        let place = Waiter {
            ticket: None,
            lease,
            request: *request,
            holder: holder.clone(),
            labels: labels.clone(),
            epic: epic.clone(),
            ttl: ttl.span(),
            digest: *digest,
            left_at: None,
            is_there: true,
        };
        let earlier = session
            .queue
            .iter_mut()
            .find(|waiter| waiter.request == *request && waiter.digest == *digest);
        let enqueued = if let Some(earlier) = earlier {
            if self.takes_over != Some(earlier.lease) {
                return Ok(Enqueued::Taken(earlier.lease));
            }
            let ticket = earlier.ticket;
            let was = std::mem::replace(earlier, Waiter { ticket, ..place });
            draft.notify(Notice::TakenOver(was.lease));
            Enqueued::TookOver(ticket.unwrap_or_default(), was.lease)
        } else {
            let waiting = waiting(&session.queue).filter(|waiter| waiter.is_there);
            if waiting.count() >= MAX_WAITERS_PER_SESSION {
                return Ok(Enqueued::Full);
            }
            session.queue.push(place);
            Enqueued::Waits(0)
        };
        latest.waiting = true;
        draft.notify(Notice::Session(key.clone()));
        draft.put_session(key, session);
        Ok(enqueued)
    }
}

/// Hands a session on to the next caller, if it is free and anybody waits. Notes that somebody
/// waits for one that is held, where that was forgotten: their server counted as gone for a while.
#[derive(Debug, Clone)]
pub struct HandOn<'a>(pub &'a SessionKey);

impl Operation for HandOn<'_> {
    /// How the session stands then, and the same if it was handed on.
    type Answer = (Option<SessionRow>, Option<SessionRow>);

    fn wants(&self, wanted: &mut Wanted) {
        wanted.queue(self.0);
    }

    fn decide(&self, draft: &mut Draft<'_>) -> Result<Self::Answer, RuleError> {
        let mut session = draft.session(self.0);
        let Session { latest: Some(latest), queue } = &mut session else { return Ok((None, None)) };
        if !latest.waiting && next(latest.epic.as_ref(), queue).is_some() {
            latest.waiting = true;
            draft.put_session(self.0, session.clone());
        }
        let handover = hand_on(draft, self.0, &mut session)?;
        Ok((session.row(draft.now()), handover))
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
        let is_own = |waiter: &Waiter| waiter.lease == self.lease;
        let Some(place) = session.queue.iter().position(is_own) else { return Ok(false) };
        let counts = !is_forgotten(&session.queue[place], now);
        match (self.keep, counts) {
            (true, true) => session.queue[place].left_at = Some(now),
            (true, false) => return Ok(false),
            (false, _) => drop(session.queue.remove(place)),
        }
        let is_awaited = waiting(&session.queue).next().is_some();
        if let Some(latest) = &mut session.latest {
            latest.waiting &= is_awaited;
        }
        draft.notify(Notice::Session(self.key.clone()));
        draft.put_session(self.key, session);
        Ok(counts)
    }
}

/// Hands a session on to the caller that is next for it, if it is free and somebody waits.
/// Answers the session then. If nobody can have it, it is there for anybody to take.
///
/// # Errors
/// [`RuleError::TokensExhausted`].
pub(super) fn hand_on(
    draft: &mut Draft<'_>,
    key: &SessionKey,
    session: &mut Session,
) -> Result<Option<SessionRow>, RuleError> {
    let now = draft.now();
    let Session { latest: Some(latest), queue } = session else { return Ok(None) };
    if latest.is_live(now) || !latest.waiting {
        return Ok(None);
    }
    let bound = latest.epic.take();
    let Some(next) = next(bound.as_ref(), queue) else {
        (latest.epic, latest.waiting) = (bound, false);
        draft.put_session(key, session.clone());
        return Ok(None);
    };
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
    draft.notify(Notice::Handed(lease));
    draft.notify(Notice::Session(key.clone()));
    draft.put_session(key, session.clone());
    Ok(session.row(now))
}

/// Which place is next for a session that is bound to that work.
fn next(bound: Option<&String>, queue: &[Waiter]) -> Option<usize> {
    queue.iter().position(|waiter| {
        let differs = waiter.epic.as_ref().zip(bound).is_some_and(|(own, of)| own != of);
        waiter.left_at.is_none() && waiter.is_there && !differs
    })
}

/// Those whose callers wait.
pub(super) fn waiting(queue: &[Waiter]) -> impl Iterator<Item = &Waiter> {
    queue.iter().filter(|waiter| waiter.left_at.is_none())
}

/// Whether a place was left behind for too long.
#[must_use]
pub fn is_forgotten(waiter: &Waiter, now: Timestamp) -> bool {
    waiter.left_at.is_some_and(|left| left.plus(PLACE_KEPT) <= now)
}
