//! Ends of turns, and the server of tests.

use std::time::Duration;

use oncegate_client::{
    Delivery, EndOutcome, Error, EventOutcome, Hooks, KeptBy, LossReason, NotGranted, Outcome,
    Session, Turn,
    testing::{self, Server},
};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

fn delivery() -> Delivery {
    Delivery::new("T1", "E1").session("S1")
}

/// The attempt of the next delivery, once the event is free.
async fn next_attempt(gate: &oncegate_client::Gate) -> u32 {
    let turn = gate.turn(delivery()).begin().await.expect("the event is free");
    let attempt = turn.attempt();
    turn.fail("only to look").await;
    attempt
}

#[tokio::test]
async fn a_turn_that_is_dropped_fails() {
    let (gate, server) = testing::start().await;
    let scope = gate.turn(delivery()).begin().await.expect("a turn");
    let turn: Turn = scope.turn().clone();
    drop(scope);
    turn.ended().await;
    assert_eq!(server.turns("T1").await, []);
    assert_eq!(next_attempt(&gate).await, 2);
    gate.close().await;
}

#[tokio::test]
async fn a_run_that_is_dropped_fails() {
    let (gate, server) = testing::start().await;
    let (entered, has_entered) = tokio::sync::oneshot::channel();
    let run = gate.turn(delivery()).run(|turn| async move {
        let _ = entered.send(turn);
        std::future::pending::<Result<(), Error>>().await
    });
    let task = tokio::spawn(run);
    let turn = has_entered.await.expect("the body runs");
    task.abort();
    turn.ended().await;
    assert_eq!(server.turns("T1").await, []);
    assert!(matches!(turn.check(), Err(Error::TurnLost { reason: LossReason::Ended, .. })));
}

#[tokio::test]
async fn a_panic_fails_the_turn() {
    let (gate, server) = testing::start().await;
    let (entered, has_entered) = tokio::sync::oneshot::channel();
    let run = gate.turn(delivery()).run(|turn| async move {
        let _ = entered.send(turn);
        panic!("a bug");
        #[expect(unreachable_code, reason = "the type of the result")]
        Ok::<(), Error>(())
    });
    assert!(tokio::spawn(run).await.is_err_and(|error| error.is_panic()));
    has_entered.await.expect("the body has run").ended().await;
    assert_eq!(server.turns("T1").await, []);
    assert_eq!(next_attempt(&gate).await, 2);
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Receipt {
    amount: u32,
}

#[tokio::test]
async fn a_typed_duplicate() {
    let (gate, _server) = testing::start().await;
    for _ in 0..2 {
        let book = |_| async { Ok::<_, Error>(Receipt { amount: 5 }) };
        assert_eq!(gate.once(delivery()).run(book).await.expect("it ran"), Receipt { amount: 5 });
    }
    let other = gate.turn(delivery()).run(|_| async { Ok::<Vec<String>, Error>(Vec::new()) }).await;
    let Ok(Outcome::Duplicate(other)) = other else { panic!("{other:?}") };
    assert_eq!((other.result, other.outcome), (None, Some(EventOutcome::Succeeded)));
    assert!(other.undecodable.is_some());
    let other = gate.once(delivery()).run(|_| async { Ok::<Vec<String>, Error>(Vec::new()) }).await;
    assert!(matches!(other, Err(Error::Undecodable { .. })), "{other:?}");
    let Err(Error::NotGranted(why)) = gate.turn(delivery()).begin().await else {
        panic!("it is no duplicate")
    };
    let NotGranted::Duplicate(duplicate) = *why else { panic!("{why}") };
    assert_eq!(duplicate.result.decode().expect("a receipt"), Some(Receipt { amount: 5 }));
}

#[tokio::test]
async fn a_rejected_event_comes_no_more() {
    let (gate, _server) = testing::start().await;
    let reject = |turn: Turn| async move { Err::<(), _>(turn.reject("it has no command")) };
    let outcome = gate.turn(delivery()).run(reject).await.expect("an outcome");
    assert!(matches!(&outcome, Outcome::Rejected { detail, .. } if detail == "it has no command"));
    let outcome = gate.turn(delivery()).run(reject).await.expect("an outcome");
    let Outcome::Duplicate(duplicate) = outcome else { panic!("{outcome:?}") };
    assert_eq!(duplicate.outcome, Some(EventOutcome::Rejected));
    assert_eq!(duplicate.detail, "it has no command");
    // It has not run, although nothing is what a run that returns nothing stores.
    let once = gate.once(delivery()).run(|_| async { Ok::<(), Error>(()) }).await;
    assert!(matches!(once, Err(Error::NotGranted(_))), "{once:?}");
}

#[derive(Debug)]
enum Own {
    Gate(Error),
    Down,
}

impl From<Error> for Own {
    fn from(error: Error) -> Self {
        Self::Gate(error)
    }
}

impl std::fmt::Display for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("it has failed")
    }
}

impl std::error::Error for Own {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Gate(error) => Some(error),
            Self::Down => None,
        }
    }
}

#[tokio::test]
async fn only_the_error_that_is_returned_counts() {
    let (gate, _server) = testing::start().await;
    let fail = |turn: Turn| async move {
        drop(turn.reject("it has no command"));
        Err::<(), _>(Own::Down)
    };
    let failed = gate.turn(delivery()).run(fail).await;
    assert!(matches!(failed, Err(Own::Down)), "{failed:?}");
    let relay = |turn: Turn| async move {
        drop(turn.reject(""));
        Err::<(), Box<dyn std::error::Error + Send + Sync>>("rejected: too many requests".into())
    };
    gate.turn(delivery()).run(relay).await.expect_err("it is another one's refusal");
    let wrap = |turn: Turn| async move { Err::<(), Own>(turn.reject("no command").into()) };
    let outcome = gate.turn(delivery()).run(wrap).await.expect("an outcome");
    assert!(matches!(&outcome, Outcome::Rejected { detail, .. } if detail == "no command"));
}

/// Its result need not be shared between threads.
#[tokio::test]
async fn a_result_that_is_not_sync() {
    let (gate, _server) = testing::start().await;
    let run = gate.turn(delivery()).run(|_| async { Ok::<_, Error>(std::cell::Cell::new(5)) });
    let outcome = tokio::spawn(run).await.expect("no panic").expect("an outcome");
    assert!(matches!(outcome, Outcome::Ran(cell) if cell.get() == 5));
}

struct Panicking;

impl Hooks for Panicking {
    fn on_begin(&self, _: &Delivery) {
        panic!("a bug of on_begin");
    }

    fn on_lost(&self, _: LossReason) {
        panic!("a bug of on_lost");
    }

    fn on_end(&self, _: EndOutcome) {
        panic!("a bug of on_end");
    }
}

/// Reports how turns end.
struct Ends(std::sync::mpsc::Sender<EndOutcome>);

impl Hooks for Ends {
    fn on_end(&self, outcome: EndOutcome) {
        let _ = self.0.send(outcome); // the test may be over
    }
}

#[tokio::test]
async fn an_end_is_reported_although_nobody_waits_for_it() {
    let (_, server) = testing::start().await;
    let (ends, reported) = std::sync::mpsc::channel();
    let gate = server.builder().hooks(Ends(ends)).build().expect("a gate");
    let (entered, has_entered) = tokio::sync::oneshot::channel();
    let (leave, may_leave) = tokio::sync::oneshot::channel::<()>();
    let run = gate.turn(delivery()).run(|turn| async move {
        let _ = entered.send(turn);
        let _ = may_leave.await;
        Ok::<(), Error>(())
    });
    let task = tokio::spawn(run);
    let turn = has_entered.await.expect("the body runs");
    server.mute();
    leave.send(()).expect("it waits");
    while turn.held() {
        tokio::task::yield_now().await; // until its end has begun
    }
    task.abort();
    assert!(task.await.is_err_and(|error| error.is_cancelled()));
    assert!(reported.try_recv().is_err(), "the server does not know of it");
    server.unmute();
    turn.ended().await;
    assert_eq!(reported.try_recv(), Ok(EndOutcome::Succeeded));

    let second = Delivery::new("T1", "E2").session("S1");
    let turn = gate.turn(second).begin().await.expect("a turn");
    gate.close().await;
    assert_eq!(turn.lost_reason(), Some(LossReason::Closed));
    assert_eq!(reported.try_iter().collect::<Vec<_>>(), [EndOutcome::Lost]);
}

#[tokio::test]
async fn hooks_that_panic() {
    let (_, server) = testing::start().await;
    let gate = server.builder().hooks(Panicking).build().expect("a gate");
    gate.turn(delivery()).begin().await.expect("a turn").succeed(&()).await.expect("it succeeds");
    let other = Delivery::new("T1", "E2").session("S1");
    let turn = gate.turn(other.clone()).begin().await.expect("a turn");
    gate.close().await;
    assert_eq!(turn.lost_reason(), Some(LossReason::Closed));
    assert_eq!(server.turns("T1").await, []);
}

#[tokio::test]
async fn a_loss_is_reported() {
    let (gate, server) = testing::start().await;
    let turn = gate.turn(delivery()).begin().await.expect("a turn");
    let turns = server.turns("T1").await;
    assert_eq!((turns.len(), turns[0].event.as_str(), turns[0].attempt), (1, "E1", 1));
    server.lose(&Session::new("T1", "S1")).await;
    let lost = turn.lost().await;
    assert!(matches!(lost, Error::TurnLost { reason: LossReason::LeaseLost, .. }), "{lost}");
    let cause = std::error::Error::source(&lost).expect("what the server said");
    assert!(cause.to_string().contains("lease lost"), "{cause}");
    let Err(Error::TurnLost { value: Some(value), .. }) = turn.succeed(&"late".to_owned()).await
    else {
        panic!("it is not lost")
    };
    assert_eq!(value.decode::<String>().expect("a text").as_deref(), Some("late"));
}

#[tokio::test]
async fn a_closed_gate() {
    let (gate, server) = testing::start().await;
    let turn = gate.turn(delivery()).begin().await.expect("a turn");
    gate.close().await;
    gate.close().await;
    assert_eq!(turn.lost_reason(), Some(LossReason::Closed));
    assert_eq!(server.turns("T1").await, []);
    assert!(matches!(gate.turn(delivery()).begin().await, Err(Error::Closed)));
    assert!(matches!(gate.mark(delivery()).await, Err(Error::Closed)));
    gate.done().await;
}

#[tokio::test]
async fn a_drain_that_is_too_short() {
    let (gate, _server) = testing::start().await;
    let turn = gate.turn(delivery()).begin().await.expect("a turn");
    assert!(!gate.drain(Duration::from_millis(100)).await);
    assert_eq!(turn.lost_reason(), Some(LossReason::Closed));
}

/// Waits until the turn is renewed by calls.
async fn is_renewed(turn: &Turn) {
    while turn.kept_by() != KeptBy::Renew {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn turns_outlive_the_server() {
    let (gate, server) = testing::start().await;
    for end in ["kill", "drain", "mute"] {
        let delivery = Delivery::new("T1", end).session("S1");
        let ttl = Duration::from_secs(if end == "mute" { 5 } else { 45 });
        let turn = gate.turn(delivery).ttl(ttl).begin().await.expect("a turn");
        match end {
            "kill" => {
                server.kill().await;
                server.restart().await;
            }
            "drain" => {
                server.drain();
                // Its stream ends with DRAINING.
                timeout(Duration::from_secs(20), is_renewed(&turn)).await.expect("it is renewed");
                server.restart().await;
            }
            _ => {
                server.mute();
                // The silence is noticed after two fifths of the TTL.
                timeout(Duration::from_secs(20), is_renewed(&turn)).await.expect("it is renewed");
                server.unmute();
            }
        }
        let ended = turn.succeed(&()).await;
        assert!(ended.is_ok(), "{end}: {ended:?}\n{}", server.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gate_is_closed_under_a_beginning() {
    let (gate, server) = testing::start().await;
    let session = |index: u32| Session::new("T1", format!("S{index}"));
    for round in 0..5 {
        let closing = server.gate();
        let begun: Vec<_> = (0..20)
            .map(|index| {
                let request = closing.lease(session(index));
                tokio::spawn(async move { request.acquire().await.is_ok() })
            })
            .collect();
        // They are somewhere on their way.
        tokio::time::sleep(Duration::from_millis(2 * round)).await;
        closing.close().await;
        for task in begun {
            let _ = task.await.expect("no panic");
        }
        for index in 0..20 {
            let free = gate.lease(session(index)).wait(Duration::from_secs(5)).acquire().await;
            let lease = free.unwrap_or_else(|error| panic!("session {index} is held: {error}"));
            lease.release().await.expect("it is released");
        }
    }
}

#[tokio::test]
async fn a_lease_waits_and_is_released() {
    let (gate, server) = testing::start().await;
    let session = || Session::new("T1", "S1");
    let lease = gate.lease(session()).acquire().await.expect("a lease");
    let waiting = gate.lease(session()).wait(Duration::from_secs(30)).acquire();
    let waiting = tokio::spawn(waiting);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while server.waiting("T1").await != 1 {
        assert!(tokio::time::Instant::now() < deadline, "nobody waits");
    }
    let first = lease.fence();
    drop(lease);
    let second = waiting.await.expect("no panic").expect("a lease");
    assert!(second.fence() > first);
    second.release().await.expect("it is released");
    second.release().await.expect("it does nothing");
}

#[tokio::test]
async fn nothing_is_left_of_a_gate() {
    let server = Server::start([]).await;
    assert_eq!(server.waiting("T1").await, 0); // connects
    let before = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let gate = server.gate();
    let turn = gate.turn(delivery()).begin().await.expect("a turn");
    let queued = gate.turn(Delivery::new("T1", "E2").session("S1")).wait(Duration::from_secs(60));
    let queued = tokio::spawn(queued.begin());
    while server.waiting("T1").await != 1 {
        tokio::task::yield_now().await;
    }
    queued.abort();
    assert!(queued.await.is_err_and(|error| error.is_cancelled()));
    turn.succeed(&()).await.expect("it succeeds");
    // The server may hear of the one that has left the queue after it has granted the session to it.
    let last = gate.turn(Delivery::new("T1", "E3").session("S1")).wait(Duration::from_secs(60));
    let dropped = last.begin().await;
    drop(dropped.expect("a turn"));
    gate.close().await;
    drop(gate);
    // The tasks of the connections end on their own.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let alive = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        if alive <= before {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{alive} tasks are left, of {before}");
        tokio::task::yield_now().await;
    }
}
