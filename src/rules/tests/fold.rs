//! Operations that are decided in one draft come to what they come to one after the other.

use super::{
    Session, World,
    random::{Answer, Chooser, Op},
};
use crate::{
    domain::{Enqueued, SessionKey},
    rules::Notice,
};

/// The same, without the ticket that the store gives a place.
fn without_ticket(answer: Answer) -> Answer {
    match answer {
        Answer::Enqueued(Enqueued::Waits(_)) => Answer::Enqueued(Enqueued::Waits(0)),
        Answer::Enqueued(Enqueued::TookOver(_, earlier)) => {
            Answer::Enqueued(Enqueued::TookOver(0, earlier))
        }
        other => other,
    }
}

fn sessions(world: &World) -> Vec<(SessionKey, Session)> {
    let mut sessions: Vec<_> = world.sessions.clone().into_iter().collect();
    for (_, session) in &mut sessions {
        session.queue.iter_mut().for_each(|place| place.ticket = None);
    }
    sessions
}

/// What operations come to one after the other.
fn run_each(
    world: &mut World,
    chooser: &mut Chooser,
    count: usize,
) -> Vec<(Op, Answer, Vec<Notice>)> {
    let mut ran = Vec::new();
    for _ in 0..count {
        let op = chooser.op(world);
        let (answer, notices) = world.run_noting(&op);
        chooser.note(&op, &answer);
        ran.push((op, answer, notices));
    }
    ran
}

fn compare(seed: u64) {
    let mut chooser = Chooser::of(seed);
    let mut world = World::new();
    for round in 0..12 {
        chooser.wait(&mut world);
        let (mut one_by_one, mut folded) = (world.copy(round), world.copy(round));
        let count = 2 + chooser.below(5);
        let ran = run_each(&mut one_by_one, &mut chooser, count);
        let ops: Vec<&Op> = ran.iter().map(|(op, ..)| op).collect();
        let (plan, answers) = folded.fold(&ops);
        for ((op, answer, _), in_fold) in ran.iter().zip(answers) {
            let (answer, in_fold) = (without_ticket(answer.clone()), without_ticket(in_fold));
            assert_eq!(in_fold, answer, "seed {seed}: {op:#?} among {ops:#?}");
        }
        let notices: Vec<Notice> = ran.iter().flat_map(|(.., notices)| notices.clone()).collect();
        assert_eq!(plan.notices, notices, "seed {seed}: {ops:#?}");
        assert!(folded.apply(plan), "seed {seed}: nothing has changed since");
        assert_eq!(sessions(&folded), sessions(&one_by_one), "seed {seed}: {ops:#?}");
        assert_eq!(folded.events, one_by_one.events, "seed {seed}: {ops:#?}");
        assert_eq!(folded.floor, one_by_one.floor, "seed {seed}: {ops:#?}");
        world = one_by_one;
    }
}

#[test]
fn operations_in_one_draft_come_to_what_they_come_to_one_by_one() {
    for seed in 0..1_000 {
        compare(seed);
    }
}
