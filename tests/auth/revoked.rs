//! Principals that are removed while their calls go on, and tokens that are rotated.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use oncegate::grpc::pb::{
    BeginTurnRequest, HoldSessionLeaseRequest, HoldSessionLeaseResponse,
    ReleaseSessionLeaseRequest, RenewSessionLeaseRequest, RunTurnRequest, SessionLease,
    acquire_session_lease_response::Outcome, hold_session_lease_response::News,
    run_turn_request::Step, turn_service_client::TurnServiceClient,
};
use tokio::time::timeout;
use tonic::Streaming;

use super::*;
use crate::harness::{acquire, event, mark, seconds, session};

fn hold(holder: &str) -> HoldSessionLeaseRequest {
    HoldSessionLeaseRequest {
        session: session("T1", "s"),
        holder: holder.into(),
        ttl: seconds(2),
        wait: seconds(60),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_revoked_caller_holds_ends() {
    let (revoked, kept) = (new_token(), new_token());
    let stays = principal("kept", "bot", &["T1"], &[&kept]);
    let server = Guarded::start(&(principal("gone", "bot", &["T1"], &[&revoked]) + &stays)).await;
    let mut client = server.client().await;
    let mut holding =
        client.hold_session_lease(with(&revoked, hold("a"))).await.unwrap().into_inner();
    assert!(matches!(holding.message().await.unwrap().unwrap().news, Some(News::Granted(_))));

    let mut turns = TurnServiceClient::new(connect(server.address()).await);
    let begin =
        BeginTurnRequest { event: event("T1", "Ev1"), holder: "a".into(), ..Default::default() };
    let step = RunTurnRequest { step: Some(Step::Begin(begin)) };
    let steps = futures_util::StreamExt::chain(
        futures_util::stream::iter([step]),
        futures_util::stream::pending(),
    );
    let mut running = turns.run_turn(with(&revoked, steps)).await.unwrap().into_inner();
    running.message().await.unwrap().unwrap();

    let waiting = {
        let (mut client, token) = (client.clone(), revoked.clone());
        let request =
            pb::AcquireSessionLeaseRequest { wait: seconds(60), ..acquire("T1", "s", "b") };
        tokio::spawn(async move { client.acquire_session_lease(with(&token, request)).await })
    };
    let mut other = client.hold_session_lease(with(&kept, hold("c"))).await.unwrap().into_inner();
    other.message().await.unwrap();

    server.replace(&stays);
    let ended = async {
        loop {
            if let Err(status) = holding.message().await {
                break status;
            }
        }
    };
    is_unauthenticated(&timeout(PATIENCE, ended).await.unwrap());
    let ended = async {
        loop {
            if let Err(status) = running.message().await {
                break status;
            }
        }
    };
    is_unauthenticated(&timeout(PATIENCE, ended).await.unwrap());
    is_unauthenticated(&timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap_err());
    is_unauthenticated(&client.mark_processed(with(&revoked, mark("T1", "x"))).await.unwrap_err());
    // Nobody renews the lease, so it ends, and goes to the caller that is still known.
    timeout(PATIENCE, granted(&mut other)).await.unwrap();
}

async fn granted(holding: &mut Streaming<HoldSessionLeaseResponse>) -> SessionLease {
    loop {
        if let Some(News::Granted(lease)) = holding.message().await.unwrap().unwrap().news {
            return lease.lease.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_caller_that_does_not_read_keeps_nothing() {
    let (revoked, kept) = (new_token(), new_token());
    let stays = principal("kept", "bot", &["T1"], &[&kept]);
    let server = Guarded::start(&(principal("gone", "bot", &["T1"], &[&revoked]) + &stays)).await;
    let mut mute = h2::client::Builder::new();
    mute.initial_window_size(0);
    let mut raw = Raw::connect_as(mute, server.address()).await;
    let authorization = format!("Bearer {revoked}");
    let path = "/oncegate.v1.IdempotencyService/HoldSessionLease";
    let mut call = raw.begin(path, &[("authorization", authorization.as_str())]).await;
    call.send(framed(&hold("a")), true);
    let mut client = server.client().await;
    // The session is held once it cannot be acquired.
    while is_free(&mut client, &kept).await {}
    let mut other = client.hold_session_lease(with(&kept, hold("c"))).await.unwrap().into_inner();
    server.replace(&stays);
    timeout(PATIENCE, granted(&mut other)).await.unwrap();
    drop(call);
}

/// Whether nobody holds the session. Holds it for a moment.
async fn is_free(client: &mut Client, token: &str) -> bool {
    let answer = client.acquire_session_lease(with(token, acquire("T1", "s", "c"))).await.unwrap();
    let Some(Outcome::Lease(lease)) = answer.into_inner().outcome else { return false };
    let release =
        ReleaseSessionLeaseRequest { session: session("T1", "s"), lease_id: lease.lease_id };
    client.release_session_lease(with(token, release)).await.unwrap();
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_whose_token_was_replaced_renews_with_the_new_one() {
    let (old, new) = (new_token(), new_token());
    let server = Guarded::start(&principal("bot", "bot", &["T1"], &[&old, &new])).await;
    let mut client = server.client().await;
    let request = HoldSessionLeaseRequest { ttl: seconds(60), ..hold("a") };
    let mut holding = client.hold_session_lease(with(&old, request)).await.unwrap().into_inner();
    let lease = granted(&mut holding).await;
    server.replace(&principal("bot", "bot", &["T1"], &[&new]));
    let ended = async {
        loop {
            if let Err(status) = holding.message().await {
                break status;
            }
        }
    };
    is_unauthenticated(&timeout(PATIENCE, ended).await.unwrap());
    let renew = RenewSessionLeaseRequest {
        session: session("T1", "s"),
        lease_id: lease.lease_id.clone(),
        ttl: seconds(60),
    };
    let renewed = client.renew_session_lease(with(&new, renew)).await.unwrap().into_inner();
    assert_eq!(renewed.lease.unwrap().fencing_token, lease.fencing_token);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_rotated_without_a_failed_call() {
    let (old, new) = (new_token(), new_token());
    let server = Guarded::start(&principal("bot", "bot", &["T1"], &[&old])).await;
    let rotated = Arc::new(AtomicBool::new(false));
    let stop = Arc::new(AtomicBool::new(false));
    let client = server.client().await;
    let callers: Vec<_> = (0..256)
        .map(|caller| {
            let (mut client, old, new) = (client.clone(), old.clone(), new.clone());
            let (rotated, stop) = (Arc::clone(&rotated), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut calls = 0;
                while !stop.load(Ordering::Relaxed) {
                    let token = if rotated.load(Ordering::Acquire) { &new } else { &old };
                    let request = mark("T1", &format!("{caller}-{calls}"));
                    client.mark_processed(with(token, request)).await.unwrap();
                    calls += 1;
                }
                calls
            })
        })
        .collect();
    server.replace(&principal("bot", "bot", &["T1"], &[&old, &new]));
    // Until the new one is accepted.
    let mut probe = client.clone();
    while probe.mark_processed(with(&new, mark("T1", "probe"))).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    rotated.store(true, Ordering::Release);
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        assert!(caller.await.unwrap() > 0);
    }
    server.replace(&principal("bot", "bot", &["T1"], &[&new]));
    is_unauthenticated(&until_refused(&mut probe, &old).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_token_is_refused_on_the_connection_that_had_shown_it() {
    let (revoked, kept) = (new_token(), new_token());
    let stays = principal("kept", "bot", &["T1"], &[&kept]);
    let server = Guarded::start(&(principal("gone", "bot", &["T1"], &[&revoked]) + &stays)).await;
    let mut known = server.client().await;
    known.mark_processed(with(&revoked, mark("T1", "a"))).await.unwrap();
    server.replace(&stays);
    // Another connection says when the new file is in force.
    is_unauthenticated(&until_refused(&mut server.client().await, &revoked).await);
    is_unauthenticated(&known.mark_processed(with(&revoked, mark("T1", "b"))).await.unwrap_err());
    known.mark_processed(with(&kept, mark("T1", "c"))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_is_revoked_between_the_headers_of_a_call_and_its_message() {
    let (revoked, kept) = (new_token(), new_token());
    let stays = principal("kept", "bot", &["T1"], &[&kept]);
    let server = Guarded::start(&(principal("gone", "bot", &["T1"], &[&revoked]) + &stays)).await;
    let mut raw = Raw::connect(server.address()).await;
    let authorization = format!("Bearer {revoked}");
    let path = "/oncegate.v1.IdempotencyService/MarkProcessed";
    let mut call = raw.begin(path, &[("authorization", authorization.as_str())]).await;
    let path_of_batch = "/oncegate.v1.IdempotencyService/BatchMarkProcessed";
    let mut batch = raw.begin(path_of_batch, &[("authorization", authorization.as_str())]).await;
    // Their headers have come once a later call on the connection is answered.
    let mut other = raw.begin(path, &[("authorization", authorization.as_str())]).await;
    other.send(framed(&mark("T1", "a")), true);
    assert_eq!(other.status().await.code(), Code::Ok);
    server.replace(&stays);
    is_unauthenticated(&until_refused(&mut server.client().await, &revoked).await);
    call.send(framed(&mark("T1", "b")), true);
    is_unauthenticated(&call.status().await);
    let requests = vec![mark("T1", "c"), mark("T1", "d")];
    batch.send(framed(&pb::BatchMarkProcessedRequest { requests }), true);
    is_unauthenticated(&batch.status().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_loses_its_role_between_the_headers_of_a_call_and_its_message() {
    let token = new_token();
    let server = Guarded::start(&principal("bot", "bot", &["T1"], &[&token])).await;
    let mut raw = Raw::connect(server.address()).await;
    let authorization = format!("Bearer {token}");
    let path = "/oncegate.v1.IdempotencyService/MarkProcessed";
    let mut call = raw.begin(path, &[("authorization", authorization.as_str())]).await;
    let mut other = raw.begin(path, &[("authorization", authorization.as_str())]).await;
    other.send(framed(&mark("T1", "a")), true);
    assert_eq!(other.status().await.code(), Code::Ok);
    server.replace(&principal("bot", "reader", &["T1"], &[&token]));
    let refused = until_refused(&mut server.client().await, &token).await;
    assert_eq!(reason(&refused), "ROLE_DENIED");
    call.send(framed(&mark("T1", "b")), true);
    assert_eq!(reason(&call.status().await), "ROLE_DENIED");
}
