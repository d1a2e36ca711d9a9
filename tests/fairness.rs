//! A quiet team beside one that keeps the server busy. What counts is how much is ahead of a call,
//! not how long that takes on the machine of the day.

use std::time::Duration;

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use oncegate::grpc::pb::{
    AcquireSessionLeaseRequest, BatchMarkProcessedRequest,
    batch_mark_processed_result::Result as BatchResult,
};
use tokio::time::Instant;
use tonic::Code;

use crate::{
    harness::{
        Client, Fixture, acquire, granted, mark,
        metrics::{metric, metrics_page},
        outsider::Outsider,
        seconds,
    },
    on_both_stores,
};

on_both_stores! {
    a_quiet_team_waits_for_few_rows_of_another_and_is_never_refused,
    a_full_queue_refuses_the_team_that_filled_it,
    of_a_team_that_fills_the_queue_no_further_batch_is_read,
    known_duplicates_need_no_room_in_a_full_queue,
    waiters_of_one_team_leave_places_for_another,
}

const ONE_LANE: [&str; 8] =
    ["--writers", "1", "--workers", "1", "--call-timeout", "5m", "--ops-listen", "127.0.0.1:0"];

/// How many rows the lane of marks has run.
async fn rows(f: &Fixture) -> f64 {
    let page = metrics_page(&f.replica).await;
    let name = r#"oncegate_lane_batch_rows_sum{lane="mark"} "#;
    let line = page.lines().find_map(|line| line.strip_prefix(name)).expect(name);
    line.parse().unwrap()
}

fn batch(call: usize) -> BatchMarkProcessedRequest {
    let event = |item| mark("noisy", &format!("Ev{call}-{item}"));
    BatchMarkProcessedRequest { requests: (0..1_000).map(event).collect() }
}

async fn a_quiet_team_waits_for_few_rows_of_another_and_is_never_refused(f: Fixture) {
    const CALLS: usize = 32;
    // All of them have room.
    let room = ["--queue-capacity", "40000"];
    let f = f.restarted(&[&ONE_LANE[..], &room].concat()).await;
    let mut noisy: FuturesUnordered<_> = (0..CALLS)
        .map(|call| {
            let mut client = f.client.clone();
            tokio::spawn(async move { client.batch_mark_processed(batch(call)).await })
        })
        .collect();
    // All of them have queued, or been run.
    noisy.next().await.unwrap().unwrap().unwrap();
    let mut client = f.client.clone();
    let mut waited_for = Vec::new();
    while rows(&f).await < 28_000.0 {
        let before = rows(&f).await;
        let answer =
            client.mark_processed(mark("quiet", &format!("Ev{}", waited_for.len()))).await.unwrap();
        assert!(answer.into_inner().first);
        waited_for.push(rows(&f).await - before);
    }
    assert!(waited_for.len() >= 3, "calls beside the noisy ones: {waited_for:?}");
    // The batch that ran, its own, and what the two readings of the figure add to that, which is
    // more on a machine that is busy.
    assert!(waited_for.iter().any(|rows| *rows <= 2_048.0), "{waited_for:?}");
    while let Some(answer) = noisy.next().await {
        answer.unwrap().unwrap();
    }
}

async fn a_full_queue_refuses_the_team_that_filled_it(f: Fixture) {
    let capacity = ["--queue-capacity", "4000"];
    let f = f.restarted(&[&ONE_LANE[..], &capacity].concat()).await;
    let noisy: Vec<_> = (0..32)
        .map(|call| {
            let mut client = f.client.clone();
            tokio::spawn(async move { client.batch_mark_processed(batch(call)).await })
        })
        .collect();
    let mut client = f.client.clone();
    for call in 0..20 {
        let answer = client.mark_processed(mark("quiet", &format!("Ev{call}"))).await;
        assert!(answer.unwrap().into_inner().first);
    }
    let mut refused = 0;
    for answer in noisy {
        match answer.await.unwrap() {
            Ok(answer) => assert_eq!(answer.into_inner().results.len(), 1_000),
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                refused += 1;
            }
        }
    }
    assert!((1..32).contains(&refused), "{refused}");
}

/// Each of its items is invalid: only a batch that is read is answered so.
fn unreadable(team: &str) -> BatchMarkProcessedRequest {
    BatchMarkProcessedRequest { requests: (0..1_000).map(|_| mark(team, "")).collect() }
}

/// Waits until there is no room for a batch of the noisy team, which then is not read.
async fn full(client: &mut Client) {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        match client.batch_mark_processed(unreadable("noisy")).await {
            Err(status) => break assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}"),
            // The one that fills the queue has not come yet.
            Ok(_) => assert!(Instant::now() < until, "it was read"),
        }
    }
}

async fn of_a_team_that_fills_the_queue_no_further_batch_is_read(f: Fixture) {
    let capacity = ["--queue-capacity", "1000"];
    let f = f.restarted(&[&ONE_LANE[..], &capacity].concat()).await;
    let outsider = Outsider::at(&f.url).await;
    let filling = {
        let mut client = f.client.clone();
        tokio::spawn(async move { client.batch_mark_processed(batch(0)).await })
    };
    let mut client = f.client.clone();
    full(&mut client).await;
    let read = client.batch_mark_processed(unreadable("")).await.unwrap().into_inner();
    assert!(read.results.iter().all(|item| matches!(item.result, Some(BatchResult::Error(_)))));
    drop(outsider);
    filling.await.unwrap().unwrap();
}

async fn known_duplicates_need_no_room_in_a_full_queue(f: Fixture) {
    let capacity = ["--queue-capacity", "1000"];
    let f = f.restarted(&[&ONE_LANE[..], &capacity].concat()).await;
    metric(&f.replica, "oncegate_duplicate_cache_in_use 1").await;
    let mut client = f.client.clone();
    client.batch_mark_processed(batch(1)).await.unwrap();
    let outsider = Outsider::at(&f.url).await;
    let filling = {
        let mut client = f.client.clone();
        tokio::spawn(async move { client.batch_mark_processed(batch(0)).await })
    };
    full(&mut client).await;
    let known = client.batch_mark_processed(batch(1)).await.unwrap().into_inner();
    for result in known.results {
        let Some(BatchResult::Response(response)) = result.result else { panic!("{result:?}") };
        assert!(!response.first);
    }
    let mut with_new = batch(1);
    with_new.requests[999] = mark("noisy", "new");
    let refused = client.batch_mark_processed(with_new).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    drop(outsider);
    filling.await.unwrap().unwrap();
}

async fn waiters_of_one_team_leave_places_for_another(f: Fixture) {
    // 16 places for waiters: 12 for a team that is alone.
    let f = f.restarted(&["--max-calls", "32", "--ops-listen", "127.0.0.1:0"]).await;
    let mut client = f.client.clone();
    for team in ["noisy", "quiet"] {
        granted(client.acquire_session_lease(acquire(team, "s", "a")).await.unwrap().into_inner());
    }
    let wait = |team: &str| {
        let mut client = f.client.clone();
        let request = AcquireSessionLeaseRequest { wait: seconds(60), ..acquire(team, "s", "b") };
        tokio::spawn(async move { client.acquire_session_lease(request).await })
    };
    let noisy: Vec<_> = (0..12).map(|_| wait("noisy")).collect();
    metric(&f.replica, "oncegate_session_waiters 12").await;
    let refused = wait("noisy").await.unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("of this team"), "{refused:?}");
    let quiet = wait("quiet");
    metric(&f.replica, "oncegate_session_waiters 13").await;
    noisy.iter().chain([&quiet]).for_each(tokio::task::JoinHandle::abort);
}
