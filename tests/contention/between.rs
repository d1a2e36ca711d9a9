//! What an older version of the server or an operator changes between the read of an operation and
//! its write: it is written only if what it rests on still holds. A lock of somebody outside keeps
//! the write waiting.

use std::time::Duration;

use oncegate::{
    domain::{Begin, Begun, Finish, FinishAs, LeaseId, Obtained, TurnId},
    store::{
        AdminChanges as _, Clock, Connection, SessionAnswer, SessionOp, SessionStore as _,
        Store as _, TurnStore as _, Verdict, Work, postgres::Postgres,
    },
};
use sqlx::{Connection as _, Executor as _, PgConnection, Postgres as Db, Transaction};

use super::late::blocked;
use crate::harness::{
    execute,
    ops::{acquire, begin, enqueue, key, release, request},
    postgres::{gate, new_database},
};

/// A store, and somebody outside.
async fn stage() -> (impl Connection, PgConnection) {
    let url = new_database().await;
    let store = Postgres::new(&url, Duration::from_mins(1), Clock::Store).unwrap();
    store.migrate().await.unwrap();
    (store.connection(Work::Leases), PgConnection::connect(&url).await.unwrap())
}

async fn change(store: &mut impl Connection, op: SessionOp<'_>) -> Verdict<SessionAnswer> {
    let batch = store.change_sessions(&[op]).await.unwrap();
    batch.answers.into_iter().next().unwrap()
}

/// Takes the session `s`, for which somebody waits then. Answers both leases.
async fn awaited(store: &mut impl Connection) -> (LeaseId, LeaseId) {
    let (first, waiter) = (acquire("s", 1), enqueue("s", 2));
    let Verdict::Decided(SessionAnswer::Acquired(held)) =
        change(store, SessionOp::Acquire(&first)).await
    else {
        panic!("not granted")
    };
    change(store, SessionOp::Enqueue(&waiter)).await;
    (held.row.lease.id, waiter.acquire.lease.id())
}

/// Locks the rows of all sessions.
async fn lock(outside: &mut PgConnection) -> Transaction<'_, Db> {
    let mut locking = outside.begin().await.unwrap();
    locking.execute("SELECT FROM oncegate_sessions FOR UPDATE").await.unwrap();
    locking
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_session_is_handed_to_a_place_that_is_gone() {
    for gone in ["DELETE FROM oncegate_waiters", "UPDATE oncegate_waiters SET left_at = now()"] {
        let (mut store, mut outside) = stage().await;
        let (held, _) = awaited(&mut store).await;
        let mut locking = lock(&mut outside).await;
        let ending = tokio::spawn(async move {
            let answer = change(&mut store, SessionOp::Release(&release("s", held))).await;
            (answer, store)
        });
        blocked(&mut locking, 1).await;
        // An older version of the server removes a place without a change of its session.
        locking.execute(gone).await.unwrap();
        locking.commit().await.unwrap();
        let (answer, mut store) = ending.await.unwrap();
        assert!(matches!(answer, Verdict::Retry), "{answer:?}");
        // Asked again, it finds nobody.
        change(&mut store, SessionOp::Release(&release("s", held))).await;
        let rows = store.look_sessions(&[&key("s")]).await.unwrap();
        assert!(rows[0].as_ref().is_some_and(|row| !row.live), "{rows:?}");
    }
}

/// Above the clock.
const FLOOR: i64 = 1 << 52;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_new_session_has_a_token_below_a_floor_that_was_raised_meanwhile() {
    let url = new_database().await;
    let store = Postgres::new(&url, Duration::from_mins(1), Clock::Store).unwrap();
    store.migrate().await.unwrap();
    let mut outside = PgConnection::connect(&url).await.unwrap();
    // The write reads the clock once it has its locks, and then waits.
    execute(&url, &gate("current_query() LIKE '%added_sessions%'")).await;
    let mut locking = outside.begin().await.unwrap();
    locking.execute("SELECT FROM gate FOR UPDATE").await.unwrap();
    let mut store = store.connection(Work::Leases);
    let binding = tokio::spawn(async move {
        let answer = store.bind_epic(&key("s"), Some("PROJ-1")).await.unwrap();
        (answer, store)
    });
    blocked(&mut locking, 1).await;
    // As by a session that was taken and closed since the read.
    let raise = sqlx::query("UPDATE oncegate_fence SET floor = $1").bind(FLOOR);
    let mut other = PgConnection::connect(&url).await.unwrap();
    raise.execute(&mut other).await.unwrap();
    locking.commit().await.unwrap();
    let (answer, mut store) = binding.await.unwrap();
    assert!(matches!(answer, Verdict::Retry), "{answer:?}");
    store.bind_epic(&key("s"), Some("PROJ-1")).await.unwrap();
    let rows = store.look_sessions(&[&key("s")]).await.unwrap();
    assert!(rows[0].as_ref().unwrap().lease.token.0 > FLOOR, "{rows:?}");
}

/// As a restore leaves them that inserts row by row.
#[tokio::test]
async fn rows_that_were_written_apart_are_one_event() {
    let (mut store, mut outside) = stage().await;
    let begin = begin("Ev1", &["ts1"]);
    let turned = store.change_turns(&[&begin], &[]).await.unwrap();
    let [Verdict::Decided(Begun::Granted { claim, lease, .. })] = &turned.begins[..] else {
        panic!("{turned:?}")
    };
    for name in ["Ev1", "ts1"] {
        let rewrite = "UPDATE processed_events SET holder = holder WHERE event_id = $1";
        sqlx::query(rewrite).bind(name).execute(&mut outside).await.unwrap();
    }
    let turn = TurnId {
        event: begin.event.key.clone(),
        request: begin.request,
        attempt: claim.attempt,
        max_attempts: begin.max_attempts,
        lease: lease.as_ref().map(|lease| (key("turn"), lease.id)),
    };
    let ending = FinishAs::Failed(None);
    let finish = Finish::new(turn, ending, None);
    let turned = store.change_turns(&[], &[&finish]).await.unwrap();
    assert!(matches!(turned.finishes[..], [Verdict::Decided(Ok(_))]), "{turned:?}");
    let running = "SELECT count(*) FROM processed_events WHERE claimed_until > now()";
    let running: i64 = sqlx::query_scalar(running).fetch_one(&mut outside).await.unwrap();
    assert_eq!(running, 0, "a name of the event is still claimed");
}

/// An event that was renewed meanwhile is not forgotten by a decision from before; that is no
/// unknown outcome.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_has_changed_is_forgotten_only_once_it_is_read_again() {
    let (mut store, mut outside) = stage().await;
    let begin = begin("Ev1", &[]);
    store.change_turns(&[&begin], &[]).await.unwrap();
    let mut locking = outside.begin().await.unwrap();
    locking.execute("UPDATE processed_events SET holder = 'renewed'").await.unwrap();
    let event = begin.event.key.clone();
    let forgetting = tokio::spawn(async move {
        let answer = store.forget_event(&event).await.unwrap();
        (answer, store)
    });
    blocked(&mut locking, 1).await;
    locking.commit().await.unwrap();
    let (answer, mut store) = forgetting.await.unwrap();
    assert!(matches!(answer, Verdict::Retry), "{answer:?}");
    let forgotten = store.forget_event(&begin.event.key).await.unwrap();
    assert!(matches!(forgotten, Verdict::Decided(Some(_))), "{forgotten:?}");
}

/// The event is another's when the turn's session is taken, and free by the time of the answer. The
/// begin goes on with that lease, so nothing else may give it back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_begin_goes_on_with_the_lease_that_came_before_its_event_was_free() {
    let url = new_database().await;
    let stores =
        [(); 2].map(|()| Postgres::new(&url, Duration::from_mins(1), Clock::Store).unwrap());
    for store in &stores {
        store.migrate().await.unwrap();
    }
    let mut outside = PgConnection::connect(&url).await.unwrap();
    execute(&url, &gate("current_query() LIKE '%new AS MATERIALIZED%'")).await;
    let mut locking = outside.begin().await.unwrap();
    locking.execute("SELECT FROM gate FOR UPDATE").await.unwrap();
    let [mut first, mut other] = stores.each_ref().map(|store| store.connection(Work::Turns));
    let beginning = tokio::spawn(async move {
        let asked = begin("Ev1", &[]);
        (first.change_turns(&[&asked], &[]).await.unwrap(), asked)
    });
    blocked(&mut locking, 1).await;
    let theirs = Begin { request: request(1), session: None, ..begin("Ev1", &["ts1"]) };
    let turned = other.change_turns(&[&theirs], &[]).await.unwrap();
    let [Verdict::Decided(Begun::Granted { claim, .. })] = &turned.begins[..] else {
        panic!("{turned:?}")
    };
    let turn = TurnId {
        event: theirs.event.key.clone(),
        request: theirs.request,
        attempt: claim.attempt,
        lease: None,
        max_attempts: theirs.max_attempts,
    };
    let finish = Finish::new(turn, FinishAs::Failed(None), None);
    other.change_turns(&[], &[&finish]).await.unwrap();
    locking.commit().await.unwrap();
    let (turned, asked) = beginning.await.unwrap();
    let [Verdict::Decided(Begun::Granted { claim, lease: Some(lease), obtained })] =
        &turned.begins[..]
    else {
        panic!("{turned:?}")
    };
    assert_eq!((claim.attempt, *obtained), (2, Obtained::Granted));
    let own = asked.session.unwrap().lease;
    assert_eq!(lease.id, own.id());
    assert!(own.is_spent(), "if it is not answered, its call gives it back");
    assert!(turned.orphans.is_empty(), "{turned:?}");
}
