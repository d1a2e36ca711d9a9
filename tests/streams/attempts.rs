//! Which attempts count: what breaks on the way between holder and server does not, what the
//! holder reports does, and so does a claim that lapses.

use oncegate::{
    grpc::pb::{
        EventState, IsProcessedRequest, ListEventsRequest, ProcessedEvent, admin_service_client,
    },
    store::Clock,
};

use super::{turns::raw_run, *};
use crate::{
    harness::{
        Fixture, Replica,
        postgres::new_database,
        proxy::{Line, Proxy},
        wire::Wire,
    },
    on_both_stores,
};

on_both_stores!(
    a_broken_stream_does_not_count,
    a_cancelled_stream_does_not_count,
    half_closing_counts,
    only_what_counts_is_compared_with_the_most,
    a_drained_servers_turn_does_not_count,
    a_drain_in_the_grace_does_not_count,
    a_turn_that_is_carried_on_after_a_drain_counts_again,
    a_turn_that_was_renewed_before_a_drain_does_not_count,
    a_turn_that_is_carried_on_in_the_grace_counts_again,
    a_failure_that_is_reported_after_a_drain_counts,
    a_connection_that_is_closed_for_its_age_does_not_count,
    a_broken_stream_keeps_the_detail_of_the_failure_before,
);

/// How long claims run here. The clock stands unless a test moves it.
const CLAIM: Duration = Duration::from_mins(1);

/// Requests that are handled by the statements for sessions, for events alone, and for events
/// of several names; each for an event that may fail once.
fn wishes(id: &str) -> [BeginTurnRequest; 3] {
    let named = |kind: &str| BeginTurnRequest {
        max_attempts: 1,
        grace: seconds(0),
        ..wish(&format!("{id} {kind}"), "first")
    };
    let alone = BeginTurnRequest { session: None, ..named("alone") };
    let mut aliased = named("aliased");
    aliased.event.as_mut().unwrap().aliases = vec![format!("{id} A"), format!("{id} z")];
    [named("in a session"), alone, aliased]
}

async fn channel(f: &Fixture) -> Channel {
    connect(f.replica.server.address()).await
}

/// Asks until no other run has the event.
async fn begin(f: &Fixture, request: &BeginTurnRequest) -> Outcome {
    let mut turns = TurnServiceClient::new(channel(f).await);
    let answer = async {
        loop {
            let answer = turns.begin_turn(request.clone()).await.unwrap().into_inner();
            match answer.outcome.unwrap() {
                Outcome::InProgress(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                other => return other,
            }
        }
    };
    timeout(PATIENCE, answer).await.expect("the other run's end")
}

/// Another delivery of what is asked for.
fn again(request: &BeginTurnRequest) -> BeginTurnRequest {
    BeginTurnRequest { request_id: String::new(), ..request.clone() }
}

/// The next delivery begins attempt `attempt`.
async fn begins(f: &Fixture, request: &BeginTurnRequest, attempt: i32) -> Turn {
    match begin(f, &again(request)).await {
        Outcome::Granted(granted) => {
            let turn = granted.turn.unwrap();
            assert_eq!(turn.attempt, attempt);
            turn
        }
        other => panic!("not granted: {other:?}"),
    }
}

/// The event was given up after `attempt`.
async fn is_given_up(f: &Fixture, request: &BeginTurnRequest, attempt: i32) {
    match begin(f, &again(request)).await {
        Outcome::GaveUp(gave_up) => {
            let event = gave_up.event.unwrap();
            assert_eq!((event.outcome(), event.attempt), (TurnOutcome::GaveUp, attempt));
        }
        other => panic!("not given up: {other:?}"),
    }
}

async fn fail(f: &Fixture, turn: &Turn, detail: &str) -> ProcessedEvent {
    let request = FinishTurnRequest {
        turn_id: turn.turn_id.clone(),
        outcome: TurnOutcome::Failed.into(),
        detail: detail.into(),
        ..Default::default()
    };
    let mut turns = TurnServiceClient::new(channel(f).await);
    turns.finish_turn(request).await.unwrap().into_inner().event.unwrap()
}

/// Begins a turn over a stream, whose connection then breaks.
async fn breaks(f: &Fixture, request: &BeginTurnRequest, attempt: i32) {
    let wire = Wire::to(f.replica.server.address()).await;
    let mut client = f.client.clone();
    let ask = IsProcessedRequest { event: request.event.clone(), ..Default::default() };
    let is_free = async {
        while client.is_processed(ask.clone()).await.unwrap().into_inner().state()
            == EventState::InProgress
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, is_free).await.expect("the other run's end");
    let run = Run::begin(connect(&wire.address).await, again(request)).await;
    assert_eq!(run.turn.attempt, attempt);
    wire.cut();
}

async fn a_broken_stream_does_not_count(f: Fixture) {
    for request in wishes("Ev") {
        for attempt in 1..=3 {
            breaks(&f, &request, attempt).await;
        }
        let turn = begins(&f, &request, 4).await;
        let event = fail(&f, &turn, "").await;
        assert_eq!((event.outcome(), event.attempt), (TurnOutcome::GaveUp, 4));
        is_given_up(&f, &request, 4).await;
    }
}

async fn a_cancelled_stream_does_not_count(f: Fixture) {
    for request in wishes("Ev") {
        let mut cancel = raw_run(f.replica.server.address(), &request).await;
        cancel.send_reset(h2::Reason::CANCEL);
        begins(&f, &request, 2).await;
    }
}

async fn half_closing_counts(f: Fixture) {
    for request in wishes("Ev") {
        let mut run = Run::begin(channel(&f).await, request.clone()).await;
        run.half_close();
        let Ok(News::Finished(finished)) = run.last().await else { panic!("not finished") };
        assert_eq!(finished.event.unwrap().outcome(), TurnOutcome::GaveUp);
        is_given_up(&f, &request, 1).await;
    }
}

async fn only_what_counts_is_compared_with_the_most(f: Fixture) {
    for request in wishes("Ev") {
        let request = BeginTurnRequest { max_attempts: 3, ..request };
        breaks(&f, &request, 1).await;
        let failed = begins(&f, &request, 2).await;
        assert_eq!(fail(&f, &failed, "").await.state(), EventState::NotSeen);
        breaks(&f, &request, 3).await;
        begins(&f, &request, 4).await;
        f.clock.advance(CLAIM);
        breaks(&f, &request, 5).await;
        begins(&f, &request, 6).await;
        f.clock.advance(CLAIM);
        is_given_up(&f, &request, 6).await;
        // The event is new once the record has expired.
        f.clock.advance(Duration::from_hours(24));
        let request = BeginTurnRequest { max_attempts: 1, ..request };
        begins(&f, &request, 1).await;
        f.clock.advance(CLAIM);
        is_given_up(&f, &request, 1).await;
    }
}

/// Begins a turn of each kind over a stream, and drains the server.
async fn drained(f: Fixture, requests: &[BeginTurnRequest]) -> (Fixture, Vec<Turn>) {
    let mut runs = Vec::new();
    for request in requests {
        runs.push(Run::begin(channel(&f).await, request.clone()).await);
    }
    let f = f.restarted(&[]).await;
    let mut turns = Vec::new();
    for mut run in runs {
        let ended = run.last().await.unwrap_err();
        assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
        turns.push(run.turn);
    }
    (f, turns)
}

async fn a_drained_servers_turn_does_not_count(f: Fixture) {
    let requests = wishes("Ev");
    let (f, _) = drained(f, &requests).await;
    f.clock.advance(CLAIM);
    for request in &requests {
        let turn = begins(&f, request, 2).await;
        let event = fail(&f, &turn, "").await;
        assert_eq!((event.outcome(), event.attempt), (TurnOutcome::GaveUp, 2));
    }
    let requests = wishes("Other");
    let (f, _) = drained(f, &requests).await;
    f.clock.advance(CLAIM);
    for request in &requests {
        begins(&f, request, 2).await;
    }
    // This one lapses by itself.
    f.clock.advance(CLAIM);
    for request in &requests {
        is_given_up(&f, request, 2).await;
    }
}

async fn a_drain_in_the_grace_does_not_count(f: Fixture) {
    let [request, ..] = wishes("Ev");
    let request = BeginTurnRequest { grace: seconds(30), ..request };
    let wire = Wire::to(f.replica.server.address()).await;
    let run = Run::begin(connect(&wire.address).await, request.clone()).await;
    wire.cut();
    tokio::time::sleep(QUIET).await;
    let f = f.restarted(&[]).await;
    f.clock.advance(CLAIM);
    begins(&f, &request, 2).await;
    drop(run);
}

async fn a_turn_that_is_carried_on_after_a_drain_counts_again(f: Fixture) {
    let renewed = wishes("renewed");
    let repeated = wishes("repeated");
    let requests = [renewed.clone(), repeated.clone()].concat();
    let (f, turns) = drained(f, &requests).await;
    for turn in &turns[..3] {
        renew_turn(channel(&f).await, turn).await.unwrap();
    }
    for (request, turn) in repeated.iter().zip(&turns[3..]) {
        let Outcome::Granted(granted) = begin(&f, request).await else { panic!("not granted") };
        assert_eq!(granted.turn.unwrap().turn_id, turn.turn_id);
    }
    f.clock.advance(CLAIM);
    for request in &requests {
        is_given_up(&f, request, 1).await;
    }
}

async fn a_turn_that_was_renewed_before_a_drain_does_not_count(f: Fixture) {
    let [request, ..] = wishes("Ev");
    let mut run = Run::begin(channel(&f).await, request.clone()).await;
    renew_turn(channel(&f).await, &run.turn).await.unwrap();
    let f = f.restarted(&[]).await;
    assert_eq!(run.last().await.unwrap_err().code(), Code::Unavailable);
    f.clock.advance(CLAIM);
    begins(&f, &request, 2).await;
}

async fn a_turn_that_is_carried_on_in_the_grace_counts_again(f: Fixture) {
    let [request, ..] = wishes("Ev");
    // The stream renews the turn every second.
    let request = BeginTurnRequest { claim_ttl: seconds(3), grace: seconds(3), ..request };
    let wire = Wire::to(f.replica.server.address()).await;
    let run = Run::begin(connect(&wire.address).await, request.clone()).await;
    wire.cut();
    renew_turn(channel(&f).await, &run.turn).await.unwrap();
    tokio::time::sleep(QUIET + QUIET / 2).await;
    // It is in its grace still.
    let f = f.restarted(&[]).await;
    f.clock.advance(CLAIM);
    is_given_up(&f, &request, 1).await;
}

async fn a_failure_that_is_reported_after_a_drain_counts(f: Fixture) {
    let requests = wishes("Ev");
    let (f, turns) = drained(f, &requests).await;
    for (request, turn) in requests.iter().zip(&turns) {
        assert_eq!(fail(&f, turn, "").await.outcome(), TurnOutcome::GaveUp);
        is_given_up(&f, request, 1).await;
    }
}

async fn a_connection_that_is_closed_for_its_age_does_not_count(f: Fixture) {
    let flags = ["--max-connection-age", "300ms", "--max-connection-age-grace", "100ms"];
    let f = f.restarted(&flags).await;
    let [request, ..] = wishes("Ev");
    let mut run = Run::begin(channel(&f).await, request.clone()).await;
    assert_eq!(run.last().await.unwrap_err().code(), Code::Unavailable);
    f.clock.advance(CLAIM);
    begins(&f, &request, 2).await;
}

async fn a_broken_stream_keeps_the_detail_of_the_failure_before(f: Fixture) {
    let mut admin = admin_service_client::AdminServiceClient::new(channel(&f).await);
    for request in wishes("Ev") {
        let request = BeginTurnRequest { max_attempts: 2, ..request };
        let turn = begins(&f, &request, 1).await;
        fail(&f, &turn, "timeout").await;
        breaks(&f, &request, 2).await;
        begins(&f, &request, 3).await;
        f.clock.advance(CLAIM);
        let listed = admin.list_events(ListEventsRequest::default()).await.unwrap().into_inner();
        let listed = listed.events.iter().find(|event| event.attempt == 3).unwrap();
        assert_eq!((listed.state(), listed.detail.as_str()), (EventState::NotSeen, "timeout"));
        is_given_up(&f, &request, 3).await;
    }
}

/// A drain does not wait for a store that does not answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_goes_on_without_the_store() {
    let url = new_database().await;
    let proxy = Proxy::start_for("oncegate", &url, Line::Open).await;
    let replica = Replica::start(&proxy.url, Clock::Store, &[]).await;
    let [request, ..] = wishes("Ev");
    let mut run = Run::begin(connect(replica.server.address()).await, request).await;
    proxy.set(Line::Mute);
    let asked = Instant::now();
    let stopping = tokio::spawn(replica.server.stop());
    assert_eq!(run.last().await.unwrap_err().code(), Code::Unavailable);
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    stopping.await.unwrap().unwrap();
}
