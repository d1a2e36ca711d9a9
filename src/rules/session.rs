//! Who holds a session.
//!
//! | session | acquire | renew, with its lease | release, with its lease | bind | force a release | close |
//! |---|---|---|---|---|---|---|
//! | absent | granted | lost | nothing | made, bound, free | nothing | nothing |
//! | held, by the same request or lease | granted again, and noted if it names the lease as it is | runs on | free, and handed on if callers wait | bound | free, with a higher fence | deleted |
//! | held, by another | held | lost | nothing | bound | free, with a higher fence | deleted |
//! | lapsed, no caller waits | granted | found as it ended | nothing | bound | nothing | deleted |
//! | released, no caller waits | granted | lost | ended before | bound | nothing | deleted |
//! | free, callers wait | reserved for the next waiter | as above | as above | bound | nothing | freed |
//! | free, no waiter can acquire it | held until a hand-over finds that; then granted | as above | as above | bound, and looked at again for them | nothing | freed |
//!
//! - Bound to other work than an acquire names, a session is refused, held or free.
//! - A stream whose place another has taken renews nothing; one whose lease another call carries
//!   on releases nothing.
//! - Where callers wait, a close frees a session, held or not, instead of deleting it: unbound,
//!   with a higher fence, and theirs. So it does where the fence is above the clock, which the
//!   floor of all sessions would be raised to.

use std::time::Duration;

use super::{
    Draft, Latest, Notice, Operation, RuleError, Session, Version, Wanted,
    queue::{hand_on, waiting},
};
use crate::domain::{
    Acquire, Acquired, Decision, Labels, LeaseId, Obtained, Release, Renew, Renewed, ResumedBy,
    SessionKey, SessionRow, StreamId, Timestamp, Ttl,
};

/// What became of a [`Release`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// Whether the lease is given back, now or before; not so one that is spared. It is also given back
    /// if another caller has the session, and an earlier run may have given it back.
    pub ended: bool,
    /// The session, if it went to the next caller.
    pub handover: Option<SessionRow>,
}

impl Operation for Acquire {
    type Answer = Acquired;

    fn wants(&self, wanted: &mut Wanted) {
        wanted.session(&self.key);
    }

    fn spend(&self) {
        self.lease.spend();
    }

    fn decide(&self, draft: &mut Draft<'_>) -> Result<Self::Answer, RuleError> {
        let now = draft.now();
        let mut session = draft.session(&self.key);
        if let Some(row) = session.row(now) {
            match row.decision(self) {
                Decision::Free => {}
                Decision::Granted(lease) => {
                    let obtained = self.repeat(draft, session, lease.id);
                    return Ok(Acquired { row, obtained: Some(obtained) });
                }
                Decision::Held(_) | Decision::EpicMismatch(_) => {
                    return Ok(Acquired { row, obtained: None });
                }
            }
        }
        let row = grant(draft, &mut session, self)?;
        draft.put_session(&self.key, session);
        Ok(Acquired { row, obtained: Some(Obtained::Granted) })
    }
}

impl Acquire {
    /// A repetition of the request that has this lease.
    fn repeat(&self, draft: &mut Draft<'_>, mut session: Session, lease: LeaseId) -> Obtained {
        let resumed = session.resumed();
        match self.resumes {
            // By an earlier run of this operation, whose answer was lost.
            _ if lease == self.lease.id() && resumed == ResumedBy::Nobody => Obtained::Granted,
            Some(prior) if prior.is_current(&lease, resumed, self.stream) => {
                note(&mut session, self.stream);
                draft.put_session(&self.key, session);
                Obtained::Resumed(prior.resumed)
            }
            _ => Obtained::Found(resumed),
        }
    }
}

impl Operation for Release {
    type Answer = Released;

    fn wants(&self, wanted: &mut Wanted) {
        wanted.session(&self.key);
    }

    fn spend(&self) {
        self.doubt.lose();
    }

    fn decide(&self, draft: &mut Draft<'_>) -> Result<Released, RuleError> {
        self.doubt.decide(false);
        let mut session = draft.session(&self.key);
        let own = session.latest.as_ref().filter(|latest| latest.lease == self.lease);
        let Some(latest) = own else {
            return Ok(Released { ended: self.doubt.may_be_done(), handover: None });
        };
        let is_spared = self.unless_resumed.is_some_and(|stream| !latest.resumed.leaves_to(stream));
        if !latest.is_live(draft.now()) || is_spared {
            return Ok(Released { ended: latest.released, handover: None });
        }
        self.doubt.decide(true);
        Ok(Released { ended: true, handover: release(draft, &self.key, &mut session)? })
    }
}

/// A [`Renew`], for so long at most since the lease was granted.
#[derive(Debug, Clone)]
pub struct RenewWithin<'a>(pub &'a Renew, pub Duration);

impl Operation for RenewWithin<'_> {
    type Answer = Renewed;

    fn wants(&self, wanted: &mut Wanted) {
        wanted.session(&self.0.key);
    }

    fn decide(&self, draft: &mut Draft<'_>) -> Result<Renewed, RuleError> {
        let (Self(Renew { key, lease, ttl, stream }, max_hold), now) = (self, draft.now());
        let mut session = draft.session(key);
        let row = session.row(now);
        let own = session.latest.as_mut().filter(|own| own.lease == *lease && !own.released);
        let (Some(own), Some(row)) = (own, row) else { return Ok(Renewed::Gone) };
        if !own.is_live(now) {
            return Ok(Renewed::Found(row));
        }
        if stream.is_some_and(|stream| own.resumed.replaces(stream)) {
            return Ok(Renewed::Resumed);
        }
        run_on(own, *ttl, *max_hold, now);
        if stream.is_none() {
            own.resumed = ResumedBy::Call;
        }
        let row = session.row(now).unwrap_or(row);
        draft.put_session(key, session);
        Ok(Renewed::Found(row))
    }
}

/// Binds a session to work, or to nothing, whatever it is bound to; makes the session where
/// there is none.
#[derive(Debug, Clone)]
pub struct BindEpic<'a>(pub &'a SessionKey, pub Option<&'a str>);

impl Operation for BindEpic<'_> {
    type Answer = ();

    fn wants(&self, wanted: &mut Wanted) {
        wanted.queue(self.0);
    }

    fn decide(&self, draft: &mut Draft<'_>) -> Result<(), RuleError> {
        let Self(key, epic) = self;
        let mut session = draft.session(key);
        let is_awaited = waiting(&session.queue).next().is_some();
        let latest = match &mut session.latest {
            Some(latest) => latest,
            none => none.insert(never_held(draft)?),
        };
        latest.epic = epic.map(str::to_owned);
        // Those who wait for other work than it was bound to may have it now.
        latest.waiting |= is_awaited;
        draft.put_session(key, session);
        Ok(())
    }
}

/// Ends a session's lease by force, and raises its fence.
#[derive(Debug, Clone)]
pub struct ForceRelease<'a>(pub &'a SessionKey);

impl Operation for ForceRelease<'_> {
    /// Whether there was one.
    type Answer = bool;

    fn wants(&self, wanted: &mut Wanted) {
        wanted.session(self.0);
    }

    fn decide(&self, draft: &mut Draft<'_>) -> Result<bool, RuleError> {
        let mut session = draft.session(self.0);
        let live = session.latest.as_mut().filter(|latest| latest.is_live(draft.now()));
        let Some(latest) = live else { return Ok(false) };
        draft.only_once();
        end(draft, latest)?;
        draft.notify(Notice::Session(self.0.clone()));
        draft.put_session(self.0, session);
        Ok(true)
    }
}

/// Forgets a session, held or not; but leaves one that somebody waits for to them, free,
/// unbound, and with a higher fence.
#[derive(Debug, Clone)]
pub struct CloseSession<'a>(pub &'a SessionKey);

impl Operation for CloseSession<'_> {
    /// Whether there was one.
    type Answer = bool;

    fn wants(&self, wanted: &mut Wanted) {
        wanted.queue(self.0);
    }

    fn decide(&self, draft: &mut Draft<'_>) -> Result<bool, RuleError> {
        let mut session = draft.session(self.0);
        let is_awaited = waiting(&session.queue).next().is_some();
        let Some(latest) = &mut session.latest else { return Ok(false) };
        draft.only_once();
        // A token above the clock: the row goes with a sweep, later.
        draft.rests_on(Timestamp::from_micros(latest.token.0));
        if is_awaited || latest.waiting || latest.token.0 > draft.now().as_micros() {
            end(draft, latest)?;
            latest.epic = None;
            latest.waiting |= is_awaited;
        } else {
            draft.raise_floor(latest.token);
            session.latest = None;
        }
        draft.notify(Notice::Session(self.0.clone()));
        draft.put_session(self.0, session);
        Ok(true)
    }
}

/// Grants a free session.
pub(super) fn grant(
    draft: &mut Draft<'_>,
    session: &mut Session,
    acquire: &Acquire,
) -> Result<SessionRow, RuleError> {
    let now = draft.now();
    let latest = session.latest.take();
    let token = draft.token(latest.as_ref().map(|latest| latest.token))?;
    let own = &acquire.lease;
    let lease = if own.is_spent() { draft.ids().lease() } else { own.id() };
    let bound = latest.and_then(|latest| latest.epic);
    let granted = Latest {
        version: Version(0),
        lease,
        token,
        holder: acquire.holder.clone(),
        labels: acquire.labels.clone(),
        epic: bound.or_else(|| acquire.epic.clone()),
        request: acquire.request,
        acquire_time: now,
        expire_time: now.after(acquire.ttl),
        released: false,
        ttl: Some(acquire.ttl.span()),
        resumed: ResumedBy::Nobody,
        waiting: false,
    };
    let (lease, request) = (granted.as_lease(now), granted.request);
    session.latest = Some(granted);
    Ok(SessionRow { lease, request, live: true, waiting: false, queue: Vec::new() })
}

/// Notes that the holder of a session has carried it on by `stream`, or by a call.
pub(super) fn note(session: &mut Session, stream: Option<StreamId>) {
    if let Some(latest) = &mut session.latest {
        latest.resumed = ResumedBy::of(stream);
    }
}

/// Ends the lease of a session, and hands it on if anybody waits: answers it then.
pub(super) fn release(
    draft: &mut Draft<'_>,
    key: &SessionKey,
    session: &mut Session,
) -> Result<Option<SessionRow>, RuleError> {
    let now = draft.now();
    let Some(latest) = &mut session.latest else { return Ok(None) };
    (latest.released, latest.expire_time) = (true, now);
    draft.put_session(key, session.clone());
    hand_on(draft, key, session)
}

/// Lets a lease run on for `ttl`, but no longer than `max_hold` in all. It ends no earlier than before: its holder,
/// or a stream that keeps it, may rely on that.
pub(super) fn run_on(latest: &mut Latest, ttl: Ttl, max_hold: Duration, now: Timestamp) {
    let last = latest.acquire_time.plus(max_hold);
    let end = now.after(ttl).min(last).max(latest.expire_time);
    (latest.ttl, latest.expire_time) = (Some(end.since(now)), end);
}

/// Ends a lease by force, and raises the fence of its session.
fn end(draft: &mut Draft<'_>, latest: &mut Latest) -> Result<(), RuleError> {
    latest.released = true;
    latest.expire_time = latest.expire_time.min(draft.now());
    latest.token = draft.token(Some(latest.token))?;
    latest.lease = draft.ids().lease();
    Ok(())
}

/// A session that nobody has held yet.
fn never_held(draft: &mut Draft<'_>) -> Result<Latest, RuleError> {
    let now = draft.now();
    Ok(Latest {
        version: Version(0),
        lease: draft.ids().lease(),
        token: draft.token(None)?,
        holder: String::new(),
        labels: Labels::default(),
        epic: None,
        request: draft.ids().request(),
        acquire_time: now,
        expire_time: now,
        released: true,
        ttl: None,
        resumed: ResumedBy::Nobody,
        waiting: false,
    })
}
