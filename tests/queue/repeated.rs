//! A place in a queue that is taken up again by its request id: after a drain, or by a newer
//! call.

use std::time::Duration;

use oncegate::grpc::pb::{
    BeginTurnRequest, HoldSessionLeaseRequest, HoldSessionLeaseResponse,
    begin_turn_response::Outcome, hold_session_lease_response::News,
    turn_service_client::TurnServiceClient,
};
use tokio::{task::JoinHandle, time::timeout};
use tonic::Streaming;

use super::*;
use crate::harness::event;

crate::on_both_stores!(
    places_outlast_a_restart,
    a_turn_keeps_its_place_over_a_restart,
    a_place_that_nobody_takes_up_again_is_passed_over,
    a_place_is_kept_for_ten_seconds,
    a_newer_call_takes_the_place_of_the_older,
    a_place_taken_over_is_still_looked_after,
    a_holder_that_repeats_its_request_needs_no_place,
);

/// Who waits, first to last.
const WAITERS: [&str; 3] = ["first", "second", "third"];

/// A call that can be repeated, and no lease or wait of which ends by itself.
fn named(holder: &str) -> HoldSessionLeaseRequest {
    HoldSessionLeaseRequest {
        session: session("T1", "s"),
        holder: holder.into(),
        request_id: holder.into(),
        ttl: seconds(900),
        wait: seconds(600),
        ..Default::default()
    }
}

type Events = Streaming<HoldSessionLeaseResponse>;

/// Queues by a stream, and returns once `count` callers wait.
async fn queue(client: &Client, holder: &str, count: i32) -> Events {
    let events = client.clone().hold_session_lease(named(holder)).await.unwrap().into_inner();
    length(client, count).await;
    events
}

/// The next holder, as its stream reports; then its lease is given up.
async fn is_next(mut events: Events, holder: &str) {
    let granted = async {
        loop {
            if let Some(News::Granted(granted)) = events.message().await.unwrap().unwrap().news {
                return granted.lease.unwrap().holder;
            }
        }
    };
    let next = timeout(Duration::from_secs(30), granted).await;
    assert_eq!(next.unwrap_or_else(|_| panic!("{holder} is not next")), holder);
}

/// Why a stream ends.
async fn end(mut events: Events) -> Status {
    let end = async {
        loop {
            if let Err(status) = events.message().await {
                return status;
            }
        }
    };
    timeout(Duration::from_secs(30), end).await.expect("the end of the stream")
}

fn long() -> AcquireSessionLeaseRequest {
    AcquireSessionLeaseRequest { ttl: seconds(900), ..waiting("holder") }
}

async fn places_outlast_a_restart(mut f: Fixture) {
    let lease = take(&mut f.client, long()).await;
    let mut drained = Vec::new();
    for (place, holder) in (1..).zip(WAITERS) {
        drained.push(queue(&f.client, holder, place).await);
    }
    let mut f = f.restarted(&[]).await;
    for events in drained {
        assert_eq!(end(events).await.code(), Code::Unavailable);
    }
    length(&f.client, 0).await;
    let fourth = queue(&f.client, "fourth", 1).await;
    // They come back in another order than they came in.
    let third = queue(&f.client, "third", 2).await;
    let first = queue(&f.client, "first", 3).await;
    let second = queue(&f.client, "second", 4).await;
    give_back(&mut f.client, &lease).await;
    is_next(first, "first").await;
    is_next(second, "second").await;
    is_next(third, "third").await;
    is_next(fourth, "fourth").await;
}

/// Begins a turn as soon as the session is free, and returns once `count` callers wait.
async fn begin(f: &Fixture, digest: &str, count: i32) -> JoinHandle<Outcome> {
    let request = BeginTurnRequest {
        event: event("T1", "Ev1"),
        session: session("T1", "s"),
        holder: "first".into(),
        request_id: "first".into(),
        payload_digest: digest.into(),
        wait: seconds(600),
        ..Default::default()
    };
    let mut turns = TurnServiceClient::new(connect(f.replica.server.address()).await);
    let call = tokio::spawn(async move {
        turns.begin_turn(request).await.unwrap().into_inner().outcome.unwrap()
    });
    length(&f.client, count).await;
    call
}

async fn a_turn_keeps_its_place_over_a_restart(mut f: Fixture) {
    let lease = take(&mut f.client, long()).await;
    let drained = begin(&f, "payload", 1).await;
    let mut f = f.restarted(&[]).await;
    let drained = drained.await.unwrap();
    assert!(matches!(drained, Outcome::Busy(_)), "{drained:?}");
    let second = queue(&f.client, "second", 1).await;
    let first = begin(&f, "payload", 2).await;
    // Another payload is another delivery: it does not take that place.
    let other = begin(&f, "another payload", 3).await;
    give_back(&mut f.client, &lease).await;
    let first = first.await.unwrap();
    let Outcome::Granted(granted) = first else { panic!("{first:?}") };
    give_back(&mut f.client, &granted.turn.unwrap().lease.unwrap()).await;
    is_next(second, "second").await;
    other.abort();
}

async fn a_place_that_nobody_takes_up_again_is_passed_over(mut f: Fixture) {
    let lease = take(&mut f.client, long()).await;
    let drained = queue(&f.client, "first", 1).await;
    let mut f = f.restarted(&[]).await;
    drop(drained);
    let second = queue(&f.client, "second", 1).await;
    give_back(&mut f.client, &lease).await;
    is_next(second, "second").await;
    // A free session is granted at once, even if its place may be taken up again.
    take(&mut f.client, waiting("other")).await;
}

async fn a_place_is_kept_for_ten_seconds(mut f: Fixture) {
    let lease = take(&mut f.client, long()).await;
    let drained = queue(&f.client, "first", 1).await;
    let mut f = f.restarted(&[]).await;
    drop(drained);
    f.clock.advance(Duration::from_secs(9));
    let second = queue(&f.client, "second", 1).await;
    let first = queue(&f.client, "first", 2).await;
    give_back(&mut f.client, &lease).await;
    is_next(first, "first").await;
    is_next(second, "second").await;

    let lease = take(&mut f.client, long()).await;
    let drained = queue(&f.client, "first", 1).await;
    let f = f.restarted(&[]).await;
    drop(drained);
    f.clock.advance(Duration::from_secs(11));
    // As if the server had been away for so long.
    let mut f = f.restarted(&[]).await;
    let second = queue(&f.client, "second", 1).await;
    let first = queue(&f.client, "first", 2).await;
    give_back(&mut f.client, &lease).await;
    is_next(second, "second").await;
    is_next(first, "first").await;
}

async fn a_newer_call_takes_the_place_of_the_older(mut f: Fixture) {
    takes_over(&mut f.client.clone(), &f.client).await;
    // A call that returns as well.
    let lease = take(&mut f.client, long()).await;
    let request = AcquireSessionLeaseRequest { request_id: "first".into(), ..waiting("first") };
    let older = enqueue(&f.client, request.clone(), 1).await;
    let second = enqueue(&f.client, waiting("second"), 2).await;
    let mut client = f.client.clone();
    let newer = tokio::spawn(async move { client.acquire_session_lease(request).await });
    let replaced = older.await.unwrap().unwrap_err();
    assert_eq!(replaced.get_details_error_info().unwrap().reason, "STREAM_REPLACED");
    length(&f.client, 2).await;
    give_back(&mut f.client, &lease).await;
    let lease = granted(newer.await.unwrap().unwrap().into_inner());
    give_back(&mut f.client, &lease).await;
    assert_eq!(granted(second.await.unwrap().unwrap()).holder, "second");
}

/// A call at `there` repeats one that waits at `here`.
async fn takes_over(here: &mut Client, there: &Client) {
    let lease = take(here, long()).await;
    let older = queue(here, "first", 1).await;
    let second = queue(here, "second", 2).await;
    let newer = there.clone().hold_session_lease(named("first")).await.unwrap().into_inner();
    let replaced = end(older).await;
    assert_eq!(replaced.get_details_error_info().unwrap().reason, "STREAM_REPLACED");
    length(here, 2).await;
    give_back(here, &lease).await;
    is_next(newer, "first").await;
    is_next(second, "second").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_call_at_another_replica_takes_the_place_of_the_older() {
    let url = new_database().await;
    let replicas = Replica::start_all(2, &url, &Clock::Store).await;
    takes_over(&mut replicas[0].client().await, &replicas[1].client().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_of_a_replica_that_drains_keep_their_places_at_another() {
    let url = new_database().await;
    let drains = Replica::start(&url, Clock::Store, &[]).await;
    let stays = Replica::start(&url, Clock::Store, &[]).await;
    let (there, mut here) = (drains.client().await, stays.client().await);
    let lease = take(&mut here, long()).await;
    let mut drained = Vec::new();
    for (place, holder) in (1..).zip(WAITERS) {
        drained.push(queue(&there, holder, place).await);
    }
    let fourth = queue(&here, "fourth", 4).await;
    drains.server.stop().await.unwrap();
    for events in drained {
        assert_eq!(end(events).await.code(), Code::Unavailable);
    }
    // Those places do not count while nobody stands for them.
    length(&here, 1).await;
    let third = queue(&here, "third", 2).await;
    let second = queue(&here, "second", 3).await;
    let first = queue(&here, "first", 4).await;
    give_back(&mut here, &lease).await;
    is_next(first, "first").await;
    is_next(second, "second").await;
    is_next(third, "third").await;
    is_next(fourth, "fourth").await;
}

async fn a_place_taken_over_is_still_looked_after(mut f: Fixture) {
    take(&mut f.client, long()).await;
    let older = queue(&f.client, "first", 1).await;
    let newer = f.client.clone().hold_session_lease(named("first")).await.unwrap().into_inner();
    end(older).await;
    f.clock.advance(Duration::from_secs(901));
    is_next(newer, "first").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_call_does_not_take_what_the_newer_was_granted() {
    let url = crate::harness::postgres::new_database().await;
    let replica = Replica::start(&url, Clock::Store, &[]).await;
    let mut client = replica.client().await;
    let lease = take(&mut client, long()).await;
    let mut older = queue(&client, "first", 1).await;
    // A newer call at another replica takes the place over, and no hint of it arrives here.
    let mut database = sqlx::PgConnection::connect(&url).await.unwrap();
    database.execute("INSERT INTO oncegate_replicas VALUES ('11111111-1111-1111-1111-111111111111', now() + interval '1 hour')").await.unwrap();
    database.execute("UPDATE oncegate_waiters SET lease_id = gen_random_uuid(), replica = '11111111-1111-1111-1111-111111111111'").await.unwrap();
    give_back(&mut client, &lease).await;
    let status = loop {
        match older.message().await {
            Ok(Some(event)) => {
                assert!(!matches!(event.news, Some(News::Granted(_))), "stolen: {event:?}");
            }
            Ok(None) => panic!("the stream ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.get_details_error_info().unwrap().reason, "STREAM_REPLACED");
}

async fn a_holder_that_repeats_its_request_needs_no_place(f: Fixture) {
    // Half of the calls may wait.
    let f = f.restarted(&["--max-calls", "4"]).await;
    let mut client = f.replica.client().await;
    let ask = |holder: &str, epic: &str| AcquireSessionLeaseRequest {
        request_id: holder.into(),
        epic_id: epic.into(),
        wait: seconds(600),
        ..acquire("T1", "s", holder)
    };
    let held = take(&mut client, ask("holder", "PROJ-1")).await;
    let waiters = [
        enqueue(&client, ask("first", "PROJ-1"), 1).await,
        enqueue(&client, ask("second", "PROJ-1"), 2).await,
    ];
    let refused = client.acquire_session_lease(ask("third", "PROJ-1")).await.unwrap_err();
    assert_eq!(reason(&refused), "TOO_MANY_CALLS");
    let again = take(&mut client, ask("holder", "PROJ-1")).await;
    assert_eq!(again.lease_id, held.lease_id);
    let mismatch = client.acquire_session_lease(ask("third", "PROJ-2")).await.unwrap_err();
    assert_eq!(reason(&mismatch), "EPIC_MISMATCH");
    waiters.iter().for_each(JoinHandle::abort);
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().unwrap().reason
}
