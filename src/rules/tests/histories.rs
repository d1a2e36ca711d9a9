//! What holds through any history of operations, some of which are decided on records that
//! others have changed since.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Event, EventKey, FencingToken, Finish, FinishAs, LeaseId, Notice, Operation as _, Plan,
    SessionKey, State, Version, World, key,
    random::{Answer, Chooser, Op},
};
use crate::domain::{Begun, Claim, EventRow, Obtained, Team};

/// A decision that is still to be written.
struct Pending {
    op: Op,
    answer: Answer,
    plan: Plan,
}

/// A history, and what is known of it.
struct History {
    world: World,
    chooser: Chooser,
    /// The highest token of each session so far, also of those that were deleted.
    tokens: BTreeMap<SessionKey, FencingToken>,
    /// All leases that were granted.
    leases: BTreeSet<LeaseId>,
    grants: usize,
    conflicts: usize,
}

impl History {
    /// Decides a random operation on what is on record.
    fn decide(&mut self) -> Pending {
        let op = self.chooser.op(&self.world);
        let (plan, answer) = self.world.decide(&op);
        is_next(&self.world, &plan.notices);
        if !plan.is_empty() {
            rests_on_what_it_writes(&self.world, &plan);
        }
        Pending { op, answer, plan }
    }

    /// Writes a decision, unless what it rests on has changed.
    fn write(&mut self, Pending { op, answer, plan }: Pending) {
        let before = self.world.copy(0);
        let is_empty = plan.is_empty();
        if !self.world.apply(plan) {
            self.conflicts += 1;
            assert_eq!(self.world.events, before.events);
            assert_eq!(self.world.sessions, before.sessions);
            if self.chooser.one_in(2) {
                // An earlier run may have written it, as far as is known.
                op.spend();
                let (plan, answer) = self.world.decide(&op);
                self.write(Pending { op, answer, plan });
            }
            return;
        }
        self.chooser.note(&op, &answer);
        self.tokens_rise(&before);
        holder_stays(&before, &self.world, &op);
        claims_stay(&before, &self.world, &op);
        attempts_stay(&before, &self.world, &op);
        if !is_empty {
            is_true(&self.world, &op, &answer);
        }
    }

    fn tokens_rise(&mut self, before: &World) {
        for (key, session) in &self.world.sessions {
            let Some(latest) = &session.latest else { continue };
            let was = before.sessions.get(key).and_then(|session| session.latest.as_ref());
            let highest = self.tokens.entry(key.clone()).or_default();
            if was.is_none_or(|was| was.lease != latest.lease) {
                assert!(latest.token > *highest, "{latest:?} after {highest:?}");
                let is_new = latest.released || self.leases.insert(latest.lease);
                assert!(is_new, "{latest:?} is granted twice");
                self.grants += usize::from(!latest.released);
            }
            assert!(latest.token >= *highest);
            *highest = latest.token;
        }
    }

    /// What the store does by itself: deletes what has expired, and notes which servers run.
    fn maintain(&mut self) {
        let now = self.world.now;
        self.world.events.retain(|_, event| event.expire_time > now);
        let World { sessions, floor, .. } = &mut self.world;
        sessions.retain(|_, session| {
            let latest = session.latest.as_ref();
            let is_kept = latest.is_none_or(|latest| {
                latest.is_live(now) || latest.waiting || latest.token.0 > now.as_micros()
            });
            if !is_kept && let Some(latest) = latest {
                *floor = latest.token.max(*floor);
            }
            is_kept
        });
        if let Some(session) = sessions.get_mut(&key("s")) {
            for place in &mut session.queue {
                place.is_there = !self.chooser.one_in(4);
            }
        }
    }

    fn run(seed: u64) -> Self {
        let mut history = Self {
            world: World::new(),
            chooser: Chooser::of(seed),
            tokens: BTreeMap::new(),
            leases: BTreeSet::new(),
            grants: 0,
            conflicts: 0,
        };
        let mut pending = Vec::new();
        for _ in 0..150 {
            match history.chooser.below(10) {
                0 => history.chooser.wait(&mut history.world),
                1 if history.chooser.one_in(4) => history.world.step_back(5_000),
                1 => history.maintain(),
                2 | 3 => pending.push(history.decide()),
                4 if !pending.is_empty() => {
                    let place = history.chooser.below(pending.len());
                    let late = pending.swap_remove(place);
                    history.write(late);
                }
                _ => {
                    let decided = history.decide();
                    history.write(decided);
                }
            }
        }
        history
    }
}

/// A hand-over goes to the first in the queue that may have the session.
fn is_next(world: &World, notices: &[Notice]) {
    let handed = notices.iter().find_map(|notice| match notice {
        Notice::Handed(lease) => Some(*lease),
        _ => None,
    });
    let Some(handed) = handed else { return };
    let session = &world.sessions[&key("s")];
    let bound = session.latest.as_ref().and_then(|latest| latest.epic.as_deref());
    let mut eligible = Vec::new();
    for place in &session.queue {
        let fits = match (bound, place.epic.as_deref()) {
            (Some(bound), Some(epic)) => bound == epic,
            _ => true,
        };
        if place.is_there && place.left_at.is_none() && fits {
            eligible.push((place.ticket, place.lease));
        }
    }
    assert_eq!(eligible.iter().min().map(|(_, lease)| *lease), Some(handed));
}

/// A plan rests on each record that it writes: if that has changed, it is not written.
fn rests_on_what_it_writes(world: &World, plan: &Plan) {
    let changed = |change: &dyn Fn(&mut World)| {
        let mut other = world.copy(0);
        change(&mut other);
        !other.holds(plan)
    };
    assert!(world.holds(plan));
    for write in &plan.writes.sessions {
        assert!(plan.sessions.contains_key(&write.key));
        let is_noticed = changed(&|other| {
            let session = other.sessions.entry(write.key.clone()).or_default();
            match &mut session.latest {
                Some(latest) => latest.version = Version(1),
                None => other.sessions.extend(some_session(&write.key)),
            }
        });
        assert!(is_noticed, "{plan:?}");
    }
    for (key, event) in &plan.writes.puts {
        let is_noticed = changed(&|other| {
            let event = Event { version: Version(1), ..event.clone() };
            other.events.insert(key.clone(), event);
        });
        assert!(is_noticed, "{plan:?}");
    }
    for update in &plan.writes.updates {
        assert!(plan.events.values().any(|version| *version == Some(update.was)), "{plan:?}");
    }
}

fn some_session(of: &SessionKey) -> Option<(SessionKey, super::Session)> {
    let mut world = World::new();
    world.run(super::acquire(1));
    Some((of.clone(), world.sessions.remove(&key("s"))?))
}

/// A lease that runs passes to nobody, unless it is released, or an operator takes it away.
fn holder_stays(before: &World, after: &World, op: &Op) {
    for (key, session) in &before.sessions {
        let Some(was) = session.latest.as_ref().filter(|latest| latest.is_live(before.now)) else {
            continue;
        };
        let now = after.sessions.get(key).and_then(|session| session.latest.as_ref());
        let is_kept = now.is_some_and(|now| now.lease == was.lease && now.is_live(after.now));
        let may_end = match op {
            Op::Release(release) => release.lease == was.lease,
            Op::Finish(finish) => finish.turn.lease == Some((key.clone(), was.lease)),
            // Written so late that it has lapsed by then.
            Op::Renew(renew) => renew.lease == was.lease,
            Op::RenewTurn(prolong) => prolong.turn.lease == Some((key.clone(), was.lease)),
            Op::Force(_) | Op::Close(_) => true,
            _ => false,
        };
        assert!(is_kept || may_end, "{op:?}");
    }
}

/// A record that is live is replaced by no other, unless its turn ends, or it is forgotten.
fn claims_stay(before: &World, after: &World, op: &Op) {
    for (key, was) in before.events.iter().filter(|(_, event)| event.is_live(before.now)) {
        let same = |now: &&Event| now.request == was.request && attempt(now) == attempt(was);
        let is_kept = after.events.get(key).filter(same).is_some_and(|now| now.is_live(after.now));
        let may_end = match op {
            Op::Finish(Finish { turn, ending, .. }) => {
                // One that was not answered does not know its attempt.
                let is_its = attempt(was) == turn.attempt || *ending == FinishAs::Unanswered;
                was.request == Some(turn.request) && is_its
            }
            Op::Forget(of) => was.names.contains(&of.event),
            // Written so late that it has lapsed by then.
            Op::RenewTurn(prolong) => was.request == Some(prolong.turn.request),
            _ => false,
        };
        assert!(is_kept || may_end, "{key:?} of {was:?} by {op:?}");
    }
}

fn attempt(event: &Event) -> u32 {
    event.attempts.map_or(0, |attempts| attempts.claimed)
}

/// The attempts at an event never fall, unless a turn is taken back, or the event is marked or
/// forgotten, or its record has expired.
fn attempts_stay(before: &World, after: &World, op: &Op) {
    for (key, was) in before.events.iter().filter(|(_, event)| event.expire_time > before.now) {
        let now = after.events.get(key).map_or(0, attempt);
        let may_fall = match op {
            Op::Finish(Finish { ending: FinishAs::Abandoned(claimed), .. }) => {
                *claimed == was.time && now + 1 == attempt(was)
            }
            Op::Finish(Finish { turn, ending: FinishAs::Unanswered, .. }) => {
                was.request == Some(turn.request) && now + 1 == attempt(was)
            }
            Op::Mark(_) | Op::Forget(_) => true,
            _ => false,
        };
        assert!(now >= attempt(was) || may_fall, "{key:?} of {was:?} by {op:?}");
    }
}

/// What is on record agrees with the answer that it was written for.
fn is_true(world: &World, op: &Op, answer: &Answer) {
    let row = |name: &str| {
        let key = EventKey { team: Team::stored("T"), event: name.to_owned() };
        &world.events[&key]
    };
    let holds = |lease: LeaseId| {
        let latest = world.latest();
        assert!(latest.lease == lease && !latest.released);
    };
    match (op, answer) {
        (Op::Mark(mark), Answer::Marked(EventRow::Processed(_))) => {
            for name in mark.event.names() {
                assert_eq!(row(name).request, Some(mark.request));
            }
        }
        (Op::Begin(begin), Answer::Begun(answer)) => {
            if let Begun::Granted { claim, lease, obtained } = &answer.begun {
                let has_claim = |name: &str| is_claim(row(name), claim);
                let mut names = begin
                    .event
                    .names()
                    .filter(|name| world.events.contains_key(&super::event_key(name)));
                let is_new = *obtained == Obtained::Granted;
                assert!(if is_new { names.all(has_claim) } else { names.any(has_claim) });
                if let Some(lease) = lease {
                    holds(lease.id);
                }
            }
        }
        (Op::Finish(finish), Answer::Finished(answer)) => {
            assert!(answer.finished.is_ok());
            let event = row(&finish.turn.event.event);
            assert!(!matches!(event.state, State::Claimed(until) if until > event.time));
        }
        (Op::Acquire(_), Answer::Acquired(acquired)) if acquired.row.live => {
            holds(acquired.row.lease.id);
        }
        _ => {}
    }
}

fn is_claim(event: &Event, claim: &Claim) -> bool {
    event.request == Some(claim.request)
        && attempt(event) == claim.attempt
        && event.state == State::Claimed(claim.lapse_time)
}

#[test]
fn what_always_holds_holds_through_random_histories() {
    let (mut grants, mut conflicts) = (0, 0);
    for seed in 0..200 {
        let history = History::run(seed);
        grants += history.grants;
        conflicts += history.conflicts;
    }
    assert!(grants > 1_000 && conflicts > 200, "{grants} grants, {conflicts} conflicts");
}
