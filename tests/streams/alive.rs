//! Streams on which nothing happens.

use oncegate::grpc::pb::{
    HoldSessionLeaseRequest, HoldSessionLeaseResponse,
    hold_session_lease_response::News as HoldNews,
};

use super::{
    leases::{Hold, asking},
    *,
};
use crate::{
    harness::{Client, Fixture, Replica},
    on_both_stores,
};

on_both_stores!(a_quiet_stream_reports_that_it_is_alive);

/// A lease that is renewed every five minutes.
pub(super) fn long() -> HoldSessionLeaseRequest {
    HoldSessionLeaseRequest { ttl: seconds(900), ..asking() }
}

/// A turn that is renewed every five minutes.
pub(super) fn long_turn(event_id: &str) -> BeginTurnRequest {
    BeginTurnRequest { claim_ttl: seconds(3_600), ..wish(event_id, "first") }
}

pub(super) async fn channel(replica: &Replica) -> Channel {
    connect(replica.server.address()).await
}

pub(super) async fn hold(
    channel: Channel,
    request: HoldSessionLeaseRequest,
) -> Streaming<HoldSessionLeaseResponse> {
    Client::new(channel).hold_session_lease(request).await.unwrap().into_inner()
}

/// Waits until a stream reports that it is alive, and returns how long it was quiet before.
async fn alive_after<T>(mut events: Streaming<T>, is_alive: impl Fn(&T) -> bool) -> Duration {
    let alive = async {
        let mut quiet = Instant::now();
        loop {
            let event = events.message().await.unwrap().unwrap();
            if is_alive(&event) {
                return quiet.elapsed();
            }
            quiet = Instant::now();
        }
    };
    timeout(Duration::from_mins(1), alive).await.expect("a sign of life")
}

async fn a_quiet_stream_reports_that_it_is_alive(f: Fixture) {
    let channel = channel(&f.replica).await;
    let held = Hold::begin(channel.clone(), long()).await;
    let waits = HoldSessionLeaseRequest {
        holder: "second".into(),
        request_id: String::new(),
        wait: seconds(600),
        ..long()
    };
    let queued = hold(channel.clone(), waits).await;
    let run = Run::begin(channel.clone(), long_turn("Ev1")).await;
    let is_alive =
        |event: &HoldSessionLeaseResponse| matches!(event.news, Some(HoldNews::Alive(_)));
    let of_run = |event: &RunTurnResponse| matches!(event.news, Some(News::Alive(_)));
    let (held, queued, run) = tokio::join!(
        alive_after(held.events, is_alive),
        alive_after(queued, is_alive),
        alive_after(run.events, of_run),
    );
    for quiet in [held, queued, run] {
        assert!((19..=40).contains(&quiet.as_secs()), "{quiet:?}");
    }
}
