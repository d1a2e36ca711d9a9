//! Cleanup: what is over goes, when asked and by itself; nothing else ever does.

use std::{str::FromStr as _, time::Duration};

use futures_util::future::join_all;
use oncegate::{
    cleanup::BATCH_ROWS,
    grpc::pb::{
        AcquireSessionLeaseRequest, BatchMarkProcessedRequest, CleanupRequest, CleanupResponse,
        MarkProcessedRequest, ReleaseSessionLeaseRequest, SessionLease,
    },
};
use sqlx::{
    Connection as _, PgConnection, SqliteConnection, query_scalar, sqlite::SqliteConnectOptions,
};

use crate::{
    harness::{Client, Fixture, Replica, acquire, granted, mark, seconds, session},
    on_both_stores,
};

mod kinds;

on_both_stores!(
    only_what_has_expired_goes,
    what_is_old_goes_expired_or_not,
    a_team_is_cleaned_by_itself,
    a_team_is_emptied_by_an_age_of_zero,
    a_dry_run_counts_and_deletes_nothing,
    held_and_bound_sessions_never_go,
    max_rows_bounds_one_call_and_more_says_so,
    one_call_deletes_more_than_one_batch,
    expired_rows_leave_by_themselves,
);

const EXPIRED: CleanupRequest =
    CleanupRequest { team_id: String::new(), older_than: None, max_rows: 0, dry_run: false };

fn older_than(age: i64) -> CleanupRequest {
    CleanupRequest { older_than: seconds(age), ..EXPIRED }
}

fn of_team(team: &str, request: &CleanupRequest) -> CleanupRequest {
    CleanupRequest { team_id: team.into(), ..*request }
}

/// What a cleanup that finished answers.
fn deleted(events: i64, sessions: i64) -> CleanupResponse {
    CleanupResponse { deleted_events: events, deleted_sessions: sessions, more: false }
}

async fn clean(client: &mut Client, request: CleanupRequest) -> CleanupResponse {
    client.cleanup(request).await.unwrap().into_inner()
}

/// Marks an event, and tells whether it was new.
async fn is_new(client: &mut Client, team: &str, id: &str, ttl: i64) -> bool {
    let request = MarkProcessedRequest { ttl: seconds(ttl), ..mark(team, id) };
    let marked = client.mark_processed(request).await.unwrap();
    marked.into_inner().first
}

/// Takes a session's lease for 30 s, bound to `epic` unless that is empty.
async fn take(client: &mut Client, team: &str, id: &str, epic: &str) -> SessionLease {
    let request = AcquireSessionLeaseRequest { epic_id: epic.into(), ..acquire(team, id, "h") };
    let answer = client.acquire_session_lease(request).await.unwrap();
    granted(answer.into_inner())
}

async fn release(client: &mut Client, lease: &SessionLease) -> bool {
    let request = ReleaseSessionLeaseRequest {
        session: session(&lease.team_id, &lease.session_id),
        lease_id: lease.lease_id.clone(),
    };
    let answer = client.release_session_lease(request).await.unwrap();
    answer.into_inner().released
}

async fn only_what_has_expired_goes(mut f: Fixture) {
    assert!(is_new(&mut f.client, "T", "short", 30).await);
    assert!(is_new(&mut f.client, "T", "long", 31).await);
    take(&mut f.client, "T", "lapsed", "").await;
    let given_back = take(&mut f.client, "T", "given back", "").await;
    assert!(release(&mut f.client, &given_back).await);
    // A grant that is on its way may not see the floor of fencing tokens that this would raise.
    f.clock.advance(Duration::from_micros(9_999_999));
    assert_eq!(clean(&mut f.client, EXPIRED).await, deleted(0, 0));
    f.clock.advance(Duration::from_micros(1));
    assert_eq!(clean(&mut f.client, EXPIRED).await, deleted(0, 1));

    f.clock.advance(Duration::from_micros(19_999_999));
    assert_eq!(clean(&mut f.client, EXPIRED).await, deleted(0, 0));
    f.clock.advance(Duration::from_micros(1));
    assert_eq!(clean(&mut f.client, EXPIRED).await, deleted(1, 1));
    assert_eq!(clean(&mut f.client, EXPIRED).await, deleted(0, 0));
    assert!(is_new(&mut f.client, "T", "short", 30).await);
    assert!(!is_new(&mut f.client, "T", "long", 30).await);
}

async fn what_is_old_goes_expired_or_not(mut f: Fixture) {
    assert!(is_new(&mut f.client, "T", "expired", 1).await);
    assert!(is_new(&mut f.client, "T", "live", 86_400).await);
    let idle = take(&mut f.client, "T", "idle", "").await;
    assert!(release(&mut f.client, &idle).await);
    f.clock.advance(Duration::from_secs(100));
    assert!(is_new(&mut f.client, "T", "younger", 1).await);
    let younger = take(&mut f.client, "T", "younger", "").await;
    assert!(release(&mut f.client, &younger).await);
    f.clock.advance(Duration::from_secs(10));

    assert_eq!(clean(&mut f.client, older_than(111)).await, deleted(0, 0));
    assert_eq!(clean(&mut f.client, older_than(110)).await, deleted(2, 1));
    assert!(is_new(&mut f.client, "T", "live", 86_400).await);
    // Expired, but not old.
    assert_eq!(clean(&mut f.client, EXPIRED).await, deleted(1, 1));
}

async fn a_team_is_cleaned_by_itself(mut f: Fixture) {
    for team in ["T1", "T2"] {
        assert!(is_new(&mut f.client, team, "a", 1).await);
        assert!(is_new(&mut f.client, team, "b", 86_400).await);
        take(&mut f.client, team, "s", "").await;
    }
    f.clock.advance(Duration::from_secs(30));
    let expired = of_team("T1", &EXPIRED);
    assert_eq!(clean(&mut f.client, expired.clone()).await, deleted(1, 1));
    assert_eq!(clean(&mut f.client, expired).await, deleted(0, 0));
    let old = of_team("T1", &older_than(30));
    assert_eq!(clean(&mut f.client, old.clone()).await, deleted(1, 0));
    assert_eq!(clean(&mut f.client, old).await, deleted(0, 0));
    let nobodys = of_team("T", &older_than(0));
    assert_eq!(clean(&mut f.client, nobodys).await, deleted(0, 0));
    // The other team's session only ended now.
    assert_eq!(clean(&mut f.client, older_than(30)).await, deleted(2, 0));
}

async fn a_team_is_emptied_by_an_age_of_zero(mut f: Fixture) {
    for team in ["T1", "T2"] {
        assert!(is_new(&mut f.client, team, "past", 1).await);
    }
    f.clock.advance(Duration::from_secs(30));
    for team in ["T1", "T2"] {
        assert!(is_new(&mut f.client, team, "present", 86_400).await);
    }
    let all = of_team("T1", &older_than(0));
    assert_eq!(clean(&mut f.client, all).await, deleted(2, 0));
    assert!(is_new(&mut f.client, "T1", "present", 86_400).await);
    assert!(!is_new(&mut f.client, "T2", "present", 86_400).await);
}

async fn a_dry_run_counts_and_deletes_nothing(mut f: Fixture) {
    for id in ["a", "b", "c"] {
        assert!(is_new(&mut f.client, "T", id, 1).await);
        take(&mut f.client, "T", id, "").await;
    }
    assert!(is_new(&mut f.client, "T", "live", 86_400).await);
    f.clock.advance(Duration::from_secs(30));
    for (request, counted) in [
        (EXPIRED, deleted(3, 3)),
        (of_team("T", &EXPIRED), deleted(3, 3)),
        (of_team("U", &EXPIRED), deleted(0, 0)),
        (older_than(30), deleted(4, 0)),
        (of_team("T", &older_than(0)), deleted(4, 3)),
        (older_than(31), deleted(0, 0)),
    ] {
        let dry = CleanupRequest { dry_run: true, ..request };
        for _ in 0..2 {
            assert_eq!(clean(&mut f.client, dry.clone()).await, counted, "{dry:?}");
        }
        // max_rows bounds the counting too.
        if counted.deleted_events > 0 {
            let max_rows = 3;
            let some = clean(&mut f.client, CleanupRequest { max_rows, ..dry }).await;
            assert_eq!(some.deleted_events + some.deleted_sessions, 3);
            assert!(some.more);
        }
    }
    assert_eq!(clean(&mut f.client, EXPIRED).await, deleted(3, 3));
}

async fn held_and_bound_sessions_never_go(mut f: Fixture) {
    let bound = take(&mut f.client, "T", "bound", "PROJ-50").await;
    let bound_and_given_back = take(&mut f.client, "T", "given back", "PROJ-51").await;
    assert!(release(&mut f.client, &bound_and_given_back).await);
    take(&mut f.client, "T", "idle", "").await;
    f.clock.advance(Duration::from_mins(1));
    let held = take(&mut f.client, "T", "held", "").await;
    f.clock.advance(Duration::from_secs(29));

    let all = of_team("T", &older_than(0));
    assert_eq!(clean(&mut f.client, all.clone()).await, deleted(0, 1));
    assert_eq!(clean(&mut f.client, older_than(1)).await, deleted(0, 0));
    assert_eq!(clean(&mut f.client, EXPIRED).await, deleted(0, 0));
    assert!(release(&mut f.client, &held).await, "the lease still ran");
    assert_eq!(clean(&mut f.client, all).await, deleted(0, 1));

    let again = take(&mut f.client, "T", "bound", "").await;
    assert_eq!(again.epic_id, "PROJ-50");
    assert!(again.fencing_token > bound.fencing_token);
    let again = take(&mut f.client, "T", "given back", "").await;
    assert_eq!(again.epic_id, "PROJ-51");
}

async fn max_rows_bounds_one_call_and_more_says_so(mut f: Fixture) {
    for id in ["a", "b", "c", "d"] {
        assert!(is_new(&mut f.client, "T", id, 1).await);
    }
    for id in ["a", "b", "c"] {
        take(&mut f.client, "T", id, "").await;
    }
    f.clock.advance(Duration::from_secs(30));
    let five = CleanupRequest { max_rows: 5, ..EXPIRED };
    let first = clean(&mut f.client, five.clone()).await;
    assert_eq!(first.deleted_events + first.deleted_sessions, 5);
    assert!(first.more);
    let rest = clean(&mut f.client, five.clone()).await;
    assert_eq!(rest.deleted_events + rest.deleted_sessions, 2);
    assert!(!rest.more);
    assert_eq!(clean(&mut f.client, five).await, deleted(0, 0));
}

/// Marks `count` events of team T for a second.
async fn fill(client: &Client, count: u32) {
    let batches = (0..count).collect::<Vec<_>>();
    let batches = batches.chunks(1_000).map(async |numbers| {
        let marks = numbers.iter().map(|number| MarkProcessedRequest {
            ttl: seconds(1),
            ..mark("T", &number.to_string())
        });
        let requests = marks.collect();
        let batch = BatchMarkProcessedRequest { requests };
        client.clone().batch_mark_processed(batch).await.unwrap();
    });
    join_all(batches).await;
}

async fn one_call_deletes_more_than_one_batch(mut f: Fixture) {
    let count = BATCH_ROWS + 2_000;
    fill(&f.client, count).await;
    assert!(is_new(&mut f.client, "T", "live", 86_400).await);
    f.clock.advance(Duration::from_secs(1));
    // One whole batch, a share of the next, and the rest of it.
    let most = CleanupRequest { max_rows: i32::try_from(BATCH_ROWS + 1_000).unwrap(), ..EXPIRED };
    let first = clean(&mut f.client, most.clone()).await;
    assert_eq!(first.deleted_events, i64::from(BATCH_ROWS + 1_000));
    assert!(first.more);
    assert_eq!(clean(&mut f.client, most.clone()).await, deleted(1_000, 0));

    fill(&f.client, count).await;
    f.clock.advance(Duration::from_secs(1));
    let all = clean(&mut f.client, EXPIRED).await;
    assert_eq!(all, deleted(count.into(), 0));
    assert!(!is_new(&mut f.client, "T", "live", 86_400).await);
}

/// How many rows the database at `url` has, events and sessions.
async fn rows(url: &str) -> i64 {
    const COUNT: &str = "SELECT (SELECT count(*) FROM processed_events)
        + (SELECT count(*) FROM oncegate_sessions)";
    if url.starts_with("sqlite:") {
        let options = SqliteConnectOptions::from_str(url).unwrap().read_only(true);
        let mut file = SqliteConnection::connect_with(&options).await.unwrap();
        query_scalar(COUNT).fetch_one(&mut file).await.unwrap()
    } else {
        let mut database = PgConnection::connect(url).await.unwrap();
        query_scalar(COUNT).fetch_one(&mut database).await.unwrap()
    }
}

async fn expired_rows_leave_by_themselves(mut f: Fixture) {
    fill(&f.client, 1_000).await;
    assert!(is_new(&mut f.client, "T", "live", 86_400).await);
    take(&mut f.client, "T", "lapsed", "").await;
    take(&mut f.client, "T", "bound", "PROJ-50").await;
    // A minute more than they are kept: PostgreSQL's sweeps count in whole minutes.
    f.clock.advance(Duration::from_secs(90));
    take(&mut f.client, "T", "held", "").await;
    assert_eq!(rows(&f.url).await, 1_004);

    // An embedded store has one replica; elsewhere two take turns.
    f.replica.server.stop().await.unwrap();
    let replicas = if f.url.starts_with("sqlite:") { 1 } else { 2 };
    let flags = ["--sweep-interval", "50ms"];
    let mut sweepers = Vec::new();
    for _ in 0..replicas {
        sweepers.push(Replica::start(&f.url, f.clock.store_clock(), &flags).await);
    }
    let swept = async {
        while rows(&f.url).await != 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let swept = tokio::time::timeout(Duration::from_secs(30), swept).await;
    assert!(swept.is_ok(), "rows left: {}", rows(&f.url).await);

    let mut client = sweepers[0].client().await;
    assert!(!is_new(&mut client, "T", "live", 86_400).await);
    assert_eq!(take(&mut client, "T", "bound", "").await.epic_id, "PROJ-50");
}
