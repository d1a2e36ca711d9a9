//! Operations of every kind, and random ones on few keys.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    super::{
        event::ForgetEvent,
        queue::{HandOn, Leave},
        session::{BindEpic, CloseSession, ForceRelease, Released, RenewWithin},
        turn::{BeginAnswer, FinishAnswer, RenewTurnWithin},
    },
    Acquire, Begin, Draft, Enqueue, EventKey, Finish, FinishAs, LeaseId, MAX_HOLD, Mark, Operation,
    Release, Renew, RenewTurn, SessionKey, TurnId, Wanted, World, acquire, begin,
    begin_with_session, detail, digest, enqueue, event_key, finish, key, lease, mark, prolong,
    release, renew, succeeded, ttl,
};
use crate::{
    domain::{
        Acquired, Begun, Claim, Enqueued, EventRow, Interruption, Lease, PriorGrant, Renewed,
        ResumedBy, SessionRow, StreamId, Timestamp, TurnLost,
    },
    rules::RuleError,
};

#[derive(Debug, Clone)]
pub(super) enum Op {
    Mark(Mark),
    Forget(EventKey),
    Acquire(Acquire),
    Release(Release),
    Renew(Renew),
    Bind(SessionKey, Option<String>),
    Force(SessionKey),
    Close(SessionKey),
    Enqueue(Enqueue),
    HandOn(SessionKey),
    Leave(SessionKey, LeaseId, bool),
    Begin(Begin),
    RenewTurn(RenewTurn),
    Finish(Finish),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Marked(EventRow),
    Forgotten(Option<EventRow>),
    Acquired(Acquired),
    Released(Released),
    Renewed(Renewed),
    Bound,
    Done(bool),
    Enqueued(Enqueued),
    HandedOn(Option<SessionRow>, Option<SessionRow>),
    Begun(Box<BeginAnswer>),
    RenewedTurn(Result<(Claim, Option<Lease>), TurnLost>),
    Finished(FinishAnswer),
}

impl Operation for Op {
    type Answer = Answer;

    fn wants(&self, wanted: &mut Wanted) {
        match self {
            Self::Mark(mark) => mark.wants(wanted),
            Self::Forget(key) => ForgetEvent(key).wants(wanted),
            Self::Acquire(acquire) => acquire.wants(wanted),
            Self::Release(release) => release.wants(wanted),
            Self::Renew(renew) => RenewWithin(renew, MAX_HOLD).wants(wanted),
            Self::Bind(key, epic) => BindEpic(key, epic.as_deref()).wants(wanted),
            Self::Force(key) => ForceRelease(key).wants(wanted),
            Self::Close(key) => CloseSession(key).wants(wanted),
            Self::Enqueue(enqueue) => enqueue.wants(wanted),
            Self::HandOn(key) => HandOn(key).wants(wanted),
            &Self::Leave(ref key, lease, keep) => Leave { key, lease, keep }.wants(wanted),
            Self::Begin(begin) => begin.wants(wanted),
            Self::RenewTurn(prolong) => RenewTurnWithin(prolong, MAX_HOLD).wants(wanted),
            Self::Finish(finish) => finish.wants(wanted),
        }
    }

    fn spend(&self) {
        match self {
            Self::Acquire(acquire) => acquire.spend(),
            Self::Enqueue(enqueue) => enqueue.spend(),
            Self::Begin(begin) => begin.spend(),
            Self::Release(release) => release.spend(),
            Self::Finish(finish) => finish.spend(),
            _ => {}
        }
    }

    fn decide(&self, draft: &mut Draft<'_>) -> Result<Answer, RuleError> {
        Ok(match self {
            Self::Mark(mark) => Answer::Marked(mark.decide(draft)?),
            Self::Forget(key) => Answer::Forgotten(ForgetEvent(key).decide(draft)?),
            Self::Acquire(acquire) => Answer::Acquired(acquire.decide(draft)?),
            Self::Release(release) => Answer::Released(release.decide(draft)?),
            Self::Renew(renew) => Answer::Renewed(RenewWithin(renew, MAX_HOLD).decide(draft)?),
            Self::Bind(key, epic) => {
                BindEpic(key, epic.as_deref()).decide(draft)?;
                Answer::Bound
            }
            Self::Force(key) => Answer::Done(ForceRelease(key).decide(draft)?),
            Self::Close(key) => Answer::Done(CloseSession(key).decide(draft)?),
            Self::Enqueue(enqueue) => Answer::Enqueued(enqueue.decide(draft)?),
            Self::HandOn(key) => {
                let (row, handed) = HandOn(key).decide(draft)?;
                Answer::HandedOn(row, handed)
            }
            &Self::Leave(ref key, lease, keep) => {
                Answer::Done(Leave { key, lease, keep }.decide(draft)?)
            }
            Self::Begin(begin) => Answer::Begun(Box::new(begin.decide(draft)?)),
            Self::RenewTurn(prolong) => {
                Answer::RenewedTurn(RenewTurnWithin(prolong, MAX_HOLD).decide(draft)?)
            }
            Self::Finish(finish) => Answer::Finished(finish.decide(draft)?),
        })
    }
}

/// Chooses operations by a seed, for what is on record.
pub(super) struct Chooser {
    random: StdRng,
    streams: [StreamId; 2],
    /// The latest lease that a waiter is to be given.
    lease: u128,
    /// Turns that were granted, the latest last.
    turns: Vec<TurnId>,
}

impl Chooser {
    pub(super) fn of(seed: u64) -> Self {
        let streams = [StreamId::random(), StreamId::random()];
        Self { random: StdRng::seed_from_u64(seed), streams, lease: 0, turns: Vec::new() }
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.random.random_range(0..bound)
    }

    pub(super) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn number(&mut self) -> u128 {
        self.random.random_range(1..=4)
    }

    fn stream(&mut self) -> Option<StreamId> {
        let streams = self.streams;
        streams.get(self.below(4)).copied()
    }

    fn epic(&mut self) -> Option<String> {
        ["E1", "E2"].get(self.below(6)).map(|&epic| epic.to_owned())
    }

    fn names(&mut self) -> Vec<&'static str> {
        let mut names = vec!["a", "b", "c"];
        let first = self.below(3);
        names.swap(0, first);
        names.truncate(1 + self.below(3));
        names
    }

    /// Notes a turn that was granted.
    pub(super) fn note(&mut self, op: &Op, answer: &Answer) {
        if let (Op::Begin(begin), Answer::Begun(answer)) = (op, answer)
            && let Begun::Granted { .. } = &answer.begun
        {
            self.turns.push(super::turn(begin, answer.begun.clone()));
        }
    }

    fn turn(&mut self) -> Option<TurnId> {
        let back = self.below(3);
        self.turns.iter().rev().nth(back).or(self.turns.last()).cloned()
    }

    /// The lease of the session, or one of its queue, or any.
    fn lease(&mut self, world: &World, of_waiter: bool) -> LeaseId {
        let Some(session) = world.sessions.get(&key("s")) else { return lease(9_999) };
        let places: Vec<LeaseId> = session.queue.iter().map(|waiter| waiter.lease).collect();
        if of_waiter && !places.is_empty() {
            return places[self.below(places.len())];
        }
        session.latest.as_ref().map_or(lease(9_999), |latest| latest.lease)
    }

    fn acquire(&mut self, world: &World) -> Acquire {
        let number = self.number();
        let id = self.lease(world, false);
        let resumes = Some(PriorGrant { id, resumed: self.resumed() }).filter(|_| self.one_in(2));
        Acquire { epic: self.epic(), stream: self.stream(), resumes, ..acquire(number) }
    }

    /// Who is said to have carried something on.
    fn resumed(&mut self) -> ResumedBy {
        if self.one_in(2) { ResumedBy::Nobody } else { ResumedBy::of(self.stream()) }
    }

    /// When this event was claimed, or another time.
    fn claim_time(&mut self, world: &World, event: &EventKey) -> Timestamp {
        let event = world.events.get(event).filter(|_| !self.one_in(4));
        event.map_or(world.now, |event| event.time)
    }

    fn ending(&mut self, world: &World, turn: &TurnId) -> FinishAs {
        match self.below(6) {
            0 => succeeded("done"),
            1 => FinishAs::Rejected(Some(detail("bad")), ttl(600)),
            2 => FinishAs::Failed(Some(detail("no"))),
            3 => FinishAs::Broken,
            4 => FinishAs::Unanswered,
            _ => FinishAs::Abandoned(self.claim_time(world, &turn.event)),
        }
    }

    fn begin(&mut self, world: &World) -> Begin {
        let (number, names) = (self.number(), self.names());
        let mut begin =
            if self.one_in(2) { begin(number, &names) } else { begin_with_session(number, &names) };
        if self.one_in(4) {
            begin.event.digest = Some(digest(self.number()));
        }
        if let Some(acquire) = begin.session.as_mut().filter(|_| self.one_in(4)) {
            // As if an earlier run of it had been granted the lease.
            acquire.lease = self.lease(world, false).into();
            acquire.lease.spend();
        }
        let id = self.claim_time(world, &begin.event.key);
        begin.resumes = Some(PriorGrant { id, resumed: self.resumed() }).filter(|_| self.one_in(2));
        match self.stream() {
            Some(stream) => begin.kept_by(stream),
            None => begin,
        }
    }

    pub(super) fn op(&mut self, world: &World) -> Op {
        let session = key("s");
        match self.below(20) {
            0 => {
                let (number, names) = (self.number(), self.names());
                Op::Mark(mark(number, &names))
            }
            1 => Op::Forget(event_key(self.names()[0])),
            2 | 3 => Op::Acquire(self.acquire(world)),
            4 => {
                let unless_resumed = self.stream();
                Op::Release(Release { unless_resumed, ..release(self.lease(world, false)) })
            }
            5 => {
                let stream = self.stream();
                Op::Renew(Renew { stream, ..renew(self.lease(world, false)) })
            }
            6 => Op::Bind(session, self.epic()),
            7 => Op::Force(session),
            8 => Op::Close(session),
            9..=11 => {
                self.lease += 1;
                let mut enqueue = enqueue(self.number(), self.lease);
                enqueue.acquire.epic = self.epic();
                let place = self.lease(world, true);
                enqueue.takes_over = Some(place).filter(|_| self.one_in(2));
                Op::Enqueue(enqueue)
            }
            12 => Op::HandOn(session),
            13 => Op::Leave(session, self.lease(world, true), self.one_in(2)),
            14..=16 => Op::Begin(self.begin(world)),
            17 => match self.turn() {
                Some(turn) => {
                    let (stream, interruption) = (self.stream(), Some(Interruption::Drained));
                    let interruption = interruption.filter(|_| self.one_in(3));
                    Op::RenewTurn(RenewTurn { stream, interruption, ..prolong(&turn) })
                }
                None => Op::HandOn(session),
            },
            _ => match self.turn() {
                Some(turn) => {
                    let unless_resumed = self.stream();
                    Op::Finish(Finish {
                        unless_resumed,
                        ..finish(&turn, self.ending(world, &turn))
                    })
                }
                None => Op::Acquire(self.acquire(world)),
            },
        }
    }

    /// Lets time pass: mostly little.
    pub(super) fn wait(&mut self, world: &mut World) {
        let millis = [0, 1, 1_000, 5_000, 10_000, 30_000, 60_000][self.below(7)];
        world.now = world.now.plus(Duration::from_millis(millis));
    }
}
