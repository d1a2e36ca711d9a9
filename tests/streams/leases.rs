//! Leases of streams that break.

use oncegate::{
    grpc::pb::{
        HoldSessionLeaseRequest, HoldSessionLeaseResponse, SessionLease,
        hold_session_lease_response::News as Held,
    },
    store::Clock,
};

use super::*;
use crate::{
    harness::{
        Client, Fixture, Replica, acquire, granted, postgres::new_database, release, renew,
        wire::Wire,
    },
    on_both_stores,
};

on_both_stores!(
    a_broken_stream_keeps_a_lease_that_was_renewed_since,
    a_broken_stream_keeps_a_lease_that_was_acquired_again,
    a_stream_that_found_its_lease_is_taken_over_by_the_next,
    the_stream_that_took_a_lease_over_gives_it_back,
);

pub(super) fn asking() -> HoldSessionLeaseRequest {
    HoldSessionLeaseRequest {
        session: session("T1", "s"),
        holder: "first".into(),
        request_id: "first".into(),
        ttl: seconds(60),
        ..Default::default()
    }
}

/// A lease that a stream keeps.
pub(super) struct Hold {
    pub(super) events: Streaming<HoldSessionLeaseResponse>,
    pub(super) lease: SessionLease,
}

impl Hold {
    pub(super) async fn begin(channel: Channel, request: HoldSessionLeaseRequest) -> Self {
        let call = Client::new(channel).hold_session_lease(request).await;
        let mut events = call.unwrap().into_inner();
        let first = timeout(PATIENCE, events.message()).await.unwrap().unwrap().unwrap();
        let Some(Held::Granted(granted)) = first.news else { panic!("not granted: {first:?}") };
        Self { events, lease: granted.lease.unwrap() }
    }

    /// It is renewed.
    pub(super) async fn renews(&mut self) {
        let renewed = async {
            loop {
                match self.events.message().await.unwrap().unwrap().news.unwrap() {
                    Held::Renewed(_) => return,
                    Held::Waiting(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        };
        timeout(PATIENCE, renewed).await.expect("a renewal");
    }

    /// Why nothing more comes.
    pub(super) async fn closed(&mut self) -> Status {
        let last = async {
            loop {
                match self.events.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("it ended as if nothing had happened"),
                    Err(status) => return status,
                }
            }
        };
        timeout(PATIENCE, last).await.expect("a last word")
    }
}

/// Another caller that waits for the session.
pub(super) struct Next(JoinHandle<SessionLease>);

impl Next {
    pub(super) async fn waits(address: &Address) -> Self {
        let mut client = Client::new(connect(address).await);
        let request = acquire("T1", "s", "next");
        let request =
            oncegate::grpc::pb::AcquireSessionLeaseRequest { wait: seconds(60), ..request };
        let next = tokio::spawn(async move {
            granted(client.acquire_session_lease(request).await.unwrap().into_inner())
        });
        Self(next)
    }

    pub(super) async fn gets_nothing(&mut self) {
        if let Ok(came) = timeout(QUIET, &mut self.0).await {
            panic!("two holders at once: {:?}", came.unwrap());
        }
    }

    pub(super) async fn gets_the_lease(self) {
        assert_eq!(timeout(PATIENCE, self.0).await.unwrap().unwrap().holder, "next");
    }
}

async fn a_broken_stream_keeps_a_lease_that_was_renewed_since(f: Fixture) {
    let wire = Wire::to(f.replica.server.address()).await;
    let hold = Hold::begin(connect(&wire.address).await, asking()).await;
    let mut next = Next::waits(f.replica.server.address()).await;
    wire.freeze();
    f.client.clone().renew_session_lease(renew(&hold.lease)).await.unwrap();
    wire.cut_server();
    next.gets_nothing().await;
    f.client.clone().release_session_lease(release(&hold.lease)).await.unwrap();
    next.gets_the_lease().await;
}

async fn a_broken_stream_keeps_a_lease_that_was_acquired_again(f: Fixture) {
    let channel = connect(f.replica.server.address()).await;
    let hold = Hold::begin(channel.clone(), asking()).await;
    let again = Hold::begin(channel, asking()).await;
    let mut next = Next::waits(f.replica.server.address()).await;
    // Taken over, and then carried on by a call that returns: nobody attends it.
    let request = oncegate::grpc::pb::AcquireSessionLeaseRequest {
        request_id: "first".into(),
        ..acquire("T1", "s", "first")
    };
    let found = f.client.clone().acquire_session_lease(request).await.unwrap().into_inner();
    assert_eq!(granted(found).lease_id, hold.lease.lease_id);
    let lease = again.lease.clone();
    drop((hold, again));
    next.gets_nothing().await;
    f.client.clone().release_session_lease(release(&lease)).await.unwrap();
    next.gets_the_lease().await;
}

async fn a_stream_that_found_its_lease_is_taken_over_by_the_next(f: Fixture) {
    let channel = connect(f.replica.server.address()).await;
    let mut first = Hold::begin(channel.clone(), asking()).await;
    let mut again = Hold::begin(channel.clone(), asking()).await;
    assert_eq!(again.lease.lease_id, first.lease.lease_id);
    assert_eq!(reason(&first.closed().await), "STREAM_REPLACED");
    let third = Hold::begin(channel, asking()).await;
    assert_eq!(reason(&again.closed().await), "STREAM_REPLACED");
    let mut next = Next::waits(f.replica.server.address()).await;
    drop((first, again));
    next.gets_nothing().await;
    drop(third);
    next.gets_the_lease().await;
}

async fn the_stream_that_took_a_lease_over_gives_it_back(f: Fixture) {
    let channel = connect(f.replica.server.address()).await;
    let _first = Hold::begin(channel.clone(), asking()).await;
    let again = Hold::begin(channel, asking()).await;
    let next = Next::waits(f.replica.server.address()).await;
    drop(again);
    next.gets_the_lease().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_carried_on_at_another_replica() {
    let url = new_database().await;
    let one = Replica::start(&url, Clock::Store, &[]).await;
    let other = Replica::start(&url, Clock::Store, &[]).await;
    let wire = Wire::to(one.server.address()).await;
    let first = Hold::begin(connect(&wire.address).await, asking()).await;
    let mut next = Next::waits(other.server.address()).await;
    wire.cut();
    let there = connect(other.server.address()).await;
    // Hold gives back at once, so that the lease is the holder's only if it came first.
    match Client::new(there.clone()).renew_session_lease(renew(&first.lease)).await {
        Ok(_) => next.gets_nothing().await,
        Err(late) => assert_eq!(reason(&late), "LEASE_LOST"),
    }
    // Taken over at another replica, the older stream closes with its next renewal.
    let asking =
        HoldSessionLeaseRequest { session: session("T1", "t"), ttl: seconds(3), ..asking() };
    let mut older = Hold::begin(connect(one.server.address()).await, asking.clone()).await;
    let newer = Hold::begin(there, asking).await;
    assert_eq!(reason(&older.closed().await), "STREAM_REPLACED");
    assert_eq!(newer.lease.lease_id, older.lease.lease_id);
}
