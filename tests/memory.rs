//! A server on `memory:`, as the unit tests of a bot use it.

use std::time::Duration;

use oncegate::{
    grpc::pb::{
        AcquireSessionLeaseRequest, BeginTurnRequest, BindEpicRequest, CleanupRequest, EventState,
        FinishTurnRequest, ForceReleaseSessionLeaseRequest, ForgetEventRequest, GetStatsRequest,
        GetStatsResponse, ListEventsRequest, ListSessionsRequest, TurnOutcome,
        admin_service_client::AdminServiceClient, begin_turn_response::Outcome,
        turn_service_client::TurnServiceClient,
    },
    store::Clock,
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt as _;

use crate::harness::{
    Client, Fixture, Replica, acquire, connect, event, granted, held, mark,
    metrics::{metric, page},
    release, renew, seconds, session,
};

async fn first(client: &mut Client, id: &str) -> bool {
    client.mark_processed(mark("T1", id)).await.unwrap().into_inner().first
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_is_first_once_until_it_expires() {
    let mut f = Fixture::memory().await;
    assert!(first(&mut f.client, "Ev1").await);
    assert!(!first(&mut f.client, "Ev1").await);
    assert!(first(&mut f.client, "Ev2").await);
    f.clock.advance(Duration::from_hours(24));
    assert!(first(&mut f.client, "Ev1").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marks_that_arrive_together_have_one_first() {
    let f = Fixture::memory().await;
    let calls = (0..64).map(|_| {
        let mut client = f.client.clone();
        tokio::spawn(async move { first(&mut client, "Ev1").await })
    });
    let mut firsts = 0;
    for call in calls.collect::<Vec<_>>() {
        firsts += usize::from(call.await.unwrap());
    }
    assert_eq!(firsts, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_released_lease_goes_to_the_waiter() {
    let mut f = Fixture::memory().await;
    let mine = f.client.acquire_session_lease(acquire("T1", "s", "a")).await.unwrap();
    let mine = granted(mine.into_inner());
    let request = AcquireSessionLeaseRequest { wait: seconds(60), ..acquire("T1", "s", "b") };
    let mut client = f.client.clone();
    let waiter = tokio::spawn(async move { client.acquire_session_lease(request).await });
    let queued = async {
        loop {
            let asked = f.client.acquire_session_lease(acquire("T1", "s", "c")).await.unwrap();
            let held = held(asked.into_inner());
            assert_eq!(held.holder, "a");
            if held.queue_length == 1 {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), queued).await.expect("the waiter is queued");

    assert!(f.client.release_session_lease(release(&mine)).await.unwrap().into_inner().released);
    let next = granted(waiter.await.unwrap().unwrap().into_inner());
    assert_eq!(next.holder, "b");
    assert!(next.fencing_token > mine.fencing_token);
    let late = f.client.renew_session_lease(renew(&mine)).await.unwrap_err();
    assert_eq!(late.get_details_error_info().unwrap().reason, "LEASE_LOST");
    // A lease that its holder does not renew ends, and another caller gets the session.
    f.clock.advance(Duration::from_secs(30));
    let last = f.client.acquire_session_lease(acquire("T1", "s", "d")).await.unwrap();
    assert!(granted(last.into_inner()).fencing_token > next.fencing_token);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_is_run_once_and_its_result_replayed() {
    let f = Fixture::memory().await;
    let mut turns = TurnServiceClient::new(connect(f.replica.server.address()).await);
    let wish = |holder: &str| BeginTurnRequest {
        event: event("T1", "Ev1"),
        session: session("T1", "s"),
        holder: holder.into(),
        claim_ttl: seconds(10),
        ..Default::default()
    };
    let Some(Outcome::Granted(crashed)) =
        turns.begin_turn(wish("a")).await.unwrap().into_inner().outcome
    else {
        panic!("not granted")
    };
    assert_eq!(crashed.turn.unwrap().attempt, 1);
    let Some(Outcome::InProgress(claimed)) =
        turns.begin_turn(wish("b")).await.unwrap().into_inner().outcome
    else {
        panic!("not in progress")
    };
    assert_eq!(claimed.holder, "a");

    // The run of `a` has crashed: the next delivery gets the event, and the session with it.
    f.clock.advance(Duration::from_secs(10));
    let Some(Outcome::Granted(granted)) =
        turns.begin_turn(wish("b")).await.unwrap().into_inner().outcome
    else {
        panic!("not granted")
    };
    let turn = granted.turn.unwrap();
    assert_eq!(turn.attempt, 2);
    let finish = FinishTurnRequest {
        turn_id: turn.turn_id,
        outcome: TurnOutcome::Succeeded.into(),
        result: b"answer".into(),
        ..Default::default()
    };
    turns.finish_turn(finish).await.unwrap();
    let Some(Outcome::Duplicate(duplicate)) =
        turns.begin_turn(wish("c")).await.unwrap().into_inner().outcome
    else {
        panic!("no duplicate")
    };
    assert_eq!(duplicate.result, b"answer");
    assert_eq!(duplicate.event.unwrap().state(), EventState::Processed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_lists_counts_and_repairs() {
    let mut f = Fixture::memory().await;
    let mut admin = AdminServiceClient::new(connect(f.replica.server.address()).await);
    for id in ["b", "a"] {
        assert!(first(&mut f.client, id).await);
    }
    f.client.mark_processed(mark("T2", "a")).await.unwrap();
    let mut lease = None;
    for id in ["busy", "idle"] {
        let answer = f.client.acquire_session_lease(acquire("T1", id, "a")).await.unwrap();
        lease = Some(granted(answer.into_inner()));
    }
    f.client.release_session_lease(release(&lease.unwrap())).await.unwrap();

    let stats = |team: &str| GetStatsRequest { team_id: team.into() };
    let of_team =
        GetStatsResponse { events: 2, sessions: 2, held_sessions: 1, ..Default::default() };
    assert_eq!(admin.get_stats(stats("T1")).await.unwrap().into_inner(), of_team);
    let all = GetStatsResponse { events: 3, ..of_team };
    assert_eq!(admin.get_stats(stats("")).await.unwrap().into_inner(), all);

    // A page at a time.
    let mut listed = Vec::new();
    let mut list = ListSessionsRequest { team_id: "T1".into(), page_size: 1, ..Default::default() };
    loop {
        let page = admin.list_sessions(list.clone()).await.unwrap().into_inner();
        listed
            .extend(page.sessions.into_iter().map(|session| (session.session_id, session.holder)));
        if page.next_page_token.is_empty() {
            break;
        }
        list.page_token = page.next_page_token;
    }
    assert_eq!(listed.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["busy", "idle"]);
    let list = ListEventsRequest { team_id: "T1".into(), ..Default::default() };
    let events = admin.list_events(list).await.unwrap().into_inner().events;
    assert_eq!(events.iter().map(|event| &event.event_id).collect::<Vec<_>>(), ["a", "b"]);

    let forget =
        ForgetEventRequest { event: event("T1", "a"), actor: "ops".into(), ..Default::default() };
    admin.forget_event(forget).await.unwrap();
    assert!(first(&mut f.client, "a").await, "a forgotten event is new, also for the cache");
    let force = ForceReleaseSessionLeaseRequest {
        session: session("T1", "busy"),
        actor: "ops".into(),
        reason: "stuck".into(),
    };
    admin.force_release_session_lease(force).await.unwrap();
    let next = f.client.acquire_session_lease(acquire("T1", "busy", "b")).await.unwrap();
    granted(next.into_inner());
    let bind = BindEpicRequest {
        session: session("T1", "idle"),
        epic_id: "PROJ-50".into(),
        actor: "ops".into(),
        ..Default::default()
    };
    admin.bind_epic(bind).await.unwrap();

    // Expired events and idle sessions are deleted, and bound sessions stay.
    f.clock.advance(Duration::from_hours(24));
    let cleaned = f.client.cleanup(CleanupRequest::default()).await.unwrap().into_inner();
    assert_eq!((cleaned.deleted_events, cleaned.deleted_sessions), (3, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_on_memory_is_ready_and_forgets_all_when_it_stops() {
    let flags = ["--ops-listen", "127.0.0.1:0"];
    let replica = Replica::start("memory:", Clock::Store, &flags).await;
    let mut health = HealthClient::new(connect(replica.server.address()).await);
    for service in ["readiness", "liveness"] {
        let request = HealthCheckRequest { service: service.into() };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let ready = page(replica.server.ops_address().unwrap(), "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");

    let mut client = replica.client().await;
    assert!(first(&mut client, "Ev1").await);
    assert!(!first(&mut client, "Ev1").await);
    metric(&replica, "oncegate_duplicate_cache_in_use 1").await;
    // Another server has a store of its own, in the same process too.
    let other = Replica::start("memory:", Clock::Store, &[]).await;
    assert!(first(&mut other.client().await, "Ev1").await);

    // Its drain waits until the store is closed.
    tokio::time::timeout(Duration::from_secs(30), replica.server.stop()).await.unwrap().unwrap();
    let restarted = Replica::start("memory:", Clock::Store, &[]).await;
    assert!(first(&mut restarted.client().await, "Ev1").await);
}
