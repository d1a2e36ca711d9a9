//! What `Cleanup` takes and what it keeps: of every kind of event, under all names, and of
//! every kind of session.

use std::collections::BTreeSet;

use oncegate::grpc::pb::{
    BeginTurnRequest, BindEpicRequest, EventKey, EventState, FinishTurnRequest,
    ForceReleaseSessionLeaseRequest, IsProcessedRequest, ListEventsRequest, ListSessionsRequest,
    RenewTurnRequest, Turn, TurnOutcome, admin_service_client::AdminServiceClient,
    begin_turn_response::Outcome, turn_service_client::TurnServiceClient,
};
use tonic::transport::Channel;

use super::*;
use crate::harness::{connect, event, held, renew};

on_both_stores!(
    a_running_claim_stays_and_what_is_as_old_goes,
    only_expired_events_go_without_an_age,
    an_old_event_is_forgotten_with_its_attempts,
    a_session_goes_once_its_last_lease_has_ended_for_so_long,
);

const TEAM: &str = "T";

struct Services {
    turns: TurnServiceClient<Channel>,
    admin: AdminServiceClient<Channel>,
}

async fn services(f: &Fixture) -> Services {
    let channel = connect(f.replica.server.address()).await;
    Services {
        turns: TurnServiceClient::new(channel.clone()),
        admin: AdminServiceClient::new(channel),
    }
}

/// The event `id`, which is known by another name too.
#[expect(clippy::unnecessary_wraps, reason = "as a message's field takes it")]
fn named(id: &str) -> Option<EventKey> {
    Some(EventKey { aliases: vec![alias(id)], ..event(TEAM, id).unwrap() })
}

fn alias(id: &str) -> String {
    format!("{id}, alias")
}

impl Services {
    /// Begins a turn of the event `id` without a session.
    async fn begin(&mut self, id: &str, claim_ttl: i64, max_attempts: i32) -> Turn {
        let request = BeginTurnRequest {
            event: named(id),
            holder: "h".into(),
            claim_ttl: seconds(claim_ttl),
            max_attempts,
            ..Default::default()
        };
        match self.turns.begin_turn(request).await.unwrap().into_inner().outcome.unwrap() {
            Outcome::Granted(granted) => granted.turn.unwrap(),
            other => panic!("not granted: {other:?}"),
        }
    }

    async fn finish(&mut self, turn: &Turn, outcome: TurnOutcome) {
        let turn_id = turn.turn_id.clone();
        let request = FinishTurnRequest { turn_id, outcome: outcome.into(), ..Default::default() };
        self.turns.finish_turn(request).await.unwrap();
    }

    /// The events on record that have not expired.
    async fn events(&mut self, older_than: Option<i64>) -> BTreeSet<String> {
        let older_than = older_than.and_then(seconds);
        let request = ListEventsRequest { older_than, ..Default::default() };
        let listed = self.admin.list_events(request).await.unwrap().into_inner();
        listed.events.into_iter().map(|event| event.event_id).collect()
    }

    async fn sessions(&mut self) -> BTreeSet<String> {
        let listed = self.admin.list_sessions(ListSessionsRequest::default()).await.unwrap();
        listed.into_inner().sessions.into_iter().map(|session| session.session_id).collect()
    }
}

/// Leaves an event of each kind, all but the last two of the same age, and moves the clock
/// 1,000 s on. Answers the turns that still run.
async fn one_of_each_event(f: &mut Fixture, services: &mut Services) -> Vec<Turn> {
    let marked = |id: &str, ttl| MarkProcessedRequest {
        event: named(id),
        ttl: seconds(ttl),
        ..Default::default()
    };
    f.client.mark_processed(marked("marked", 86_400)).await.unwrap();
    f.client.mark_processed(marked("expired", 1)).await.unwrap();
    let running = services.begin("running", 3_600, 5).await;
    let renewed = services.begin("renewed", 600, 5).await;
    // One claim lapses early, one just before the clock stops, one as it stops.
    services.begin("lapsed early", 10, 5).await;
    services.begin("lapsed late", 900, 5).await;
    services.begin("lapsed now", 1_000, 5).await;
    for (id, max_attempts, outcome) in [
        ("failed", 5, TurnOutcome::Failed),
        ("given up", 1, TurnOutcome::Failed),
        ("succeeded", 5, TurnOutcome::Succeeded),
    ] {
        let turn = services.begin(id, 300, max_attempts).await;
        services.finish(&turn, outcome).await;
    }
    let failing = services.begin("failed late", 900, 5).await;
    let succeeding = services.begin("succeeded late", 900, 5).await;
    f.clock.advance(Duration::from_secs(500));
    let renewal = RenewTurnRequest {
        turn_id: renewed.turn_id.clone(),
        claim_ttl: seconds(600),
        ..Default::default()
    };
    services.turns.renew_turn(renewal).await.unwrap();
    f.clock.advance(Duration::from_secs(100));
    services.finish(&failing, TurnOutcome::Failed).await;
    services.finish(&succeeding, TurnOutcome::Succeeded).await;
    f.clock.advance(Duration::from_secs(400));
    vec![running, renewed]
}

const RUNNING: [&str; 2] = ["renewed", "running"];
const LATE: [&str; 2] = ["failed late", "succeeded late"];

fn set(ids: &[&[&str]]) -> BTreeSet<String> {
    ids.iter().copied().flatten().map(|&id| id.to_owned()).collect()
}

/// Cleans up after it has counted, which must answer the same.
async fn counted_and_cleaned(f: &mut Fixture, request: CleanupRequest) -> CleanupResponse {
    let before = rows(&f.url).await;
    let dry = CleanupRequest { dry_run: true, ..request.clone() };
    let counted = clean(&mut f.client, dry.clone()).await;
    assert_eq!(clean(&mut f.client, dry).await, counted);
    assert_eq!(rows(&f.url).await, before, "a dry run deletes nothing");
    let cleaned = clean(&mut f.client, request.clone()).await;
    assert_eq!(cleaned, counted, "{request:?}");
    let gone = before - rows(&f.url).await;
    assert_eq!(gone, cleaned.deleted_events + cleaned.deleted_sessions, "{request:?}");
    cleaned
}

async fn a_running_claim_stays_and_what_is_as_old_goes(mut f: Fixture) {
    let mut services = services(&f).await;
    let running = one_of_each_event(&mut f, &mut services).await;
    let all = services.events(None).await;
    let other_team = MarkProcessedRequest { ttl: seconds(60), ..mark("T2", "other") };
    f.client.mark_processed(other_team).await.unwrap();

    // The same age means the same to ListEvents; a claim that runs is no event to delete.
    assert_eq!(counted_and_cleaned(&mut f, older_than(1_001)).await, deleted(0, 0));
    assert_eq!(services.events(Some(1_001)).await, set(&[]));
    let old = services.events(Some(1_000)).await;
    assert_eq!(&old | &set(&[&LATE]), all);
    // What had expired is not listed, and goes as well: each under two names.
    let going = &(&old - &set(&[&RUNNING])) | &set(&[&["expired"]]);
    let count = 2 * i64::try_from(going.len()).unwrap();
    assert_eq!(counted_and_cleaned(&mut f, older_than(500)).await, deleted(count, 0));
    assert_eq!(services.events(None).await, set(&[&RUNNING, &LATE, &["other"]]));
    for id in going {
        for name in [alias(&id), id] {
            let request = IsProcessedRequest { event: event(TEAM, &name), ..Default::default() };
            let found = f.client.is_processed(request).await.unwrap().into_inner();
            assert_eq!(found.state(), EventState::NotSeen, "{name}");
        }
    }

    assert_eq!(counted_and_cleaned(&mut f, older_than(401)).await, deleted(0, 0));
    let whole_team = of_team(TEAM, &older_than(0));
    assert_eq!(counted_and_cleaned(&mut f, whole_team.clone()).await, deleted(4, 0));
    assert_eq!(services.events(None).await, set(&[&RUNNING, &["other"]]));
    // Those that run have lost nothing, under any name.
    for turn in running {
        services.finish(&turn, TurnOutcome::Succeeded).await;
    }
    for id in RUNNING {
        let request = IsProcessedRequest { event: event(TEAM, &alias(id)), ..Default::default() };
        let found = f.client.is_processed(request).await.unwrap().into_inner();
        assert_eq!(found.state(), EventState::Processed, "{id}");
    }
    assert_eq!(counted_and_cleaned(&mut f, whole_team).await, deleted(4, 0));
}

async fn only_expired_events_go_without_an_age(mut f: Fixture) {
    let mut services = services(&f).await;
    let running = one_of_each_event(&mut f, &mut services).await;
    let all = services.events(None).await;
    assert_eq!(counted_and_cleaned(&mut f, EXPIRED).await, deleted(2, 0));
    assert_eq!(services.events(None).await, all);
    assert_eq!(counted_and_cleaned(&mut f, of_team(TEAM, &EXPIRED)).await, deleted(0, 0));
    // A lapsed claim's attempts are still counted.
    assert_eq!(services.begin("lapsed late", 60, 5).await.attempt, 2);
    assert_eq!(services.begin("failed late", 60, 5).await.attempt, 2);
    for turn in running {
        services.finish(&turn, TurnOutcome::Succeeded).await;
    }
}

async fn an_old_event_is_forgotten_with_its_attempts(mut f: Fixture) {
    let mut services = services(&f).await;
    one_of_each_event(&mut f, &mut services).await;
    counted_and_cleaned(&mut f, older_than(500)).await;
    let forgotten = ["lapsed early", "lapsed late", "lapsed now", "failed", "given up"];
    for id in forgotten {
        assert_eq!(services.begin(id, 60, 5).await.attempt, 1, "{id}");
    }
    assert_eq!(services.begin("failed late", 60, 5).await.attempt, 2);
    for (id, first) in [("marked", true), ("succeeded", true), ("succeeded late", false)] {
        for name in [alias(id), id.to_owned()] {
            assert_eq!(is_new(&mut f.client, TEAM, &name, 60).await, first, "{name}");
        }
    }
}

async fn a_session_goes_once_its_last_lease_has_ended_for_so_long(mut f: Fixture) {
    let mut services = services(&f).await;
    let take = async |f: &mut Fixture, id: &str, ttl| {
        let request = AcquireSessionLeaseRequest { ttl: seconds(ttl), ..acquire(TEAM, id, "h") };
        granted(f.client.acquire_session_lease(request).await.unwrap().into_inner())
    };
    let bind = |id: &str, epic: &str| BindEpicRequest {
        session: session(TEAM, id),
        epic_id: epic.into(),
        actor: "ops".into(),
        ..Default::default()
    };
    for id in ["released", "bound", "unbound"] {
        let lease = take(&mut f, id, 30).await;
        assert!(release(&mut f.client, &lease).await);
    }
    let forced = ForceReleaseSessionLeaseRequest {
        session: session(TEAM, "forced"),
        actor: "ops".into(),
        reason: "stuck".into(),
    };
    take(&mut f, "forced", 900).await;
    services.admin.force_release_session_lease(forced).await.unwrap();
    for (id, epic) in [("bound", "PROJ-1"), ("unbound", "PROJ-2"), ("never held", "PROJ-3")] {
        services.admin.bind_epic(bind(id, epic)).await.unwrap();
    }
    take(&mut f, "lapsed", 100).await;
    let renewed = take(&mut f, "renewed", 100).await;
    let waited_for = take(&mut f, "waited for", 900).await;
    let held_long = take(&mut f, "held", 900).await;
    let mut waiter = f.client.clone();
    let request =
        AcquireSessionLeaseRequest { wait: seconds(600), ..acquire(TEAM, "waited for", "waiter") };
    let waiting = tokio::spawn(async move { waiter.acquire_session_lease(request).await });
    let mut stands = f.client.clone();
    let look = || acquire(TEAM, "waited for", "x");
    while held(stands.acquire_session_lease(look()).await.unwrap().into_inner()).queue_length == 0 {
    }
    f.clock.advance(Duration::from_secs(100));
    // Too late for the first, in time for the other.
    services.admin.bind_epic(bind("unbound", "")).await.unwrap();
    f.client.renew_session_lease(renew(&renewed)).await.unwrap_err();
    f.clock.advance(Duration::from_secs(100));

    let all = services.sessions().await;
    let all_ids = ["bound", "forced", "held", "lapsed", "never held", "released", "renewed"];
    assert_eq!(all, set(&[&all_ids, &["unbound", "waited for"]]));
    assert_eq!(counted_and_cleaned(&mut f, older_than(201)).await, deleted(0, 0));
    // Ended 200 s ago; what was bound in between counts from its lease as well.
    assert_eq!(counted_and_cleaned(&mut f, older_than(101)).await, deleted(0, 3));
    let rest = set(&[&["bound", "held", "lapsed", "never held", "renewed", "waited for"]]);
    assert_eq!(services.sessions().await, rest);
    assert_eq!(counted_and_cleaned(&mut f, older_than(100)).await, deleted(0, 2));
    for request in [EXPIRED, of_team(TEAM, &older_than(0))] {
        assert_eq!(counted_and_cleaned(&mut f, request).await, deleted(0, 0));
    }
    assert_eq!(services.sessions().await, set(&[&["bound", "held", "never held", "waited for"]]));

    // Those that stay are as they were.
    assert!(release(&mut f.client, &held_long).await);
    assert!(release(&mut f.client, &waited_for).await);
    let next = granted(waiting.await.unwrap().unwrap().into_inner());
    assert!(next.fencing_token > waited_for.fencing_token);
    assert!(release(&mut f.client, &next).await);
    f.clock.advance(Duration::from_micros(10_000_001)); // a token may be ahead of the clock
    assert_eq!(counted_and_cleaned(&mut f, EXPIRED).await, deleted(0, 2));
    assert_eq!(services.sessions().await, set(&[&["bound", "never held"]]));
}
