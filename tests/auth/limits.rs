//! What one principal may use of a server.

use oncegate::grpc::pb::{AcquireSessionLeaseRequest, HoldSessionLeaseRequest};
use tokio::time::timeout;
use tonic::Streaming;

use super::*;
use crate::harness::{acquire, mark, metrics::metric, seconds, session};

type Holding = Streaming<pb::HoldSessionLeaseResponse>;

async fn hold(client: &mut Client, token: &str, holder: &str) -> Result<Holding, Status> {
    let request = HoldSessionLeaseRequest {
        session: session("T1", "s"),
        holder: holder.into(),
        wait: seconds(60),
        ..Default::default()
    };
    let mut events = client.hold_session_lease(with(token, request)).await?.into_inner();
    events.message().await?;
    Ok(events)
}

fn is_over_quota(status: &Status) {
    assert_eq!((status.code(), reason(status).as_str()), (Code::ResourceExhausted, "QUOTA"));
    assert!(status.get_details_retry_info().is_some(), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_is_one_principals_own() {
    let (busy, quiet) = (new_token(), new_token());
    let limited = principal("busy", "bot", &["T1"], &[&busy]) + "rate = \"1/s\"\nburst = 2\n";
    let file = limited + &principal("quiet", "bot", &["T1"], &[&quiet]);
    let server = Guarded::start(&file).await;
    // A connection of its own for each call: the limit is of the principal.
    let mut refused = None;
    for call in 0..100 {
        let mut client = server.client().await;
        let request = with(&busy, mark("T1", &call.to_string()));
        refused = client.mark_processed(request).await.err();
        if refused.is_some() {
            break;
        }
    }
    let status = refused.expect("refused");
    is_over_quota(&status);
    // At one call a second, the next is due within one.
    let delay = status.get_details_retry_info().and_then(|info| info.retry_delay).unwrap();
    assert!(delay > Duration::ZERO && delay <= Duration::from_secs(1), "{delay:?}");
    let mut client = server.client().await;
    for call in 0..5 {
        client.mark_processed(with(&quiet, mark("T1", &format!("q{call}")))).await.unwrap();
    }
    // It is enough to wait for as long as the answer says.
    tokio::time::sleep(delay).await;
    client.mark_processed(with(&busy, mark("T1", "late"))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_the_role_does_not_allow_count_against_the_rate() {
    let reader = new_token();
    let file = principal("reads", "reader", &["*"], &[&reader]) + "rate = \"1/s\"\nburst = 2\n";
    let server = Guarded::start(&file).await;
    let mut client = server.client().await;
    let mut reasons = Vec::new();
    while reasons.len() < 100 && reasons.last().is_none_or(|reason| reason != "QUOTA") {
        let refused = client.mark_processed(with(&reader, mark("T1", "a"))).await.unwrap_err();
        reasons.push(reason(&refused));
    }
    // The burst is answered for its role, and then the rate comes first.
    assert!(reasons.len() > 2 && reasons.pop().unwrap() == "QUOTA", "{reasons:?}");
    assert!(reasons.iter().all(|reason| reason == "ROLE_DENIED"), "{reasons:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_changes_its_principal_on_its_way_is_the_new_ones() {
    const CALLS: usize = 20;
    let (token, gone) = (new_token(), new_token());
    let before = principal("first", "bot", &["T1"], &[&token])
        + &principal("gone", "bot", &["T1"], &[&gone]);
    let server = Guarded::start_with(&before, &["--ops-listen", "127.0.0.1:0"]).await;
    let mut raw = Raw::connect(server.address()).await;
    let authorization = format!("Bearer {token}");
    let path = "/oncegate.v1.IdempotencyService/MarkProcessed";
    let mut calls = Vec::new();
    for _ in 0..CALLS {
        calls.push(raw.begin(path, &[("authorization", authorization.as_str())]).await);
    }
    // Their headers have come once a later call on the connection is answered.
    let mut later = raw.begin(path, &[("authorization", authorization.as_str())]).await;
    later.send(framed(&mark("T1", "a")), true);
    assert_eq!(later.status().await.code(), Code::Ok);
    let after = principal("second", "bot", &["T1"], &[&token]) + "rate = \"1/s\"\nburst = 2\n";
    server.replace(&after);
    is_unauthenticated(&until_refused(&mut server.client().await, &gone).await);
    for call in &mut calls {
        call.send(framed(&mark("T1", "b")), true);
    }
    let mut refused = 0;
    for call in calls {
        let status = call.status().await;
        if status.code() != Code::Ok {
            is_over_quota(&status);
            refused += 1;
        }
    }
    assert!((1..=CALLS - 2).contains(&refused), "{refused}");
    let count = format!("oncegate_principal_calls_total{{principal=\"second\"}} {CALLS}");
    metric(&server.replica, &count).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_in_flight_are_limited_until_they_end() {
    let (busy, quiet) = (new_token(), new_token());
    let limited = principal("busy", "bot", &["T1"], &[&busy]) + "in_flight = 2\n";
    let file = limited + &principal("quiet", "bot", &["T1"], &[&quiet]);
    let server = Guarded::start(&file).await;
    let (mut client, mut other) = (server.client().await, server.client().await);
    let first = hold(&mut client, &busy, "a").await.unwrap();
    let _second = hold(&mut other, &busy, "b").await.unwrap();
    for client in [&mut client, &mut other] {
        let request = with(&busy, mark("T1", "x"));
        is_over_quota(&client.mark_processed(request).await.unwrap_err());
        client.mark_processed(with(&quiet, mark("T1", "y"))).await.unwrap();
    }
    drop(first);
    let free = async {
        while client.mark_processed(with(&busy, mark("T1", "z"))).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, free).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_changes_its_principal_on_its_way_is_in_flight_as_the_new_ones() {
    let (token, other, gone) = (new_token(), new_token(), new_token());
    let before = principal("first", "bot", &["T1"], &[&token])
        + &principal("gone", "bot", &["T1"], &[&gone]);
    let server = Guarded::start(&before).await;
    let mut raw = Raw::connect(server.address()).await;
    let authorization = format!("Bearer {token}");
    let metadata = [("authorization", authorization.as_str())];
    let path = "/oncegate.v1.IdempotencyService/HoldSessionLease";
    let mut call = raw.begin(path, &metadata).await;
    // Its headers have come once a later call on the connection is answered.
    let path = "/oncegate.v1.IdempotencyService/MarkProcessed";
    let mut later = raw.begin(path, &metadata).await;
    later.send(framed(&mark("T1", "a")), true);
    assert_eq!(later.status().await.code(), Code::Ok);
    let after = principal("second", "bot", &["T1"], &[&token, &other]) + "in_flight = 1\n";
    server.replace(&after);
    let mut client = server.client().await;
    is_unauthenticated(&until_refused(&mut client, &gone).await);
    let session = session("T1", "s");
    let request = HoldSessionLeaseRequest { session, holder: "a".into(), ..Default::default() };
    call.send(framed(&request), true);
    // Nothing else is in flight before it is.
    let stream = call.answered().await;
    // For as long as it lives.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let request = with(&other, mark("T1", "x"));
        is_over_quota(&client.mark_processed(request).await.unwrap_err());
    }
    drop(stream);
    let free = async {
        while client.mark_processed(with(&other, mark("T1", "z"))).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, free).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_wait_are_limited_until_they_are_served() {
    let token = new_token();
    let file = principal("busy", "bot", &["T1"], &[&token]) + "waiters = 1\n";
    let server = Guarded::start(&file).await;
    let mut client = server.client().await;
    let first = hold(&mut client, &token, "a").await.unwrap();
    // It has its lease, so it does not count.
    let mut second = hold(&mut client, &token, "b").await.unwrap();
    is_over_quota(&hold(&mut client, &token, "c").await.unwrap_err());
    let waits = AcquireSessionLeaseRequest { wait: seconds(60), ..acquire("T1", "s", "c") };
    let refused = client.acquire_session_lease(with(&token, waits.clone())).await.unwrap_err();
    is_over_quota(&refused);
    // Without a wait it is answered.
    client.acquire_session_lease(with(&token, acquire("T1", "s", "c"))).await.unwrap();
    drop(first);
    let granting = async {
        loop {
            let news = second.message().await.unwrap().unwrap().news;
            if let Some(pb::hold_session_lease_response::News::Granted(_)) = news {
                break;
            }
        }
    };
    timeout(PATIENCE, granting).await.unwrap();
    let third = tokio::spawn({
        let (mut client, token) = (client.clone(), token.clone());
        async move { client.acquire_session_lease(with(&token, waits)).await }
    });
    drop(second);
    timeout(PATIENCE, third).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_refused_takes_no_place_of_other_calls() {
    let (token, reader) = (new_token(), new_token());
    let file = principal("bot", "bot", &["T1"], &[&token])
        + &principal("reads", "reader", &["*"], &[&reader]);
    let server = Guarded::start_with(&file, &["--max-calls", "1"]).await;
    let _all = hold(&mut server.client().await, &token, "a").await.unwrap();
    let mut raw = Raw::connect(server.address()).await;
    let path = "/oncegate.v1.IdempotencyService/MarkProcessed";
    let (good, low) = (format!("Bearer {token}"), format!("Bearer {reader}"));
    // Refused at its headers: no message follows them.
    is_unauthenticated(&raw.begin(path, &[]).await.status().await);
    let low = raw.begin(path, &[("authorization", low.as_str())]).await.status().await;
    assert_eq!(reason(&low), "ROLE_DENIED");
    let mut call = raw.begin(path, &[("authorization", good.as_str())]).await;
    call.send(framed(&mark("T1", "a")), true);
    assert_eq!(reason(&call.status().await), "TOO_MANY_CALLS");
}
