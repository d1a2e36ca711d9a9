//! `oncegate fence`: works on the database itself, and never lowers the floor.

use oncegate::{domain::FencingToken, server};
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use tempfile::tempdir;

use super::{Ran, oncegate, run};
use crate::{
    contention::late::blocked,
    harness::{
        Replica, TestClock, acquire, config, execute, granted, postgres::new_database, sqlite_url,
    },
};

fn fence(url: &str, arguments: &[&str]) -> Ran {
    run(oncegate(&["fence"]).args(arguments).args(["--database-url", url]), "")
}

const DAY: i64 = 86_400_000_000;

async fn is_shown_and_raised(url: &str) {
    let why = fence(url, &["show"]);
    assert_eq!(why.code, Some(1), "{why:?}");
    assert!(why.err.contains("run `oncegate migrate`"), "{why:?}");
    server::migrate(&config(url, &[]).store).await.unwrap();

    let clock = TestClock::new();
    let replica = Replica::start(url, clock.store_clock(), &[]).await;
    let mut client = replica.client().await;
    let lease = client.acquire_session_lease(acquire("T1", "s", "a")).await.unwrap();
    let before = granted(lease.into_inner()).fencing_token;
    if url.starts_with("sqlite:") {
        let refused = fence(url, &["raise"]);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.err.contains("another process uses"), "{refused:?}");
    }
    replica.server.stop().await.unwrap();

    let shown = fence(url, &["show", "--output", "json"]).json(0);
    let floor = shown["floor"].as_i64().unwrap();
    assert_eq!(shown["highest"], json!(before));
    let now = shown["clock"].as_i64().unwrap();
    assert!(now >= before && floor < before, "{shown}");
    let text = fence(url, &["show"]);
    let begins = format!("floor {floor}, highest token on record {before}, clock ");
    assert!(text.code == Some(0) && text.out.starts_with(&begins), "{text:?}");

    // A day above all that is known, by default.
    let raised = fence(url, &["raise", "--output", "json"]).json(0);
    let after = raised["after"].as_i64().unwrap();
    assert_eq!(raised["before"], json!(floor));
    assert!(after >= now + DAY && after < now + 2 * DAY, "{raised}");
    let to = after + 5;
    fence(url, &["raise", "--to", &to.to_string()])
        .told(0, &format!("floor raised from {after} to {to}"));
    for lower in [to, to - 1, 1] {
        let refused = fence(url, &["raise", "--to", &lower.to_string()]);
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(
            refused.err.contains(&format!("must be above the current floor {to}")),
            "{refused:?}"
        );
    }
    for bad in ["0", "-1", "9007199254740992", "4503599627370497", "x"] {
        let refused = fence(url, &["raise", &format!("--to={bad}")]);
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.err.contains("--to"), "{refused:?}");
    }
    let replica = Replica::start(url, clock.store_clock(), &["--migrate", "false"]).await;
    clock.advance(std::time::Duration::from_secs(30));
    for id in ["s", "new"] {
        let mut client = replica.client().await;
        let lease = client.acquire_session_lease(acquire("T1", id, "b")).await.unwrap();
        assert_eq!(granted(lease.into_inner()).fencing_token, to + 1);
    }
    replica.server.stop().await.unwrap();

    // Of the highest floor that there may be, no default is above.
    let highest = FencingToken::MAX_FLOOR.0.to_string();
    assert_eq!(fence(url, &["raise", "--to", &highest]).code, Some(0));
    let refused = fence(url, &["raise"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("set --to"), "{refused:?}");
    execute(url, "DELETE FROM oncegate_fence").await;
    let refused = fence(url, &["show"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("oncegate_fence has no row"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_is_under_way_is_not_below_the_raised_floor() {
    let url = new_database().await;
    let settings = config(&url, &[]).store;
    server::migrate(&settings).await.unwrap();
    let mut outside = PgConnection::connect(&url).await.unwrap();
    let mut granting = outside.begin().await.unwrap();
    let grant = "INSERT INTO oncegate_sessions (team_id, session_id, fencing_token, lease_id,
            request_id, holder, labels, acquired_at, expires_at)
        VALUES ('T1', 's', 7, gen_random_uuid(), gen_random_uuid(), 'a', '{}', now(), now())";
    sqlx::query(grant).execute(&mut *granting).await.unwrap();
    let raise = async move { server::raise_fence(&settings, FencingToken(5)).await };
    let mut raising = tokio::spawn(raise);
    tokio::select! {
        () = blocked(&mut granting, 1) => {}
        raised = &mut raising => panic!("it does not wait: {raised:?}"),
    }
    granting.commit().await.unwrap();
    let raised = raising.await.unwrap().unwrap();
    assert_eq!((raised.floor.0, raised.highest.0), (5, 7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_floor_in_postgres_is_shown_and_raised() {
    is_shown_and_raised(&new_database().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_floor_in_sqlite_is_shown_and_raised() {
    let directory = tempdir().unwrap();
    is_shown_and_raised(&sqlite_url(&directory)).await;
}
