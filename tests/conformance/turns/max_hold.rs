//! Turns whose lease was held for as long as any may be.

use oncegate::grpc::pb::{RunTurnRequest, run_turn_request::Step};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::*;

on_all_stores!(a_turn_ends_when_its_lease_was_held_for_long_enough);

/// A turn whose lease was held for as long as any may be.
async fn a_turn_ends_when_its_lease_was_held_for_long_enough(f: Fixture) {
    #[track_caller]
    fn is_max_hold(status: &Status) {
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.metadata.get("max_hold").map(String::as_str), Some("900s"), "{info:?}");
    }
    let f = f.restarted(&["--max-hold", "15m"]).await;
    let mut turns = turns(&f).await;
    let long = BeginTurnRequest {
        claim_ttl: seconds(3_600),
        lease_ttl: seconds(900),
        request_id: "r".into(),
        ..wish("Ev1", "a")
    };
    let mine = turn(begin(&mut turns, long.clone()).await);
    f.clock.advance(Duration::from_secs(898));
    // A stream carries the turn on, whose lease it cannot extend.
    let (steps, requests) = mpsc::channel(1);
    let step = Some(Step::Begin(long));
    steps.send(RunTurnRequest { step }).await.unwrap();
    let requests = ReceiverStream::new(requests);
    let mut events = turns.run_turn(requests).await.unwrap().into_inner();
    events.message().await.unwrap().unwrap();
    f.clock.advance(Duration::from_secs(2));
    let lost = loop {
        match events.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended as if nothing had happened"),
            Err(status) => break status,
        }
    };
    is_max_hold(&lost);
    let renewal = RenewTurnRequest { turn_id: mine.turn_id.clone(), ..Default::default() };
    is_max_hold(&turns.renew_turn(renewal).await.unwrap_err());
    is_max_hold(&finish(&mut turns, &mine, TurnOutcome::Succeeded).await.unwrap_err());
    is_max_hold(&finish(&mut turns, &mine, TurnOutcome::Failed).await.unwrap_err());

    // A lease that ran out earlier is just lost.
    let short =
        BeginTurnRequest { lease_ttl: seconds(10), claim_ttl: seconds(60), ..wish("Ev2", "a") };
    let mine = turn(begin(&mut turns, short).await);
    f.clock.advance(Duration::from_secs(10));
    let lost = finish(&mut turns, &mine, TurnOutcome::Succeeded).await.unwrap_err();
    let info = lost.get_details_error_info().unwrap();
    assert_eq!((info.reason.as_str(), info.metadata.len()), ("LEASE_LOST", 0));
}
