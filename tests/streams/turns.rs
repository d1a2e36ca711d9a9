//! Turns of streams that break, on one replica.

use oncegate::grpc::pb::HoldSessionLeaseRequest;
use prost::{Message as _, bytes::Bytes};
use tokio::net::TcpStream;

use super::{
    leases::{Hold, Next, asking},
    *,
};
use crate::{
    harness::{Fixture, execute, wire::Wire},
    on_both_stores,
};

on_both_stores!(
    a_cut_stream_does_not_end_a_turn_that_was_renewed_since,
    a_cut_stream_does_not_end_a_turn_whose_lease_was_renewed_since,
    a_stream_that_begins_a_turn_again_ends_it_whoever_renewed_its_lease_before,
    a_dead_stream_does_not_end_a_turn_that_was_renewed_before_it_was_found,
    a_dead_stream_does_not_end_a_turn_that_was_begun_again_by_another,
    a_dead_stream_does_not_end_a_turn_that_was_begun_again_without_one,
    a_repetition_takes_the_turn_over_and_closes_the_older_stream,
    the_stream_that_took_a_turn_over_ends_it_when_it_breaks,
    a_repetition_that_goes_away_unanswered_leaves_no_turn_behind,
    a_holder_that_dies_keeps_the_turn_for_the_grace,
    a_holder_that_cancels_keeps_the_turn_for_the_grace,
    without_grace_a_broken_stream_ends_the_turn_at_once,
    half_closing_ends_the_turn_at_once,
    half_closing_does_not_end_a_turn_that_another_stream_has_taken_over,
    an_end_that_is_said_counts_whoever_renewed_the_turn,
    a_wrong_step_breaks_the_stream_and_is_not_counted,
    a_grace_out_of_range_is_refused_by_name,
    an_earlier_stream_that_an_older_replica_left_on_record_replaces_nobody,
    a_repetition_is_noted_under_all_names,
);

/// A server, a wire to it, and a turn over that, for whose event a second delivery waits.
struct Stage {
    f: Fixture,
    wire: Wire,
    first: Run,
    second: Second,
}

impl Stage {
    async fn new(f: Fixture, request: BeginTurnRequest) -> Self {
        let wire = Wire::to(f.replica.server.address()).await;
        let first = Run::begin(connect(&wire.address).await, request).await;
        let second = Second::waits(f.replica.server.address(), "Ev1").await;
        Self { f, wire, first, second }
    }

    async fn channel(&self) -> Channel {
        connect(self.f.replica.server.address()).await
    }

    /// The first run goes on, and ends as it says.
    async fn goes_on(mut self, turn: &Turn) {
        self.second.gets_nothing().await;
        succeed(self.channel().await, turn).await;
        self.second.finds_it_handled().await;
    }
}

async fn a_cut_stream_does_not_end_a_turn_that_was_renewed_since(f: Fixture) {
    // Renewed within the grace: the server has noticed the cut by then, or has not.
    let patient = BeginTurnRequest { grace: seconds(3), ..wish("Ev1", "first") };
    let mut stage = Stage::new(f, patient).await;
    let channel = stage.channel().await;
    stage.wire.cut();
    let renewed = renew_turn(channel, &stage.first.turn).await.unwrap();
    stage.second.gets_nothing_for(Duration::from_secs(4)).await;
    stage.goes_on(&renewed).await;
}

async fn a_cut_stream_does_not_end_a_turn_whose_lease_was_renewed_since(f: Fixture) {
    let stage = Stage::new(f, wish("Ev1", "first")).await;
    let lease = stage.first.turn.lease.clone().unwrap();
    let renewal = crate::harness::renew(&lease);
    stage.f.client.clone().renew_session_lease(renewal).await.unwrap();
    stage.wire.cut();
    let turn = stage.first.turn.clone();
    stage.goes_on(&turn).await;
}

async fn a_stream_that_begins_a_turn_again_ends_it_whoever_renewed_its_lease_before(f: Fixture) {
    let stage = Stage::new(f, wish("Ev1", "first")).await;
    let renewal = crate::harness::renew(stage.first.turn.lease.as_ref().unwrap());
    stage.f.client.clone().renew_session_lease(renewal).await.unwrap();
    stage.wire.cut();
    let again = Run::begin(stage.channel().await, wish("Ev1", "first")).await;
    assert_eq!(again.turn.turn_id, stage.first.turn.turn_id);
    drop(again);
    stage.second.gets_the_turn().await;
}

async fn a_dead_stream_does_not_end_a_turn_that_was_renewed_before_it_was_found(f: Fixture) {
    let stage = Stage::new(f, wish("Ev1", "first")).await;
    stage.wire.freeze();
    let renewed = renew_turn(stage.channel().await, &stage.first.turn).await.unwrap();
    stage.wire.cut_server();
    stage.goes_on(&renewed).await;
}

async fn a_dead_stream_does_not_end_a_turn_that_was_begun_again_by_another(f: Fixture) {
    let mut stage = Stage::new(f, wish("Ev1", "first")).await;
    stage.wire.freeze();
    let mut again = Run::begin(stage.channel().await, wish("Ev1", "first")).await;
    assert_eq!(again.turn.turn_id, stage.first.turn.turn_id);
    stage.wire.cut_server();
    stage.second.gets_nothing().await;
    again.end(TurnOutcome::Succeeded).await;
    assert!(matches!(again.last().await, Ok(News::Finished(_))));
    stage.second.finds_it_handled().await;
}

async fn a_dead_stream_does_not_end_a_turn_that_was_begun_again_without_one(f: Fixture) {
    let stage = Stage::new(f, wish("Ev1", "first")).await;
    stage.wire.freeze();
    let mut turns = TurnServiceClient::new(stage.channel().await);
    let again = turns.begin_turn(wish("Ev1", "first")).await.unwrap().into_inner();
    let Some(Outcome::Granted(again)) = again.outcome else { panic!("{again:?}") };
    stage.wire.cut_server();
    stage.goes_on(&again.turn.unwrap()).await;
}

async fn a_repetition_takes_the_turn_over_and_closes_the_older_stream(f: Fixture) {
    let mut stage = Stage::new(f, wish("Ev1", "first")).await;
    let mut again = Run::begin(stage.channel().await, wish("Ev1", "first")).await;
    // Long before its next renewal, which is due in 20 s.
    let begun = Instant::now();
    assert_eq!(reason(&stage.first.last().await.unwrap_err()), "STREAM_REPLACED");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let mut third = Run::begin(stage.channel().await, wish("Ev1", "first")).await;
    assert_eq!(reason(&again.last().await.unwrap_err()), "STREAM_REPLACED");
    drop((stage.first, again));
    stage.second.gets_nothing().await;
    third.end(TurnOutcome::Succeeded).await;
    assert!(matches!(third.last().await, Ok(News::Finished(_))));
    stage.second.finds_it_handled().await;
}

async fn the_stream_that_took_a_turn_over_ends_it_when_it_breaks(f: Fixture) {
    let stage = Stage::new(f, wish("Ev1", "first")).await;
    let again = Run::begin(stage.channel().await, wish("Ev1", "first")).await;
    drop(again);
    stage.second.gets_the_turn().await;
}

async fn a_repetition_that_goes_away_unanswered_leaves_no_turn_behind(f: Fixture) {
    let stage = Stage::new(f, wish("Ev1", "first")).await;
    // Whether its request has come to the store by then or not.
    for pause in 0..8 {
        let (steps, sent) = mpsc::channel(4);
        let again = RunTurnRequest { step: Some(Step::Begin(wish("Ev1", "first"))) };
        steps.send(again).await.unwrap();
        let mut turns = TurnServiceClient::new(stage.channel().await);
        let call = turns.run_turn(ReceiverStream::new(sent));
        let _ = timeout(Duration::from_millis(pause), call).await;
    }
    stage.wire.cut();
    stage.second.gets_the_turn().await;
}

async fn a_holder_that_dies_keeps_the_turn_for_the_grace(f: Fixture) {
    let patient = BeginTurnRequest { grace: seconds(1), ..wish("Ev1", "first") };
    let stage = Stage::new(f, patient).await;
    let died = Instant::now();
    stage.wire.cut();
    let waited = stage.second.gets_the_turn().await.duration_since(died);
    assert!(waited >= Duration::from_secs(1), "{waited:?}");
    assert!(waited < Duration::from_secs(20), "{waited:?}");
}

async fn a_holder_that_cancels_keeps_the_turn_for_the_grace(f: Fixture) {
    let patient = BeginTurnRequest { grace: seconds(1), ..wish("Ev1", "first") };
    let address = f.replica.server.address();
    let mut cancel = raw_run(address, &patient).await;
    let second = Second::waits(address, "Ev1").await;
    let cancelled = Instant::now();
    cancel.send_reset(h2::Reason::CANCEL);
    let waited = second.gets_the_turn().await.duration_since(cancelled);
    assert!(waited >= Duration::from_secs(1), "{waited:?}");
    assert!(waited < Duration::from_secs(20), "{waited:?}");
}

/// Begins a turn by a stream, and answers the caller's side of that: with tonic it is reset
/// only once it has been closed.
pub(super) async fn raw_run(address: &Address, begin: &BeginTurnRequest) -> h2::SendStream<Bytes> {
    let Address::Tcp(tcp) = address else { panic!("not TCP: {address}") };
    let tcp = TcpStream::connect(tcp).await.unwrap();
    let (client, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://{address}/oncegate.v1.TurnService/RunTurn"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let (response, mut steps) =
        client.ready().await.unwrap().send_request(request.body(()).unwrap(), false).unwrap();
    let step = RunTurnRequest { step: Some(Step::Begin(begin.clone())) };
    let length = u32::try_from(step.encoded_len()).unwrap().to_be_bytes();
    let frame = [&[0], length.as_slice(), &step.encode_to_vec()].concat();
    steps.send_data(frame.into(), false).unwrap();
    let mut events = response.await.unwrap().into_body();
    // The grant: no other caller has the event.
    assert!(!events.data().await.unwrap().unwrap().is_empty());
    steps
}

async fn without_grace_a_broken_stream_ends_the_turn_at_once(f: Fixture) {
    let hasty = BeginTurnRequest { grace: seconds(0), ..wish("Ev1", "first") };
    let stage = Stage::new(f, hasty).await;
    let died = Instant::now();
    stage.wire.cut();
    let waited = stage.second.gets_the_turn().await.duration_since(died);
    assert!(waited < Duration::from_secs(4), "less than the default: {waited:?}");
}

async fn half_closing_ends_the_turn_at_once(f: Fixture) {
    let patient = BeginTurnRequest { grace: seconds(60), ..wish("Ev1", "first") };
    let mut stage = Stage::new(f, patient).await;
    stage.first.half_close();
    assert!(matches!(stage.first.last().await, Ok(News::Finished(_))));
    stage.second.gets_the_turn().await;
}

async fn half_closing_does_not_end_a_turn_that_another_stream_has_taken_over(f: Fixture) {
    let mut stage = Stage::new(f, wish("Ev1", "first")).await;
    let again = Run::begin(stage.channel().await, wish("Ev1", "first")).await;
    stage.first.half_close();
    assert_eq!(reason(&stage.first.last().await.unwrap_err()), "STREAM_REPLACED");
    let turn = again.turn.clone();
    stage.goes_on(&turn).await;
    drop(again);
}

async fn an_end_that_is_said_counts_whoever_renewed_the_turn(f: Fixture) {
    let mut stage = Stage::new(f, wish("Ev1", "first")).await;
    renew_turn(stage.channel().await, &stage.first.turn).await.unwrap();
    stage.first.end(TurnOutcome::Succeeded).await;
    assert!(matches!(stage.first.last().await, Ok(News::Finished(_))));
    stage.second.finds_it_handled().await;
}

/// A replica of the version before takes a session, or an event, without touching
/// `resumed_by`.
async fn an_earlier_stream_that_an_older_replica_left_on_record_replaces_nobody(f: Fixture) {
    let short = BeginTurnRequest { claim_ttl: seconds(3), ..wish("Ev1", "first") };
    let mut stage = Stage::new(f, short).await;
    let holding = HoldSessionLeaseRequest { ttl: seconds(3), ..asking() };
    let mut hold = Hold::begin(stage.channel().await, holding).await;
    let next = Next::waits(stage.f.replica.server.address()).await;
    execute(
        &stage.f.url,
        "UPDATE processed_events
            SET repeated = NULL, resumed_by = '11111111111141118111111111111111';
        UPDATE oncegate_sessions
            SET repeated = false, resumed_by = '11111111111141118111111111111111'",
    )
    .await;
    for _ in 0..2 {
        stage.first.renewed().await;
        hold.renews().await;
    }
    drop(hold);
    next.gets_the_lease().await;
    // The turn's lease as well.
    drop(stage.first);
    stage.second.gets_the_turn().await;
}

async fn a_repetition_is_noted_under_all_names(f: Fixture) {
    let mut request = wish("Ev1", "first");
    request.event.as_mut().unwrap().aliases = vec!["Alias1".into(), "Zed1".into()];
    let channel = connect(f.replica.server.address()).await;
    let first = Run::begin(channel.clone(), request.clone()).await;
    let again = Run::begin(channel, request).await;
    assert_eq!(again.turn.turn_id, first.turn.turn_id);
    execute(
        &f.url,
        "CREATE TABLE noted (names integer CHECK (names = 3));
        INSERT INTO noted SELECT count(*) FROM processed_events
            WHERE repeated AND resumed_by IS NOT NULL",
    )
    .await;
}

async fn a_wrong_step_breaks_the_stream_and_is_not_counted(f: Fixture) {
    let address = f.replica.server.address();
    let patient = BeginTurnRequest { grace: seconds(30), ..wish("Ev1", "first") };
    let wrong = TurnEnd { detail: "well".into(), ..Default::default() };
    let wrong = TurnEnd { outcome: TurnOutcome::Succeeded.into(), ..wrong };
    let twice = Step::Begin(patient.clone());
    // A stream that is dropped may be half-closed before it is cancelled, which ends its turn.
    let mut streams = Vec::new();
    for (field, wrong) in [("detail", Step::End(wrong)), ("begin", twice)] {
        let mut run = Run::begin(connect(address).await, patient.clone()).await;
        run.steps.send(RunTurnRequest { step: Some(wrong) }).await.unwrap();
        let refused = run.last().await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        let named = refused.get_details_bad_request().unwrap();
        assert_eq!(named.field_violations[0].field, field);
        // It is still its holder's.
        let again = Run::begin(connect(address).await, patient.clone()).await;
        assert_eq!(again.turn.turn_id, run.turn.turn_id);
        assert_eq!(again.turn.attempt, 1);
        streams.push(again);
    }
}

async fn a_grace_out_of_range_is_refused_by_name(f: Fixture) {
    let mut turns = TurnServiceClient::new(connect(f.replica.server.address()).await);
    let with = |claim_ttl, grace| BeginTurnRequest { claim_ttl, grace, ..wish("Ev1", "first") };
    for wrong in [with(seconds(4), seconds(5)), with(None, seconds(301)), with(None, seconds(-1))] {
        let refused = turns.begin_turn(wrong.clone()).await.unwrap_err();
        let (steps, sent) = mpsc::channel(4);
        steps.send(RunTurnRequest { step: Some(Step::Begin(wrong)) }).await.unwrap();
        let kept = turns.run_turn(ReceiverStream::new(sent)).await.unwrap_err();
        for refused in [refused, kept] {
            assert_eq!(refused.code(), Code::InvalidArgument);
            let named = refused.get_details_bad_request().unwrap();
            assert_eq!(named.field_violations[0].field, "grace");
        }
    }
    // As long as the claim, or by default, with a claim that is shorter than that.
    for right in [with(seconds(4), seconds(4)), with(seconds(1), None)] {
        turns.begin_turn(right).await.unwrap();
    }
}
