//! In which order statements lock rows: two that want the same must not wait for each other, and
//! one whose session another replica works on waits for nothing.

use std::time::Duration;

use oncegate::{
    domain::{Begin, Begun, Finish, FinishAs, TurnId},
    store::{
        Clock, Connection, SessionOp, SessionStore as _, Store as _, TurnStore as _, Upkeep as _,
        Verdict, Work, postgres::Postgres,
    },
};
use sqlx::{Connection as _, Executor as _, PgConnection, Postgres as Db, Transaction};
use tokio::time::timeout;

use super::late::blocked;
use crate::harness::{
    execute,
    ops::{acquire, begin, enqueue, key},
    postgres::new_database,
};

/// For what must not wait.
const SOON: Duration = Duration::from_secs(20);

struct Stage {
    url: String,
    store: Postgres,
    outside: PgConnection,
}

impl Stage {
    async fn new() -> Self {
        let url = new_database().await;
        let store = Postgres::new(&url, Duration::from_mins(1), Clock::Store).unwrap();
        store.migrate().await.unwrap();
        let outside = PgConnection::connect(&url).await.unwrap();
        Self { url, store, outside }
    }

    fn connection(&self) -> impl Connection {
        self.store.connection(Work::Leases)
    }

    async fn lock(&mut self, statement: &'static str) -> Transaction<'_, Db> {
        let mut locking = self.outside.begin().await.unwrap();
        locking.execute(statement).await.unwrap();
        locking
    }
}

/// Begins a turn, and answers how it fails.
async fn begun(store: &mut impl Connection, asked: &Begin) -> Finish {
    let turned = store.change_turns(&[asked], &[]).await.unwrap();
    let [Verdict::Decided(Begun::Granted { claim, lease, .. })] = &turned.begins[..] else {
        panic!("{turned:?}")
    };
    let turn = TurnId {
        event: asked.event.key.clone(),
        request: asked.request,
        attempt: claim.attempt,
        max_attempts: asked.max_attempts,
        lease: lease.as_ref().map(|lease| (key("turn"), lease.id)),
    };
    Finish::new(turn, FinishAs::Failed(None), None)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_names_of_an_event_are_locked_in_one_order() {
    let mut stage = Stage::new().await;
    let mut store = stage.connection();
    let finish = begun(&mut store, &begin("Ev1", &["A"])).await;
    let url = stage.url.clone();
    let mut locking =
        stage.lock("SELECT FROM processed_events WHERE event_id = 'A' FOR UPDATE").await;
    let ending = tokio::spawn(async move {
        store.change_turns(&[], &[&finish]).await.unwrap().finishes.pop().unwrap()
    });
    blocked(&mut locking, 1).await;
    // It has not locked its own name yet.
    let own = "SELECT FROM processed_events WHERE event_id = 'Ev1' FOR UPDATE NOWAIT";
    execute(&url, own).await;
    locking.commit().await.unwrap();
    let kept = ending.await.unwrap();
    assert!(matches!(kept, Verdict::Decided(Ok(_))), "{kept:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_names_of_a_new_event_are_added_in_one_order() {
    let mut stage = Stage::new().await;
    let mut store = stage.connection();
    let url = stage.url.clone();
    let add = "INSERT INTO processed_events (team_id, event_id) VALUES ('T1', 'A')";
    let mut locking = stage.lock(add).await;
    let beginning = tokio::spawn(async move {
        store.change_turns(&[&begin("Ev1", &["A"])], &[]).await.unwrap().begins.pop().unwrap()
    });
    blocked(&mut locking, 1).await;
    // It has not added its own name yet.
    let own = "SET lock_timeout = '1s';
        BEGIN; INSERT INTO processed_events (team_id, event_id) VALUES ('T1', 'Ev1'); ROLLBACK";
    execute(&url, own).await;
    locking.rollback().await.unwrap();
    let begun = beginning.await.unwrap();
    assert!(matches!(begun, Verdict::Decided(Begun::Granted { .. })), "{begun:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_whose_session_another_replica_works_on_waits_for_no_row() {
    let mut stage = Stage::new().await;
    let (mut store, mut other) = (stage.connection(), stage.connection());
    let taken = begun(&mut store, &begin("Ev1", &["A"])).await;
    let free = begun(&mut store, &Begin { session: None, ..begin("Ev2", &["B"]) }).await;
    let mut locking = stage
        .lock(
            "SELECT FROM oncegate_sessions FOR UPDATE;
            SELECT FROM processed_events WHERE event_id IN ('Ev1', 'A') FOR UPDATE",
        )
        .await;
    // The other has the session's advisory lock, and waits for its row.
    let waiter = enqueue("turn", 2);
    let waiting = tokio::spawn(async move {
        other.change_sessions(&[SessionOp::Enqueue(&waiter)]).await.unwrap();
    });
    blocked(&mut locking, 1).await;
    let finishes = [&taken, &free];
    let ending = store.change_turns(&[], &finishes);
    let kept = timeout(SOON, ending).await.expect("it waits").unwrap().finishes;
    assert!(matches!(kept[..], [Verdict::Retry, Verdict::Decided(Ok(_))]), "{kept:?}");
    locking.commit().await.unwrap();
    waiting.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_does_not_wait_for_places_that_others_change() {
    let mut stage = Stage::new().await;
    let mut store = stage.connection();
    store.change_sessions(&[SessionOp::Acquire(&acquire("s", 1))]).await.unwrap();
    let waiter = enqueue("s", 2);
    store.change_sessions(&[SessionOp::Enqueue(&waiter)]).await.unwrap();
    let leave = SessionOp::Leave { key: &key("s"), lease: waiter.acquire.lease.id(), keep: true };
    store.change_sessions(&[leave]).await.unwrap();
    execute(&stage.url, "UPDATE oncegate_waiters SET left_at = left_at - interval '1 h'").await;
    let count = "SELECT FROM oncegate_waiters FOR UPDATE";
    let mut locking = stage.lock(count).await;
    timeout(SOON, store.heartbeat()).await.expect("it waits").unwrap();
    assert_eq!(locking.execute(count).await.unwrap().rows_affected(), 1);
    locking.commit().await.unwrap();
    store.heartbeat().await.unwrap();
    assert_eq!(stage.outside.execute(count).await.unwrap().rows_affected(), 0);
}
