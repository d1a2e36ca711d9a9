//! Records that are a value: what the tests of the rules read, and write plans to.

mod draft;
mod event;
mod fold;
mod histories;
mod operator;
mod plan;
mod queue;
mod random;
mod session;
mod turn;
mod turn_ends;
mod turn_repeats;
mod turn_unanswered;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use uuid::Uuid;

use super::{
    Change, Draft, Event, Ids, Latest, Notice, Operation, Plan, Session, Snapshot, State, Version,
    Waiter, Wanted,
};
use crate::domain::{
    Acquire, Begin, Begun, Claim, Delivered, Detail, Enqueue, EventKey, FencingToken, Finish,
    FinishAs, Labels, Lease, LeaseId, Mark, Obtained, OwnLease, PayloadDigest, PriorGrant, Release,
    Renew, RenewTurn, RequestId, SessionKey, Team, Timestamp, Ttl, TurnId, TurnResult,
    limits::{CLAIM_TTL, EVENT_TTL, LEASE_TTL},
};

/// All records, and the clock.
struct World {
    now: Timestamp,
    floor: FencingToken,
    sessions: BTreeMap<SessionKey, Session>,
    events: BTreeMap<EventKey, Event>,
    ticket: i64,
    ids: Ids,
}

impl World {
    fn new() -> Self {
        Self {
            now: Timestamp::from_micros(1_700_000_000_000_000),
            floor: FencingToken(0),
            sessions: BTreeMap::new(),
            events: BTreeMap::new(),
            ticket: 0,
            ids: Ids::seeded(1),
        }
    }

    /// The same records, and new ids that depend on `seed`.
    fn copy(&self, seed: u64) -> Self {
        Self {
            sessions: self.sessions.clone(),
            events: self.events.clone(),
            ids: Ids::seeded(seed),
            ..*self
        }
    }

    fn wait(&mut self, millis: u64) {
        self.now = self.now.plus(Duration::from_millis(millis));
    }

    fn step_back(&mut self, millis: u64) {
        self.now = self.now.minus(Duration::from_millis(millis));
    }

    fn read(&self, wanted: &Wanted) -> Snapshot {
        let mut snapshot = Snapshot { floor: self.floor, ..Snapshot::empty(self.now) };
        for (key, with_queue) in &wanted.sessions {
            if let Some(session) = self.sessions.get(key) {
                let mut session = session.clone();
                if !with_queue && session.latest.as_ref().is_none_or(|latest| !latest.waiting) {
                    session.queue.clear();
                }
                snapshot.sessions.insert(key.clone(), session);
            }
        }
        for (key, with_result) in &wanted.events {
            if let Some(event) = self.events.get(key) {
                let mut event = event.clone();
                if let (State::Handled(_, result), false) = (&mut event.state, with_result) {
                    *result = None;
                }
                snapshot.events.insert(key.clone(), event);
            }
        }
        snapshot
    }

    /// Decides operations in one draft.
    fn fold<O: Operation>(&mut self, ops: &[O]) -> (Plan, Vec<O::Answer>) {
        let mut wanted = Wanted::default();
        for op in ops {
            op.wants(&mut wanted);
        }
        let snapshot = self.read(&wanted);
        let mut draft = Draft::new(&snapshot, &mut self.ids);
        let answers = ops.iter().map(|op| op.decide(&mut draft).unwrap()).collect();
        (draft.into_plan(), answers)
    }

    fn decide<O: Operation>(&mut self, op: O) -> (Plan, O::Answer) {
        let (plan, mut answers) = self.fold(&[op]);
        (plan, answers.remove(0))
    }

    /// Decides an operation and writes it; answers its notices too.
    fn run_noting<O: Operation>(&mut self, op: O) -> (O::Answer, Vec<Notice>) {
        let (plan, answer) = self.decide(op);
        let notices = plan.notices.clone();
        assert!(self.apply(plan), "nothing has changed since");
        (answer, notices)
    }

    fn run<O: Operation>(&mut self, op: O) -> O::Answer {
        self.run_noting(op).0
    }

    fn holds(&self, plan: &Plan) -> bool {
        let session = |key| Some(self.sessions.get(key)?.latest.as_ref()?.version);
        plan.from <= self.now
            && self.now < plan.until
            && plan.token.is_none_or(|token| token > self.floor)
            && plan.sessions.iter().all(|(key, version)| session(key) == *version)
            && plan
                .events
                .iter()
                .all(|(key, version)| self.events.get(key).map(|event| event.version) == *version)
    }

    /// Writes a plan, if all that it rests on holds.
    fn apply(&mut self, plan: Plan) -> bool {
        if !self.holds(&plan) {
            return false;
        }
        self.floor = self.floor.max(plan.writes.floor.unwrap_or_default());
        for update in plan.writes.updates {
            for name in &update.names {
                let key = EventKey { team: update.team.clone(), event: name.clone() };
                let is_put = plan.writes.puts.iter().any(|(put, _)| *put == key);
                assert!(!is_put, "{key:?} is written twice");
                let Some(row) = self.events.get(&key).filter(|row| update.is_of(row)) else {
                    continue;
                };
                let digest = row.digest;
                match &update.event {
                    Some(event) => self.events.insert(key, Event { digest, ..event.clone() }),
                    None => self.events.remove(&key),
                };
            }
        }
        self.events.extend(plan.writes.puts);
        for write in plan.writes.sessions {
            let session = self.sessions.entry(write.key.clone()).or_default();
            match write.latest {
                Change::Keep => {}
                Change::Put(latest) => session.latest = Some(latest),
                Change::Delete => session.latest = None,
            }
            session
                .queue
                .retain(|place| !write.remove.iter().any(|gone| place.ticket == Some(*gone)));
            for changed in write.change {
                let place = session.queue.iter_mut().find(|place| place.ticket == changed.ticket);
                *place.expect("a place that is changed exists") = changed;
            }
            for added in write.add {
                self.ticket += 1;
                session.queue.push(Waiter { ticket: Some(self.ticket), ..added });
            }
            if *session == Session::default() {
                self.sessions.remove(&write.key);
            }
        }
        true
    }

    /// The latest lease of the session that the tests are about.
    fn latest(&self) -> &Latest {
        self.sessions[&key("s")].latest.as_ref().unwrap()
    }

    fn latest_mut(&mut self) -> &mut Latest {
        self.sessions.get_mut(&key("s")).unwrap().latest.as_mut().unwrap()
    }

    fn queue(&self) -> &[Waiter] {
        &self.sessions[&key("s")].queue
    }

    fn queue_mut(&mut self) -> &mut [Waiter] {
        &mut self.sessions.get_mut(&key("s")).unwrap().queue
    }

    fn event(&self, name: &str) -> Option<&Event> {
        self.events.get(&event_key(name))
    }
}

fn key(session: &str) -> SessionKey {
    SessionKey { team: Team::stored("T"), session: session.to_owned() }
}

fn event_key(event: &str) -> EventKey {
    EventKey { team: Team::stored("T"), event: event.to_owned() }
}

fn request(number: u128) -> RequestId {
    RequestId::from_uuid(Uuid::from_u128(number))
}

/// A lease that a waiter is to be given.
fn lease(number: u128) -> LeaseId {
    LeaseId::from_uuid(Uuid::from_u128(number))
}

fn digest(number: u128) -> PayloadDigest {
    PayloadDigest::from_uuid(Uuid::from_u128(number))
}

fn detail(text: &str) -> Detail {
    Detail::from_row(text.to_owned())
}

fn ttl(seconds: u64) -> Ttl {
    let span = Duration::from_secs(seconds);
    let ranges = [LEASE_TTL, CLAIM_TTL, EVENT_TTL];
    ranges.into_iter().find_map(|range| Ttl::parse(Some(span), span, &range).ok()).unwrap()
}

const MAX_HOLD: Duration = Duration::from_mins(1);

/// The session `s`, for 30 seconds; each time another operation.
fn acquire(number: u128) -> Acquire {
    Acquire {
        key: key("s"),
        holder: format!("holder {number}"),
        request: request(number),
        lease: OwnLease::random(),
        ttl: ttl(30),
        epic: None,
        labels: Labels::default(),
        stream: None,
        resumes: None,
        digest: None,
    }
}

/// The same request as [`acquire`], to end in the lease of that number.
fn enqueue(number: u128, of: u128) -> Enqueue {
    Enqueue { acquire: Acquire { lease: lease(of).into(), ..acquire(number) }, takes_over: None }
}

/// The same, once it has found the lease of its request, as it is.
fn acquire_again(world: &World, number: u128) -> Acquire {
    let Latest { lease, resumed, .. } = *world.latest();
    Acquire { resumes: Some(PriorGrant { id: lease, resumed }), ..acquire(number) }
}

/// The same as [`enqueue`], once it has found the place that is to end in the lease `earlier`.
fn enqueue_again(number: u128, of: u128, earlier: u128) -> Enqueue {
    Enqueue { takes_over: Some(lease(earlier)), ..enqueue(number, of) }
}

/// The same as `begin`, once it has found the claim of its request, as it is.
fn begin_again(world: &World, begin: Begin) -> Begin {
    let Event { time, resumed, .. } = world.events[&begin.event.key].clone();
    Begin { resumes: Some(PriorGrant { id: time, resumed }), ..begin }
}

fn release(lease: LeaseId) -> Release {
    Release::new(key("s"), lease, None)
}

fn renew(lease: LeaseId) -> Renew {
    Renew { key: key("s"), lease, ttl: ttl(30), stream: None }
}

fn delivered(names: &[&str]) -> Delivered {
    let aliases = names[1..].iter().map(|&name| name.to_owned()).collect();
    Delivered::new(event_key(names[0]), aliases, None, None)
}

fn mark(number: u128, names: &[&str]) -> Mark {
    Mark { event: delivered(names), ttl: ttl(600), request: request(number) }
}

/// A turn without a session, for 60 seconds, of three attempts.
fn begin(number: u128, names: &[&str]) -> Begin {
    Begin {
        event: delivered(names),
        request: request(number),
        holder: format!("holder {number}"),
        claim_ttl: ttl(60),
        max_attempts: 3,
        session: None,
        stream: None,
        resumes: None,
        grace: Duration::ZERO,
    }
}

/// A turn with the session `s`.
fn begin_with_session(number: u128, names: &[&str]) -> Begin {
    Begin { session: Some(acquire(number)), ..begin(number, names) }
}

/// What was granted.
fn granted(begun: Begun) -> (Claim, Option<Lease>, Obtained) {
    match begun {
        Begun::Granted { claim, lease, obtained } => (claim, lease, obtained),
        other => panic!("not granted: {other:?}"),
    }
}

/// The turn that `begin` was granted.
fn turn(begin: &Begin, answer: Begun) -> TurnId {
    let (claim, lease, _) = granted(answer);
    TurnId {
        event: begin.event.key.clone(),
        request: claim.request,
        attempt: claim.attempt,
        lease: lease.map(|lease| (key("s"), lease.id)),
        max_attempts: begin.max_attempts,
    }
}

fn begun(world: &mut World, begin: &Begin) -> TurnId {
    let answer = world.run(begin);
    turn(begin, answer.begun)
}

fn finish(turn: &TurnId, ending: FinishAs) -> Finish {
    Finish::new(turn.clone(), ending, None)
}

fn succeeded(result: &str) -> FinishAs {
    let result = TurnResult { bytes: result.into(), type_name: None };
    FinishAs::Succeeded(Arc::new(result), ttl(600))
}

fn prolong(turn: &TurnId) -> RenewTurn {
    RenewTurn {
        turn: turn.clone(),
        claim_ttl: ttl(60),
        lease_ttl: ttl(30),
        stream: None,
        interruption: None,
    }
}

/// The versions of sessions and of events that a plan rests on.
fn rests_on(plan: &Plan) -> (Vec<Option<Version>>, Vec<Option<Version>>) {
    (plan.sessions.values().copied().collect(), plan.events.values().copied().collect())
}
