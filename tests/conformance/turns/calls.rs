//! Turns that a call keeps for as long as it lives.

use oncegate::grpc::pb::{
    RunTurnRequest, RunTurnResponse, TurnEnd, run_turn_request::Step, run_turn_response::News,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::*;

on_all_stores!(
    a_call_keeps_its_turn_until_it_says_how_that_ends,
    a_call_that_goes_away_has_failed,
    a_call_that_waits_is_told_its_place_and_then_what_there_is,
    a_call_that_says_the_wrong_thing_has_failed,
);

/// A turn that a call keeps.
pub(super) struct Kept {
    steps: mpsc::Sender<RunTurnRequest>,
    events: Streaming<RunTurnResponse>,
}

impl Kept {
    pub(super) async fn new(f: &Fixture, request: BeginTurnRequest) -> Self {
        let (steps, sent) = mpsc::channel(4);
        steps.send(RunTurnRequest { step: Some(Step::Begin(request)) }).await.unwrap();
        let call = turns(f).await.run_turn(ReceiverStream::new(sent)).await;
        Self { steps, events: call.unwrap().into_inner() }
    }

    async fn end(&self, outcome: TurnOutcome) {
        let result = if outcome == TurnOutcome::Succeeded { "done".into() } else { Vec::new() };
        self.end_with(TurnEnd { outcome: outcome.into(), result, ..Default::default() }).await;
    }

    pub(super) async fn end_with(&self, end: TurnEnd) {
        self.steps.send(RunTurnRequest { step: Some(Step::End(end)) }).await.unwrap();
    }

    pub(super) async fn next(&mut self) -> Result<Option<News>, Status> {
        let next = tokio::time::timeout(Duration::from_secs(30), self.events.message());
        Ok(next.await.expect("an event")?.map(|answer| answer.news.unwrap()))
    }

    pub(super) async fn event(&mut self) -> News {
        self.next().await.unwrap().unwrap()
    }

    pub(super) async fn turn(&mut self) -> Turn {
        match self.event().await {
            News::Granted(granted) => granted.turn.unwrap(),
            other => panic!("not granted: {other:?}"),
        }
    }
}

async fn a_call_keeps_its_turn_until_it_says_how_that_ends(mut f: Fixture) {
    let short = BeginTurnRequest { claim_ttl: seconds(3), ..wish("Ev1", "a") };
    let mut kept = Kept::new(&f, short).await;
    let mine = kept.turn().await;
    // For longer than its claim and its lease were to run.
    for _ in 0..3 {
        f.clock.advance(Duration::from_millis(1_200));
        let News::Renewed(renewed) = kept.event().await else { panic!("not renewed") };
        let renewed = renewed.turn.unwrap();
        assert_eq!((&renewed.turn_id, renewed.remaining), (&mine.turn_id, seconds(3)));
        assert_eq!(renewed.lease.unwrap().remaining, seconds(3));
    }
    assert_eq!(look(&mut f, "Ev1").await.state(), EventState::InProgress);
    kept.end(TurnOutcome::Succeeded).await;
    let finished = loop {
        match kept.event().await {
            News::Renewed(_) => {}
            News::Finished(finished) => break finished.event.unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(finished.outcome(), TurnOutcome::Succeeded);
    assert_eq!(kept.next().await.unwrap(), None);
    assert_eq!(look(&mut f, "Ev1").await, finished);
    let mut again = Kept::new(&f, wish("Ev1", "b")).await;
    let News::Duplicate(duplicate) = again.event().await else { panic!("no duplicate") };
    assert_eq!(duplicate.result, b"done");
    assert_eq!(again.next().await.unwrap(), None);
}

async fn a_call_that_goes_away_has_failed(mut f: Fixture) {
    for attempt in 1..=4 {
        let patient = BeginTurnRequest { wait: seconds(60), ..wish("Ev1", "a") };
        let mut kept = Kept::new(&f, patient).await;
        assert_eq!(kept.turn().await.attempt, attempt);
        match attempt {
            // Without a word, or at the end of what it had to say.
            1 | 2 => drop(kept),
            3 => {
                drop(kept.steps);
                let told = kept.events.message().await.unwrap().unwrap().news.unwrap();
                assert!(matches!(told, News::Finished(_)), "{told:?}");
            }
            _ => {
                kept.end(TurnOutcome::Failed).await;
                let News::Finished(finished) = kept.event().await else { panic!() };
                assert_eq!(finished.event.unwrap().state(), EventState::NotSeen);
            }
        }
        // The event is free again at once, as the session is.
        let ended = async { while look(&mut f, "Ev1").await.state() != EventState::NotSeen {} };
        tokio::time::timeout(Duration::from_secs(20), ended).await.expect("the turn's end");
    }
}

async fn a_call_that_waits_is_told_its_place_and_then_what_there_is(f: Fixture) {
    let mut turns = turns(&f).await;
    let mine = turn(begin(&mut turns, wish("Ev1", "a")).await);
    let mut claimed = Kept::new(&f, wish("Ev1", "b")).await;
    assert!(matches!(claimed.event().await, News::InProgress(_)));
    let mut busy = Kept::new(&f, wish("Ev2", "b")).await;
    assert!(matches!(busy.event().await, News::Busy(_)));
    assert_eq!(busy.next().await.unwrap(), None);
    let patient = BeginTurnRequest { wait: seconds(60), ..wish("Ev2", "b") };
    let mut waiter = Kept::new(&f, patient).await;
    match waiter.event().await {
        News::Queued(queued) => assert_eq!(queued.position, 1),
        other => panic!("{other:?}"),
    }
    finish(&mut turns, &mine, TurnOutcome::Succeeded).await.unwrap();
    assert_eq!(waiter.turn().await.attempt, 1);
}

async fn a_call_that_says_the_wrong_thing_has_failed(mut f: Fixture) {
    let (steps, sent) = mpsc::channel(4);
    let end = TurnEnd { outcome: TurnOutcome::Failed.into(), ..Default::default() };
    steps.send(RunTurnRequest { step: Some(Step::End(end)) }).await.unwrap();
    let refused = turns(&f).await.run_turn(ReceiverStream::new(sent)).await.unwrap_err();
    refuses("begin", &refused);
    let (steps, sent) = mpsc::channel(4);
    let wrong = BeginTurnRequest { max_attempts: 101, ..wish("Ev1", "a") };
    steps.send(RunTurnRequest { step: Some(Step::Begin(wrong)) }).await.unwrap();
    let refused = turns(&f).await.run_turn(ReceiverStream::new(sent)).await.unwrap_err();
    refuses("max_attempts", &refused);

    let mut kept = Kept::new(&f, wish("Ev1", "a")).await;
    kept.turn().await;
    kept.end(TurnOutcome::GaveUp).await;
    refuses("outcome", &kept.next().await.unwrap_err());
    let ended = async { while look(&mut f, "Ev1").await.state() != EventState::NotSeen {} };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("the turn's end");
}
