//! Turns that are carried on at another replica than the one whose stream broke.

use oncegate::{
    grpc::pb::{EventState, HoldSessionLeaseRequest, IsProcessedRequest},
    store::Clock,
};
use tonic::transport::Endpoint;

use super::{
    leases::{Hold, Next},
    *,
};
use crate::harness::{
    Client, Fixture, Replica, postgres::new_database, process::Process, renew, wire::Wire,
};

/// Two replicas on one database.
async fn two_replicas() -> (Replica, Replica) {
    let url = new_database().await;
    let one = Replica::start(&url, Clock::Store, &[]).await;
    (one, Replica::start(&url, Clock::Store, &[]).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_is_carried_on_at_another_replica() {
    let (one, other) = two_replicas().await;
    let there = connect(other.server.address()).await;
    let wire = Wire::to(one.server.address()).await;
    let patient = BeginTurnRequest { grace: seconds(3), ..wish("Ev1", "first") };
    let renews = Run::begin(connect(&wire.address).await, patient).await;
    let patient = BeginTurnRequest { grace: seconds(3), ..wish("Ev2", "first") };
    let repeats = Run::begin(connect(&wire.address).await, patient).await;
    let mut first = Second::waits(other.server.address(), "Ev1").await;
    let mut second = Second::waits(other.server.address(), "Ev2").await;
    wire.cut();
    renew_turn(there.clone(), &renews.turn).await.unwrap();
    let mut repeated = Run::begin(there.clone(), wish("Ev2", "first")).await;
    assert_eq!(repeated.turn.turn_id, repeats.turn.turn_id);
    first.gets_nothing_for(Duration::from_secs(4)).await;
    second.gets_nothing().await;
    succeed(there, &renews.turn).await;
    repeated.end(TurnOutcome::Succeeded).await;
    assert!(matches!(repeated.last().await, Ok(News::Finished(_))));
    first.finds_it_handled().await;
    second.finds_it_handled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_was_taken_over_elsewhere_closes_with_its_next_renewal() {
    let (one, other) = two_replicas().await;
    let short = BeginTurnRequest { claim_ttl: seconds(6), ..wish("Ev1", "first") };
    let mut older = Run::begin(connect(one.server.address()).await, short.clone()).await;
    let mut newer = Run::begin(connect(other.server.address()).await, short).await;
    let second = Second::waits(one.server.address(), "Ev1").await;
    assert_eq!(reason(&older.last().await.unwrap_err()), "STREAM_REPLACED");
    newer.end(TurnOutcome::Succeeded).await;
    assert!(matches!(newer.last().await, Ok(News::Finished(_))));
    second.finds_it_handled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_drains_leaves_a_turn_in_its_grace_to_its_holder() {
    let (one, other) = two_replicas().await;
    let patient = BeginTurnRequest { grace: seconds(30), ..wish("Ev1", "first") };
    let wire = Wire::to(one.server.address()).await;
    let first = Run::begin(connect(&wire.address).await, patient).await;
    wire.cut();
    tokio::time::sleep(QUIET).await;
    one.server.stop().await.unwrap();
    let request = IsProcessedRequest { event: event("T1", "Ev1"), ..Default::default() };
    let event = other.client().await.is_processed(request).await.unwrap().into_inner().event;
    assert_eq!(event.unwrap().state(), EventState::InProgress);
    renew_turn(connect(other.server.address()).await, &first.turn).await.unwrap();
}

/// A lease may be shorter than the grace: it is renewed meanwhile.
async fn the_turn_is_whole_throughout_the_grace(url: &str) {
    let replica = Replica::start(url, Clock::Store, &[]).await;
    let request = BeginTurnRequest {
        claim_ttl: seconds(15),
        lease_ttl: seconds(4),
        grace: seconds(15),
        ..wish("Ev1", "first")
    };
    let channel = connect(replica.server.address()).await;
    let wire = Wire::to(replica.server.address()).await;
    let first = Run::begin(connect(&wire.address).await, request).await;
    wire.cut();
    tokio::time::sleep(Duration::from_secs(5)).await;
    renew_turn(channel, &first.turn).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_lease_outlasts_the_grace_on_postgres() {
    the_turn_is_whole_throughout_the_grace(&new_database().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_lease_outlasts_the_grace_on_sqlite() {
    let f = Fixture::sqlite().await;
    let url = f.url.clone();
    f.replica.server.stop().await.unwrap();
    the_turn_is_whole_throughout_the_grace(&url).await;
}

/// A client that finds within five seconds that its server does not answer.
async fn watchful(address: &Address) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(3))
        .keep_alive_while_idle(true)
        .connect()
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stalled_ends_no_turn_that_was_carried_on_elsewhere() {
    const STALL: Duration = Duration::from_secs(15);
    let url = new_database().await;
    let stalled = Process::start(&url, &[]).await;
    let other = Replica::start(&url, Clock::Store, &[]).await;
    let (address, there) = (other.server.address(), connect(other.server.address()).await);

    let wish = |id: &str| BeginTurnRequest { grace: seconds(3), ..wish(id, "first") };
    let mut renews = Run::begin(watchful(&stalled.address).await, wish("Ev1")).await;
    let mut repeats = Run::begin(watchful(&stalled.address).await, wish("Ev2")).await;
    let mut dies = Run::begin(watchful(&stalled.address).await, wish("Ev3")).await;
    // One whose connection lives through the stall, and its claim only by a renewal elsewhere.
    let short = BeginTurnRequest { claim_ttl: seconds(8), ..wish("Ev4") };
    let mut lives = Run::begin(connect(&stalled.address).await, short).await;
    let asking = HoldSessionLeaseRequest {
        session: session("T1", "s"),
        holder: "first".into(),
        ttl: seconds(60),
        ..Default::default()
    };
    let hold = Hold::begin(watchful(&stalled.address).await, asking).await;
    let mut of_renewed = Second::waits(address, "Ev1").await;
    let mut of_repeated = Second::waits(address, "Ev2").await;
    let of_dead = Second::waits(address, "Ev3").await;
    let mut next = Next::waits(address).await;

    stalled.stall();
    let stall = Instant::now();
    renew_turn(there.clone(), &lives.turn).await.unwrap();
    // Every client closes its connection by itself.
    for run in [&mut renews, &mut repeats, &mut dies] {
        run.last().await.unwrap_err();
    }
    renew_turn(there.clone(), &renews.turn).await.unwrap();
    let mut repeated = Run::begin(there.clone(), wish("Ev2")).await;
    Client::new(there.clone()).renew_session_lease(renew(&hold.lease)).await.unwrap();
    tokio::time::sleep(STALL.saturating_sub(stall.elapsed())).await;
    // What was told before.
    while timeout(Duration::from_millis(10), lives.events.message()).await.is_ok() {}
    stalled.resume();

    lives.renewed().await;
    // By then it has found all of the others closed.
    of_dead.gets_the_turn().await;
    of_renewed.gets_nothing().await;
    of_repeated.gets_nothing().await;
    next.gets_nothing().await;
    succeed(there, &renews.turn).await;
    of_renewed.finds_it_handled().await;
    repeated.end(TurnOutcome::Succeeded).await;
    assert!(matches!(repeated.last().await, Ok(News::Finished(_))));
    of_repeated.finds_it_handled().await;
}
