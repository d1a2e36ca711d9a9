//! What is lost, and what is done twice, between a mark and a lease; and by a turn not.
//!
//! Each way to handle an event meets the same mishap: the ways that bots have are seen
//! to fail by it, so that a turn's success means something.

use std::time::Duration;

use oncegate::grpc::pb::{
    AcquireSessionLeaseRequest, BeginTurnRequest, FinishTurnRequest, IsProcessedRequest,
    SessionLease, Turn, TurnOutcome, acquire_session_lease_response::Outcome, begin_turn_response,
    turn_service_client::TurnServiceClient,
};
use tonic::transport::Channel;

use crate::{
    harness::{Fixture, acquire, connect, event, mark, release, seconds, session},
    on_both_stores,
};

on_both_stores!(
    a_busy_thread_burns_no_event_of_a_turn,
    a_crash_loses_no_event_of_a_turn,
    two_deliveries_at_once_are_one_turn,
    a_run_that_is_taken_for_dead_does_nothing_in_a_turn,
);

/// How a bot goes about an event.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    MarkThenLock,
    LockThenMark,
    MarkAfter,
    Turns,
}

/// What a delivery found, as far as its run came.
enum Run {
    /// Somebody has handled the event, or does, or the thread is busy.
    Nothing,
    /// It is this run's to handle.
    Leased(SessionLease),
    Turn(Turn),
}

struct Bot {
    f: Fixture,
    turns: TurnServiceClient<Channel>,
    way: Way,
    /// What runs did, each under its fence: a smaller one than the last is refused.
    effects: Vec<i64>,
}

impl Bot {
    async fn new(f: Fixture, way: Way) -> Self {
        let turns = TurnServiceClient::new(connect(f.replica.server.address()).await);
        Self { f, turns, way, effects: Vec::new() }
    }

    /// The event is delivered, and a run begins, if it may.
    async fn deliver(&mut self) -> Run {
        match self.way {
            Way::MarkThenLock => {
                if !self.mark().await {
                    return Run::Nothing;
                }
                self.lock().await.map_or(Run::Nothing, Run::Leased)
            }
            Way::LockThenMark => {
                let Some(lease) = self.lock().await else { return Run::Nothing };
                if self.mark().await {
                    return Run::Leased(lease);
                }
                self.f.client.release_session_lease(release(&lease)).await.unwrap();
                Run::Nothing
            }
            Way::MarkAfter => {
                if !self.look().await {
                    return Run::Nothing;
                }
                self.lock().await.map_or(Run::Nothing, Run::Leased)
            }
            Way::Turns => {
                let begin = BeginTurnRequest {
                    event: event("T1", "Ev1"),
                    session: session("T1", "thread"),
                    holder: "bot".into(),
                    claim_ttl: seconds(30),
                    ..Default::default()
                };
                let answer = self.turns.begin_turn(begin).await.unwrap().into_inner();
                match answer.outcome.unwrap() {
                    begin_turn_response::Outcome::Granted(granted) => {
                        Run::Turn(granted.turn.unwrap())
                    }
                    _ => Run::Nothing,
                }
            }
        }
    }

    /// Whether the event is still to be handled.
    async fn look(&mut self) -> bool {
        let request = IsProcessedRequest { event: event("T1", "Ev1"), ..Default::default() };
        !self.f.client.is_processed(request).await.unwrap().into_inner().processed
    }

    async fn mark(&mut self) -> bool {
        self.f.client.mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner().first
    }

    async fn lock(&mut self) -> Option<SessionLease> {
        let request = AcquireSessionLeaseRequest { ttl: seconds(30), ..thread("bot") };
        let answer = self.f.client.acquire_session_lease(request).await.unwrap().into_inner();
        match answer.outcome.unwrap() {
            Outcome::Lease(lease) => Some(lease),
            Outcome::Held(_) => None,
        }
    }

    /// A run does what is to be done, and ends.
    async fn work(&mut self, run: Run) {
        let fence = match &run {
            Run::Nothing => return,
            Run::Leased(lease) => lease.fencing_token,
            Run::Turn(turn) => turn.lease.as_ref().unwrap().fencing_token,
        };
        // The resource keeps a stale run out; not one that comes again.
        if self.effects.last().is_none_or(|last| *last <= fence) {
            self.effects.push(fence);
        }
        match run {
            Run::Nothing => {}
            Run::Leased(lease) => {
                if self.way == Way::MarkAfter {
                    self.mark().await;
                }
                self.f.client.release_session_lease(release(&lease)).await.unwrap();
            }
            Run::Turn(turn) => {
                let outcome = TurnOutcome::Succeeded.into();
                let turn_id = turn.turn_id;
                let finish = FinishTurnRequest { turn_id, outcome, ..Default::default() };
                // Too late, it changes nothing.
                let _ = self.turns.finish_turn(finish).await;
            }
        }
    }
}

fn thread(holder: &str) -> AcquireSessionLeaseRequest {
    acquire("T1", "thread", holder)
}

/// Another run works in the thread when the event comes; it is delivered again later.
async fn a_busy_thread(f: Fixture, way: Way) -> usize {
    let mut bot = Bot::new(f, way).await;
    let busy = bot.f.client.acquire_session_lease(thread("other")).await.unwrap().into_inner();
    let Some(Outcome::Lease(lease)) = busy.outcome else { panic!("{busy:?}") };
    let run = bot.deliver().await;
    bot.work(run).await;
    bot.f.client.release_session_lease(release(&lease)).await.unwrap();
    let run = bot.deliver().await;
    bot.work(run).await;
    bot.effects.len()
}

/// A run crashes before it has done anything; the event is delivered again later.
async fn a_crash(f: Fixture, way: Way) -> usize {
    let mut bot = Bot::new(f, way).await;
    drop(bot.deliver().await);
    bot.f.clock.advance(Duration::from_mins(1));
    let run = bot.deliver().await;
    bot.work(run).await;
    bot.effects.len()
}

/// Two replicas have the event at once: one works, and the other waits for the thread.
async fn two_at_once(f: Fixture, way: Way) -> usize {
    let mut bot = Bot::new(f, way).await;
    if way == Way::MarkAfter {
        // Both look, and both see that it is still to be handled.
        for is_new in [bot.look().await, bot.look().await] {
            assert!(is_new);
        }
        for _ in 0..2 {
            let lease = bot.lock().await.unwrap();
            bot.work(Run::Leased(lease)).await;
        }
        return bot.effects.len();
    }
    let runs = [bot.deliver().await, bot.deliver().await];
    for run in runs {
        bot.work(run).await;
    }
    let again = bot.deliver().await;
    bot.work(again).await;
    bot.effects.len()
}

/// A run stands still for longer than its lease; the event is delivered again; and
/// again, once both have ended.
async fn a_pause(f: Fixture, way: Way) -> usize {
    let mut bot = Bot::new(f, way).await;
    let slow = bot.deliver().await;
    bot.f.clock.advance(Duration::from_mins(1));
    let next = bot.deliver().await;
    bot.work(next).await;
    bot.work(slow).await;
    let last = bot.deliver().await;
    bot.work(last).await;
    bot.effects.len()
}

/// A store like that of `f`, with nothing in it.
async fn alike(f: &Fixture) -> Fixture {
    if f.url.starts_with("sqlite:") { Fixture::sqlite().await } else { Fixture::postgres().await }
}

async fn a_busy_thread_burns_no_event_of_a_turn(f: Fixture) {
    assert_eq!(a_busy_thread(alike(&f).await, Way::MarkThenLock).await, 0);
    assert_eq!(a_busy_thread(alike(&f).await, Way::LockThenMark).await, 1);
    assert_eq!(a_busy_thread(f, Way::Turns).await, 1);
}

async fn a_crash_loses_no_event_of_a_turn(f: Fixture) {
    assert_eq!(a_crash(alike(&f).await, Way::MarkThenLock).await, 0);
    assert_eq!(a_crash(alike(&f).await, Way::LockThenMark).await, 0);
    assert_eq!(a_crash(alike(&f).await, Way::MarkAfter).await, 1);
    assert_eq!(a_crash(f, Way::Turns).await, 1);
}

async fn two_deliveries_at_once_are_one_turn(f: Fixture) {
    assert_eq!(two_at_once(alike(&f).await, Way::MarkAfter).await, 2);
    assert_eq!(two_at_once(f, Way::Turns).await, 1);
}

async fn a_run_that_is_taken_for_dead_does_nothing_in_a_turn(f: Fixture) {
    assert_eq!(a_pause(f, Way::Turns).await, 1);
}
