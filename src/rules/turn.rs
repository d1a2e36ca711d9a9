//! An event and its session at once.
//!
//! | event | begin | renew, by its holder | finish, by its holder |
//! |---|---|---|---|
//! | not on record, or expired | claimed, if the session is free, or its own by an earlier run; else busy | lost | lost |
//! | claimed, by the same request | granted again if it has its session, and noted if it names the claim as it is; else in progress | runs on, with its lease | ended |
//! | claimed, by another | in progress | lost | lost |
//! | claim lapsed, attempts left | as if it were not on record, one attempt more | lost | lost |
//! | claim ended, attempts left | as if it were not on record, one attempt more | lost | done if it ended so, or lost |
//! | claim lapsed or ended, attempts spent | given up: not handled | lost | done if it ended so, or lost |
//! | handled | duplicate | lost | done if it ended so, or lost |
//!
//! - Another payload than the claim's is no repetition: in progress.
//! - A turn whose lease has ended is lost, though its claim runs.
//! - A stream whose place another has taken renews nothing; one whose turn another call carries on
//!   ends nothing.
//! - A lease that an earlier run of the request was given is found, if the event is taken.
//!
//! What ends a turn:
//!
//! | ending | the event | its attempt |
//! |---|---|---|
//! | succeeded, rejected | handled | |
//! | failed | free, or given up if its attempts are spent | counts |
//! | its stream broke | free | does not count |
//! | abandoned: no caller was answered, and it is the claim that it names | free | is taken back |
//! | unanswered: its begin may have been granted it, and its caller has gone | free | is taken back |
//!
//! What an unanswered begin has is known by its lease, which it may have been granted without the event.
//!
//! An event of several names is one: what is found under one of them counts, a live record before
//! others, then this request's own, then the one with the most attempts.

use std::{cmp::Reverse, time::Duration};

use super::{
    Draft, Event, Latest, Operation, RuleError, Session, State, Version, Wanted,
    queue::hand_on,
    session::{grant, note, run_on},
};
use crate::domain::{
    Acquire, Attempts, Begin, Begun, Claim, Decision, Detail, EventRow, Lease, LeaseId, Obtained,
    PriorGrant, ProcessedBy, RenewTurn, RequestId, ResumedBy, SessionKey, SessionRow, Team,
    Timestamp, TurnId, TurnLost, limits::CLAIM_MEMORY,
};

mod finish;

pub use finish::FinishAnswer;

/// What became of a [`Begin`], and what that brought with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeginAnswer {
    /// What it came to.
    pub begun: Begun,
    /// A lease that an earlier run of the request was given, for a turn that came to nothing:
    /// it is still to be given back.
    pub orphan: Option<(SessionKey, LeaseId)>,
    /// Whether a claim had lapsed before.
    pub lapsed: bool,
    /// Whether the event was given up.
    pub gave_up: bool,
    /// The session, if it went to a caller that had waited before.
    pub handover: Option<SessionRow>,
}

impl From<Begun> for BeginAnswer {
    fn from(begun: Begun) -> Self {
        Self { begun, orphan: None, lapsed: false, gave_up: false, handover: None }
    }
}

impl Operation for Begin {
    type Answer = BeginAnswer;

    fn wants(&self, wanted: &mut Wanted) {
        wanted.event(&self.event.key.team, self.event.names(), true);
        if let Some(acquire) = &self.session {
            wanted.session(&acquire.key);
        }
    }

    fn spend(&self) {
        if let Some(acquire) = &self.session {
            acquire.lease.spend();
        }
    }

    fn decide(&self, draft: &mut Draft<'_>) -> Result<BeginAnswer, RuleError> {
        let now = draft.now();
        let team = &self.event.key.team;
        let found = find(draft, team, self.event.names(), self.request);
        let mut asked = self.session.as_ref().map(|acquire| (acquire, draft.session(&acquire.key)));
        let mut before = Before::default();
        if let Some(found) = found {
            if let Some(claim) = live_claim(&found, self.request, now) {
                return Ok(self.repeat(draft, &found, claim, asked).into());
            }
            let result = match &found.state {
                State::Handled(_, result) => Some(result.as_deref().cloned()),
                State::Claimed(_) => found.is_live(now).then_some(None),
            };
            if let Some(result) = result {
                let begun = Begun::NotAvailable(found.row(now), result);
                return Ok(BeginAnswer { orphan: orphan(asked.as_ref(), now), ..begun.into() });
            }
            before = Before::of(&found);
            if before.attempts.are_spent(self.max_attempts) {
                let mut given_up = ended(&found, before.attempts, before.detail, now);
                given_up.state = State::Handled(ProcessedBy::GaveUp(before.attempts.claimed), None);
                let begun = Begun::NotAvailable(given_up.row(now), None);
                draft.update_event(team, &found, Some(given_up));
                let (lapsed, orphan) = (before.lapsed, orphan(asked.as_ref(), now));
                return Ok(BeginAnswer { orphan, lapsed, gave_up: true, ..begun.into() });
            }
        }
        let mut lease = None;
        if let Some((acquire, session)) = &mut asked {
            let handover = hand_on(draft, &acquire.key, session)?;
            let row = session.row(now).filter(|row| row.decision(acquire) != Decision::Free);
            lease = match row {
                // An earlier run of this operation took it, without the event.
                Some(row) if has_own(session, acquire, now) => Some(row.lease),
                Some(busy) => {
                    return Ok(BeginAnswer { handover, ..Begun::Busy(busy).into() });
                }
                None => Some(grant(draft, session, acquire)?.lease),
            };
        }
        if let Some((acquire, session)) = asked {
            draft.put_session(&acquire.key, session);
        }
        let Before { attempts, detail, lapsed } = before;
        let attempts = Attempts { claimed: attempts.claimed + 1, ..attempts };
        let claimed = Event {
            version: Version(0),
            names: self.event.names().map(str::to_owned).collect(),
            request: Some(self.request),
            digest: self.event.digest,
            time: now,
            expire_time: now.plus(CLAIM_MEMORY),
            state: State::Claimed(now.after(self.claim_ttl)),
            attempts: Some(Attempts { interrupted: None, ..attempts }),
            holder: Some(self.holder.clone()),
            detail,
            resumed: ResumedBy::Nobody,
        };
        let EventRow::Claimed(claim) = claimed.row(now) else { unreachable!("it is claimed") };
        draft.put_event(team, claimed);
        Ok(BeginAnswer {
            lapsed,
            ..Begun::Granted { claim, lease, obtained: Obtained::Granted }.into()
        })
    }
}

/// A request for a session, and the session as it was read.
type SessionRequest<'a> = (&'a Acquire, Session);

impl Begin {
    /// A repetition of the request whose claim runs.
    fn repeat(
        &self,
        draft: &mut Draft<'_>,
        found: &Event,
        claim: Claim,
        asked: Option<SessionRequest<'_>>,
    ) -> Begun {
        let now = draft.now();
        let claim_alone = |claim| Begun::NotAvailable(EventRow::Claimed(claim), None);
        if self.event.contradicts(claim.digest) {
            return claim_alone(claim);
        }
        let (mut lease, mut resumed, mut is_own) = (None, found.resumed, false);
        if let Some((acquire, session)) = &asked {
            let decision = session.row(now).map(|row| row.decision(acquire));
            let Some(Decision::Granted(held)) = decision else { return claim_alone(claim) };
            resumed = resumed.with_lease(session.resumed());
            is_own = has_own(session, acquire, now) && resumed == ResumedBy::Nobody;
            lease = Some(held);
        }
        if is_own {
            // By an earlier run of this operation, whose answer was lost.
            return Begun::Granted { claim, lease, obtained: Obtained::Granted };
        }
        let is_current =
            |prior: &PriorGrant<_>| prior.is_current(&claim.claim_time, resumed, self.stream);
        let Some(prior) = self.resumes.filter(is_current) else {
            return Begun::Granted { claim, lease, obtained: Obtained::Found(resumed) };
        };
        if let Some((acquire, mut session)) = asked {
            note(&mut session, self.stream);
            draft.put_session(&acquire.key, session);
        }
        let attempts = found.attempts.map(|own| Attempts { interrupted: None, ..own });
        let repeated = Event { resumed: ResumedBy::of(self.stream), attempts, ..found.clone() };
        draft.update_event(&self.event.key.team, found, Some(repeated));
        Begun::Granted { claim, lease, obtained: Obtained::Resumed(prior.resumed) }
    }
}

/// What earlier turns of an event leave to the next.
struct Before {
    attempts: Attempts,
    detail: Option<Detail>,
    /// Whether the latest claim has lapsed, rather than ended.
    lapsed: bool,
}

impl Default for Before {
    fn default() -> Self {
        let attempts = Attempts { claimed: 0, uncounted: 0, interrupted: None };
        Self { attempts, detail: None, lapsed: false }
    }
}

impl Before {
    fn of(found: &Event) -> Self {
        let attempts = found.attempts.unwrap_or(Self::default().attempts);
        // Ended otherwise, it did so when it says that it was made.
        let lapsed = found.ends() > found.time;
        let attempts = if lapsed { attempts.lapsed() } else { attempts };
        Self { attempts, detail: found.detail.clone(), lapsed }
    }
}

/// Whether an earlier run of an operation was granted the session, and no other call has carried the
/// lease on.
fn has_own(session: &Session, acquire: &Acquire, now: Timestamp) -> bool {
    session.latest.as_ref().is_some_and(|latest| {
        let is_own = latest.lease == acquire.lease.id() && latest.request == acquire.request;
        is_own && latest.resumed == ResumedBy::Nobody && latest.is_live(now)
    })
}

/// The lease that an earlier run of a request had waited for, whose event is not to be had.
fn orphan(asked: Option<&SessionRequest<'_>>, now: Timestamp) -> Option<(SessionKey, LeaseId)> {
    let (acquire, session) = asked?;
    match session.row(now)?.decision(acquire) {
        Decision::Granted(lease) => Some((acquire.key.clone(), lease.id)),
        _ => None,
    }
}

/// A [`RenewTurn`], its lease for so long at most since it was granted.
#[derive(Debug, Clone)]
pub struct RenewTurnWithin<'a>(pub &'a RenewTurn, pub Duration);

impl Operation for RenewTurnWithin<'_> {
    type Answer = Result<(Claim, Option<Lease>), TurnLost>;

    fn wants(&self, wanted: &mut Wanted) {
        wants_turn(&self.0.turn, wanted);
    }

    fn decide(&self, draft: &mut Draft<'_>) -> Result<Self::Answer, RuleError> {
        let Self(RenewTurn { turn, claim_ttl, lease_ttl, stream, interruption }, max_hold) = self;
        let now = draft.now();
        let Own { event, session, .. } = match own(draft, turn) {
            Ok(own) => own,
            Err(lost) => return Ok(Err(lost)),
        };
        if stream.is_some_and(|stream| event.resumed.replaces(stream)) {
            return Ok(Err(TurnLost::Replaced));
        }
        let is_interrupted = interruption
            .zip(*stream)
            .is_some_and(|(why, stream)| why.is_noted(stream, event.resumed));
        let mut prolonged = event.clone();
        // It ends no earlier than before, as a lease.
        if let State::Claimed(until) = &mut prolonged.state {
            *until = now.after(*claim_ttl).max(*until);
        }
        // The clock may have been stepped back: a claim that ends before it was made has ended.
        prolonged.time = event.time.min(now);
        prolonged.expire_time = event.expire_time.max(now.plus(CLAIM_MEMORY));
        if stream.is_none() {
            prolonged.resumed = ResumedBy::Call;
        }
        if let Some(attempts) = &mut prolonged.attempts {
            attempts.interrupted = is_interrupted.then_some(attempts.claimed);
        }
        let EventRow::Claimed(claim) = prolonged.row(now) else { unreachable!("it is claimed") };
        draft.update_event(&turn.event.team, &event, Some(prolonged));
        let mut lease = None;
        if let Some((key, mut session)) = session {
            if let Some(latest) = &mut session.latest {
                run_on(latest, *lease_ttl, *max_hold, now);
                lease = Some(latest.as_lease(now));
            }
            draft.put_session(key, session);
        }
        Ok(Ok((claim, lease)))
    }
}

/// An event whose claim ends `now`, and which is left to another run.
fn ended(event: &Event, attempts: Attempts, detail: Option<Detail>, now: Timestamp) -> Event {
    Event {
        time: now,
        expire_time: now.plus(CLAIM_MEMORY),
        state: State::Claimed(now),
        attempts: Some(Attempts { interrupted: None, ..attempts }),
        detail,
        ..event.clone()
    }
}

/// What a turn that runs has.
struct Own<'a> {
    event: Event,
    attempts: Attempts,
    session: Option<(&'a SessionKey, Session)>,
}

fn own<'a>(draft: &mut Draft<'_>, turn: &'a TurnId) -> Result<Own<'a>, TurnLost> {
    let now = draft.now();
    let EventName { team, event } = name(turn);
    let event = draft.event(team, event).ok_or(TurnLost::Claim)?;
    let attempts = event.attempts.filter(|attempts| attempts.claimed == turn.attempt);
    let attempts = attempts.ok_or(TurnLost::Claim)?;
    live_claim(&event, turn.request, now).ok_or(TurnLost::Claim)?;
    let mut session = None;
    if let Some((key, lease)) = &turn.lease {
        let found = draft.session(key);
        let is_own = |latest: &&Latest| latest.lease == *lease && !latest.released;
        match found.latest.as_ref().filter(is_own) {
            Some(latest) if latest.is_live(now) => session = Some((key, found)),
            ended => {
                return Err(TurnLost::Lease(ended.map(|ended| ended.as_lease(now).held_for())));
            }
        }
    }
    Ok(Own { event, attempts, session })
}

struct EventName<'a> {
    team: &'a Team,
    event: &'a str,
}

fn name(turn: &TurnId) -> EventName<'_> {
    EventName { team: &turn.event.team, event: &turn.event.event }
}

fn wants_turn(turn: &TurnId, wanted: &mut Wanted) {
    let EventName { team, event } = name(turn);
    wanted.event(team, [event], false);
    if let Some((key, _)) = &turn.lease {
        wanted.session(key);
    }
}

/// The record that counts, of an event with these names.
fn find<'a>(
    draft: &mut Draft<'_>,
    team: &Team,
    names: impl Iterator<Item = &'a str>,
    request: RequestId,
) -> Option<Event> {
    let now = draft.now();
    let found = names.enumerate().filter_map(|(place, name)| {
        let event = draft.event(team, name).filter(|event| event.expire_time > now)?;
        // What an alias was taken with is another delivery's payload.
        let digest = event.digest.filter(|_| place == 0);
        Some((place, Event { digest, ..event }))
    });
    found
        .min_by_key(|(place, event)| {
            let is_live = event.is_live(now);
            let is_own = is_live && event.request == Some(request);
            let attempt = event.attempts.map(|attempts| attempts.claimed);
            (!is_live, !is_own, Reverse(attempt), *place)
        })
        .map(|(_, event)| event)
}

/// A claim that runs, of this attempt.
fn live_claim(event: &Event, request: RequestId, now: Timestamp) -> Option<Claim> {
    match event.row(now) {
        EventRow::Claimed(claim) if claim.request == request && event.is_live(now) => Some(claim),
        _ => None,
    }
}
