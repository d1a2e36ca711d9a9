//! What fails, fails: replicas, connections, the database, single items. What
//! was acknowledged stays true.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use oncegate::{
    config::Address,
    domain::{SessionKey, Team},
    grpc::pb::{
        BatchMarkProcessedRequest, MarkProcessedRequest, MarkProcessedResponse,
        ReleaseSessionLeaseRequest, RenewSessionLeaseRequest,
        batch_mark_processed_result::Result as Item,
    },
    store::Clock,
};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tonic::{Code, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt as _;

use crate::harness::{
    Client, Replica, acquire, connect, granted, mark, postgres, process::Process, seconds, session,
    sqlite_url,
};

mod answers;
mod calls;
mod connections;
mod rules;

/// Waits until a server says that a service has this status.
async fn follow(address: &Address, service: &str, status: ServingStatus) {
    let mut health = HealthClient::new(connect(address).await);
    let ask = HealthCheckRequest { service: service.to_owned() };
    let mut watched = health.watch(ask).await.unwrap().into_inner();
    let reached = async { while watched.message().await.unwrap().unwrap().status() != status {} };
    let reached = tokio::time::timeout(Duration::from_secs(10), reached).await;
    assert!(reached.is_ok(), "{service} does not become {status:?}");
}

fn first(answer: Result<Response<MarkProcessedResponse>, Status>) -> bool {
    answer.unwrap().into_inner().first
}

fn named(event: &str, request_id: &str) -> MarkProcessedRequest {
    MarkProcessedRequest { request_id: request_id.to_owned(), ..mark("T1", event) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_replica_loses_no_mark_and_no_lease() {
    let url = postgres::new_database().await;
    let doomed = Process::start(&url, &[]).await;
    let mut client = doomed.client().await;
    for event in ["Ev1", "Ev2"] {
        assert!(first(client.mark_processed(mark("T1", event)).await));
    }
    let lease = client.acquire_session_lease(acquire("T1", "s", "holder")).await.unwrap();
    let lease = granted(lease.into_inner());
    doomed.kill();

    let other = Replica::start(&url, Clock::Store, &[]).await;
    let mut client = other.client().await;
    for event in ["Ev1", "Ev2"] {
        assert!(!first(client.mark_processed(mark("T1", event)).await));
    }
    let renew = RenewSessionLeaseRequest {
        session: session("T1", "s"),
        lease_id: lease.lease_id.clone(),
        ttl: None,
    };
    let renewed = client.renew_session_lease(renew).await.unwrap().into_inner().lease.unwrap();
    assert_eq!(renewed.fencing_token, lease.fencing_token);
    let release =
        ReleaseSessionLeaseRequest { session: session("T1", "s"), lease_id: lease.lease_id };
    assert!(client.release_session_lease(release).await.unwrap().into_inner().released);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_embedded_server_keeps_every_mark_that_it_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let url = sqlite_url(&directory);
    let doomed = Process::start(&url, &[]).await;
    let mut callers = Vec::new();
    for caller in 0..8 {
        let mut client = doomed.client().await;
        callers.push(tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for number in 0.. {
                let event = format!("Ev{caller}-{number}");
                match client.mark_processed(mark("T1", &event)).await {
                    Ok(answer) => assert!(answer.into_inner().first),
                    Err(_) => break,
                }
                acknowledged.push(event);
            }
            acknowledged
        }));
    }
    // Once marks are flowing, in the middle of them.
    let mut probe = doomed.client().await;
    for number in 0..50 {
        assert!(first(probe.mark_processed(mark("T1", &format!("probe {number}"))).await));
    }
    doomed.kill();

    let again = Process::start(&url, &[]).await;
    let mut client = again.client().await;
    let mut kept = 0;
    for caller in callers {
        for event in caller.await.unwrap() {
            assert!(!first(client.mark_processed(mark("T1", &event)).await), "{event} was lost");
            kept += 1;
        }
    }
    assert!(kept > 0, "no mark was made before the kill");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_stops_and_starts_again_is_followed() {
    let cluster = tokio::task::spawn_blocking(postgres::Cluster::start).await.unwrap();
    let flags = ["--probe-interval", "50ms"];
    let replica = Replica::start(&cluster.url(), Clock::Store, &flags).await;
    let mut client = replica.client().await;
    assert!(first(client.mark_processed(mark("T1", "before")).await));
    let address = replica.server.address();
    let follow = |service, status| follow(address, service, status);
    follow("readiness", ServingStatus::Serving).await;

    let cluster = tokio::task::spawn_blocking(move || {
        let mut cluster = cluster;
        cluster.stop();
        cluster
    });
    let cluster = cluster.await.unwrap();
    for _ in 0..20 {
        let refused = client.mark_processed(mark("T1", "meanwhile")).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        assert!(refused.get_details_retry_info().is_some());
        assert!(!refused.message().contains("SQL"), "{}", refused.message());
        let refused = client.acquire_session_lease(acquire("T1", "s", "a")).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
    }
    follow("readiness", ServingStatus::NotServing).await;
    follow("oncegate.v1.IdempotencyService", ServingStatus::NotServing).await;
    follow("liveness", ServingStatus::Serving).await;

    let cluster = tokio::task::spawn_blocking(move || {
        let mut cluster = cluster;
        cluster.resume();
        cluster
    });
    let _cluster = cluster.await.unwrap();
    follow("readiness", ServingStatus::Serving).await;
    // Each lane leaves a failed connection alone for a moment.
    let back = async {
        assert!(!persist(&mut client, mark("T1", "before")).await.first);
        persist(&mut client, mark("T1", "after")).await;
    };
    tokio::time::timeout(Duration::from_secs(5), back).await.expect("recovers by itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_cut_under_load_change_no_answer() {
    const EVENTS: usize = 60;
    const CUT_PAUSE: Duration = Duration::from_millis(50);
    let url = postgres::new_database().await;
    let replicas = [
        Replica::start(&url, Clock::Store, &[]).await,
        Replica::start(&url, Clock::Store, &[]).await,
    ];
    let cutting = tokio::spawn(postgres::cut_connections(url, || tokio::time::sleep(CUT_PAUSE)));
    let callers = (0..16).map(|caller| {
        let replica = &replicas[caller % replicas.len()];
        async move {
            let mut client = replica.client().await;
            let mut firsts = Vec::new();
            for event in 0..EVENTS {
                let request = named(&format!("Ev{event}"), &format!("caller {caller}"));
                let answer = persist(&mut client, request.clone()).await;
                // Asked again, it says the same: the answer was true.
                assert_eq!(persist(&mut client, request).await.first, answer.first);
                firsts.push(usize::from(answer.first));
            }
            firsts
        }
    });
    let firsts = join_all(callers).await;
    cutting.abort();
    for event in 0..EVENTS {
        let count: usize = firsts.iter().map(|firsts| firsts[event]).sum();
        assert_eq!(count, 1, "event {event}");
    }
}

/// Repeats a request until the store is there to answer it.
async fn persist(client: &mut Client, request: MarkProcessedRequest) -> MarkProcessedResponse {
    loop {
        match client.mark_processed(request.clone()).await {
            Ok(answer) => return answer.into_inner(),
            Err(refused) => assert_eq!(refused.code(), Code::Unavailable, "{refused:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_the_database_refuses_fails_alone() {
    let options = "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0";
    let url = postgres::new_database_with(options).await;
    let replica = Replica::start(&url, Clock::Store, &["--writers", "1"]).await;
    let mut client = replica.client().await;
    let mut requests: Vec<_> = (0..40).map(|event| mark("T1", &format!("Ev{event}"))).collect();
    // LATIN1 has no robots.
    requests[17] = mark("T1", "🤖");
    let answer = client.batch_mark_processed(BatchMarkProcessedRequest { requests }).await;
    for (index, result) in answer.unwrap().into_inner().results.into_iter().enumerate() {
        match result.result.unwrap() {
            Item::Response(response) => assert!(response.first && index != 17, "{index}"),
            Item::Error(error) => assert_eq!((index, error.code), (17, 3)),
        }
    }
    // Calls of their own that meet in one batch are apart as well.
    let calls = (0..40).map(|event| {
        let mut client = client.clone();
        let id = if event % 10 == 7 { "🤖".to_owned() } else { format!("Alone{event}") };
        async move { (event, client.mark_processed(mark("T1", &id)).await) }
    });
    for (event, answer) in join_all(calls).await {
        if event % 10 == 7 {
            assert_eq!(answer.unwrap_err().code(), Code::InvalidArgument);
        } else {
            assert!(first(answer));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_another_is_deciding_on_stalls_nobody_else() {
    let url = postgres::new_database().await;
    let replica = Replica::start(&url, Clock::Store, &["--writers", "1"]).await;
    let mut client = replica.client().await;
    let key = SessionKey { team: Team::stored("T1"), session: "hot".into() };
    let mut outside = PgConnection::connect(&url).await.unwrap();
    let mut deciding = outside.begin().await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(key.lock_key())
        .execute(&mut *deciding)
        .await
        .unwrap();

    let mut waiting = client.clone();
    let hot =
        tokio::spawn(async move { waiting.acquire_session_lease(acquire("T1", "hot", "a")).await });
    for other in 0..50 {
        let request = acquire("T1", &format!("cold {other}"), "a");
        granted(client.acquire_session_lease(request).await.unwrap().into_inner());
    }
    assert!(!hot.is_finished());
    deciding.rollback().await.unwrap();
    granted(hot.await.unwrap().unwrap().into_inner());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_rows_that_an_outsider_locks_are_waited_for_in_bounds() {
    let url = postgres::new_database().await;
    let flags = ["--writers", "1", "--store-timeout", "10s", "--call-timeout", "60s"];
    let replica = Replica::start(&url, Clock::Store, &flags).await;
    let mut client = replica.client().await;
    let mut outside = PgConnection::connect(&url).await.unwrap();
    let mut locking = outside.begin().await.unwrap();
    for number in (1..32).step_by(4) {
        let lock = "INSERT INTO processed_events (team_id, event_id) VALUES ('T1', $1)";
        let id = format!("b{number:02}");
        sqlx::query(lock).bind(id).execute(&mut *locking).await.unwrap();
    }
    // Half of the batch is free, so that it is not all of it that fails.
    let free = (0..32).map(|number| mark("T1", &format!("a{number:02}")));
    let requests = free.chain((0..32).map(|number| mark("T1", &format!("b{number:02}")))).collect();
    let begun = Instant::now();
    let answer = client.batch_mark_processed(BatchMarkProcessedRequest { requests }).await;
    let took = begun.elapsed();
    // Each wait for a lock takes a second; one for each of the rows, and for each part of the
    // batch that holds one, would be 20.
    assert!(took < Duration::from_secs(12), "{took:?}");
    for (index, result) in answer.unwrap().into_inner().results.into_iter().enumerate() {
        match result.result.unwrap() {
            Item::Response(response) => assert!(response.first, "{index}"),
            Item::Error(error) => {
                assert_eq!(error.code, i32::from(Code::Unavailable), "{index}");
                assert!(index >= 32, "{index}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_an_outsider_locks_is_waited_for_in_bounds() {
    let url = postgres::new_database().await;
    let flags = ["--writers", "1", "--store-timeout", "2s", "--call-timeout", "8s"];
    let replica = Replica::start(&url, Clock::Store, &flags).await;
    let mut client = replica.client().await;
    let mut outside = PgConnection::connect(&url).await.unwrap();
    let mut locking = outside.begin().await.unwrap();
    locking
        .execute("INSERT INTO processed_events (team_id, event_id) VALUES ('T1', 'locked')")
        .await
        .unwrap();

    let begun = Instant::now();
    let refused = client.mark_processed(mark("T1", "locked")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    // Its neighbours in a batch do not wait for it.
    let requests = ["a", "locked", "b"].map(|event| mark("T1", event)).to_vec();
    let answer = client.batch_mark_processed(BatchMarkProcessedRequest { requests }).await;
    let results = answer.unwrap().into_inner().results.into_iter();
    let told: Vec<_> = results
        .map(|result| match result.result.unwrap() {
            Item::Response(response) => Ok(response.first),
            Item::Error(error) => Err(error.code),
        })
        .collect();
    assert_eq!(told, [Ok(true), Err(Code::Unavailable.into()), Ok(true)]);
    // Nobody goes on waiting in the server.
    let waiting: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'oncegate'
            AND datname = current_database() AND wait_event_type = 'Lock'",
    )
    .fetch_one(&mut *locking)
    .await
    .unwrap();
    assert_eq!(waiting, 0);

    locking.rollback().await.unwrap();
    let ttl = seconds(60);
    let request = MarkProcessedRequest { ttl, ..mark("T1", "locked") };
    assert!(first(client.mark_processed(request).await));
}
