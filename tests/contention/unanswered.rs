//! Begins that are granted a turn without an answer: the turn is given up.

use std::time::Duration;

use oncegate::{
    domain::{Acquire, Begin},
    lane::CallError,
    session::SessionError,
    store::StoreError,
    turn::Turn,
};
use tokio::time::{sleep, timeout};

use super::gone::{self, Stage};
use crate::harness::{ops, proxy::Line};

/// For as long as the test needs.
const LONG: Duration = Duration::from_secs(30);

/// A turn of the event in the session of that name, by a caller of this name.
fn begin(event: &str, name: &str) -> Begin {
    let begin = gone::begin(event, name);
    let session = Some(Acquire { request: begin.request, ..ops::acquire(event, 0) });
    Begin { session, ..begin }
}

/// Begins a turn once nothing else has it.
async fn begin_at_last(stage: &Stage, replica: usize, asked: &Begin) -> Turn {
    let begun = async {
        loop {
            match stage.begin(replica, asked.clone()).await.unwrap() {
                Some(grant) => break grant.accept(),
                None => sleep(Duration::from_millis(10)).await,
            }
        }
    };
    timeout(LONG, begun).await.expect("the turn is not given up")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_was_granted_without_an_answer_is_given_up() {
    let stage = Stage::new().await;
    // From then on, each statement is one request.
    for event in ["first", "second"] {
        begin_at_last(&stage, 0, &begin(event, event)).await;
    }
    stage.proxy.lose_answer_after(0);
    stage.proxy.hold_after(1);
    let turns = stage.turns(0);
    let caller =
        tokio::spawn(async move { turns.begin(begin("e", "caller"), Duration::ZERO).await.err() });
    stage.proxy.holds().await;
    let taken = stage.begin(1, begin("e", "next")).await.unwrap();
    assert!(taken.is_none(), "the caller was granted the turn");
    // The database is away when the replica looks for what its statement did.
    stage.proxy.set(Line::Cut);
    stage.proxy.let_pass();
    let error = caller.await.unwrap();
    let is_unknown =
        matches!(error, Some(SessionError::Call(CallError::Store(StoreError::OutcomeUnknown(_)))));
    assert!(is_unknown, "{error:?}");
    stage.proxy.set(Line::Open);
    let turn = begin_at_last(&stage, 1, &begin("e", "next")).await;
    assert_eq!(turn.id.attempt, 1, "the attempt is taken back");
}
