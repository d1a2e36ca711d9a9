//! Principals that are removed while their calls go on, and tokens that are rotated.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use oncegate::grpc::pb::{
    BeginTurnRequest, HoldSessionLeaseRequest, RunTurnRequest, hold_session_lease_response::News,
    run_turn_request::Step, turn_service_client::TurnServiceClient,
};
use tokio::time::timeout;

use super::*;
use crate::harness::{acquire, event, mark, seconds, session};

fn hold(holder: &str) -> HoldSessionLeaseRequest {
    HoldSessionLeaseRequest {
        session: session("T1", "s"),
        holder: holder.into(),
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
    // The lease is released, as of any stream that ends, and goes to the caller that is still known.
    let granted = async {
        loop {
            if let Some(News::Granted(_)) = other.message().await.unwrap().unwrap().news {
                break;
            }
        }
    };
    timeout(PATIENCE, granted).await.unwrap();
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
