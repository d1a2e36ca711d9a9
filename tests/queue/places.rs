//! A place in a queue: never lost without being taken again, and never kept for
//! nobody.

use std::{pin::pin, time::Duration};

use oncegate::{
    domain::{Acquire, Enqueued, Release},
    grpc::pb::{
        BindEpicRequest, CloseSessionRequest, HoldSessionLeaseRequest, HoldSessionLeaseResponse,
        admin_service_client::AdminServiceClient, hold_session_lease_response::News,
    },
    session::{AcquireOutcome, Bounds, Sessions},
    store::{
        AdminStore as _, SessionAnswer, SessionBatch, SessionOp, SessionStore, Store as _, Verdict,
        Work, memory::Memory, postgres::Postgres,
    },
    telemetry::Metrics,
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::*;
use crate::harness::{execute, ops, release};

on_all_stores!(a_closed_session_goes_to_those_who_wait_in_their_order);

async fn a_closed_session_goes_to_those_who_wait_in_their_order(mut f: Fixture) {
    let lease = take(&mut f.client, acquire("T1", "s", "holder")).await;
    let bound = AcquireSessionLeaseRequest { epic_id: "PROJ-50".into(), ..waiting("first") };
    let first = enqueue(&f.client, bound, 1).await;
    let second = enqueue(&f.client, waiting("second"), 2).await;
    let mut admin = AdminServiceClient::new(connect(f.replica.server.address()).await);
    let close = CloseSessionRequest {
        session: session("T1", "s"),
        actor: "ops".into(),
        reason: String::new(),
    };
    assert!(admin.close_session(close).await.unwrap().into_inner().closed);
    let next = granted(first.await.unwrap().unwrap());
    assert_eq!((next.holder.as_str(), next.epic_id.as_str()), ("first", "PROJ-50"));
    assert!(next.fencing_token > lease.fencing_token);
    assert!(!f.client.release_session_lease(release(&lease)).await.unwrap().into_inner().released);
    give_back(&mut f.client, &next).await;
    assert_eq!(granted(second.await.unwrap().unwrap()).holder, "second");
}

/// A session with a holder and one who waits, on a replica that is told nothing.
struct Deaf {
    url: String,
    database: PgConnection,
    holder: Client,
    client: Client,
    lease: SessionLease,
    replicas: [Replica; 2],
}

impl Deaf {
    async fn new() -> Self {
        let url = new_database().await;
        let proxy = Proxy::start_for("oncegate queue", &url, Line::Deaf).await;
        let here = Replica::start(&proxy.url, Clock::Store, &[]).await;
        let there = Replica::start(&url, Clock::Store, &[]).await;
        let (mut holder, client) = (there.client().await, here.client().await);
        let long = AcquireSessionLeaseRequest { ttl: seconds(900), ..acquire("T1", "s", "holder") };
        let lease = take(&mut holder, long).await;
        let database = PgConnection::connect(&url).await.unwrap();
        Self { url, database, holder, client, lease, replicas: [here, there] }
    }
}

/// Takes place and ticket together, as they are drawn.
const SWAP: &str = "UPDATE oncegate_waiters SET ticket = -ticket";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_looks_first_on_a_replica_looks_for_all() {
    let mut f = Deaf::new().await;
    let first = enqueue(&f.client, waiting("first"), 1).await;
    let second = enqueue(&f.client, waiting("second"), 2).await;
    // The store gives it to whom this replica takes for the second.
    f.database.execute(SWAP).await.unwrap();
    give_back(&mut f.holder, &f.lease).await;
    let begun = Instant::now();
    let lease = granted(second.await.unwrap().unwrap());
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    give_back(&mut f.holder, &lease).await;
    granted(first.await.unwrap().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_nobody_stands_in_is_given_up() {
    // As if whoever asked for it had been told that it had failed.
    const GHOST: &str = "INSERT INTO oncegate_waiters (team_id, session_id, ticket, lease_id,
            request_id, holder, labels, ttl_micros, replica)
        SELECT team_id, session_id, 0, gen_random_uuid(), request_id, 'ghost', labels,
            ttl_micros, replica
        FROM oncegate_waiters";
    let mut f = Deaf::new().await;
    let waiter = enqueue(&f.client, waiting("waiter"), 1).await;
    f.database.execute(GHOST).await.unwrap();
    places(&mut f.database, 1).await;
    give_back(&mut f.holder, &f.lease).await;
    assert_eq!(granted(waiter.await.unwrap().unwrap()).holder, "waiter");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_the_store_has_lost_is_taken_again() {
    let mut f = Deaf::new().await;
    let waiter = enqueue(&f.client, waiting("waiter"), 1).await;
    f.database.execute("DELETE FROM oncegate_waiters").await.unwrap();
    places(&mut f.database, 1).await;
    give_back(&mut f.holder, &f.lease).await;
    assert_eq!(granted(waiter.await.unwrap().unwrap()).holder, "waiter");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_waited_onreplicas_that_have_gone_fill_no_queue() {
    const GONE: &str = "INSERT INTO oncegate_waiters (team_id, session_id, lease_id, request_id,
            holder, labels, ttl_micros, replica)
        SELECT 'T1', 's', gen_random_uuid(), gen_random_uuid(), '', '{}', 1, gen_random_uuid()
        FROM generate_series(1, 64)";
    let mut f = Deaf::new().await;
    f.database.execute(GONE).await.unwrap();
    let waiter = enqueue(&f.client, waiting("waiter"), 1).await;
    give_back(&mut f.holder, &f.lease).await;
    assert_eq!(granted(waiter.await.unwrap().unwrap()).holder, "waiter");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_wait_keep_their_places_while_the_store_is_away() {
    let f = Deaf::new().await;
    let proxy = Proxy::start_for("oncegate", &f.url, Line::Open).await;
    let replica = Replica::start(&proxy.url, Clock::Store, &[]).await;
    let client = replica.client().await;
    let first = enqueue(&client, waiting("first"), 1).await;
    let second = enqueue(&f.client, waiting("second"), 2).await;
    let mut holder = f.holder.clone();
    proxy.set(Line::Cut);
    // It looks in vain at least once.
    while client.clone().acquire_session_lease(acquire("T1", "s", "look")).await.is_ok() {}
    tokio::time::sleep(Duration::from_millis(600)).await;
    proxy.set(Line::Open);
    length(&client, 2).await;
    give_back(&mut holder, &f.lease).await;
    give_back(&mut holder, &granted(first.await.unwrap().unwrap())).await;
    assert_eq!(granted(second.await.unwrap().unwrap()).holder, "second");
}

async fn hold(client: &Client, epic: &str) -> Streaming<HoldSessionLeaseResponse> {
    let request = HoldSessionLeaseRequest {
        session: session("T1", "s"),
        holder: "waiter".into(),
        epic_id: epic.into(),
        ttl: seconds(1),
        wait: seconds(60),
        ..Default::default()
    };
    client.clone().hold_session_lease(request).await.unwrap().into_inner()
}

async fn next(events: &mut Streaming<HoldSessionLeaseResponse>) -> News {
    events.message().await.unwrap().unwrap().news.unwrap()
}

fn place(event: &News) -> i32 {
    match event {
        News::Queued(queued) => queued.position,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_wait_on_severalreplicas_are_told_their_place_in_the_one_queue() {
    let f = Deaf::new().await;
    let mut here = hold(&f.client, "").await;
    assert_eq!(place(&next(&mut here).await), 1);
    let mut there = hold(&f.holder, "").await;
    assert_eq!(place(&next(&mut there).await), 2);
    length(&f.client, 2).await;
    length(&f.holder, 2).await;
    drop(here);
    assert_eq!(place(&next(&mut there).await), 1);
}

/// However long somebody has waited, a lease counts from when it was granted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_comes_out_of_turn_is_kept() {
    let mut f = Deaf::new().await;
    let mut first = hold(&f.client, "PROJ-50").await;
    assert_eq!(place(&next(&mut first).await), 1);
    let mut second = hold(&f.client, "PROJ-51").await;
    assert_eq!(place(&next(&mut second).await), 2);
    // For longer than its lease will be.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let mut admin = AdminServiceClient::new(connect(f.replicas[1].server.address()).await);
    let bind = BindEpicRequest {
        session: session("T1", "s"),
        epic_id: "PROJ-51".into(),
        actor: "ops".into(),
        reason: String::new(),
    };
    admin.bind_epic(bind).await.unwrap();
    give_back(&mut f.client, &f.lease).await;
    let mut told = next(&mut second).await;
    // Should the first have been told in between.
    while let News::Queued(_) = told {
        told = next(&mut second).await;
    }
    assert!(matches!(told, News::Granted(_)), "{told:?}");
    let mut told = next(&mut second).await;
    // The first waits behind it.
    while let News::Waiting(_) = told {
        told = next(&mut second).await;
    }
    assert!(matches!(told, News::Renewed(_)), "{told:?}");
}

async fn change(store: &mut impl SessionStore, op: SessionOp<'_>) -> SessionBatch {
    store.change_sessions(&[op]).await.unwrap()
}

/// An answer can be lost for longer than it takes the lease to come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_has_been_served_is_not_taken_again() {
    let url = new_database().await;
    let replica = Replica::start(&url, Clock::Store, &[]).await;
    let mut holder = replica.client().await;
    let lease = take(&mut holder, acquire("T1", "s", "holder")).await;
    let store = Postgres::new(&url, Duration::from_secs(5), Clock::Store).unwrap();
    let mut store = store.connection(Work::Short);
    let enqueue = ops::enqueue("s", 1);
    let enqueued = async |store: &mut _| {
        let batch = change(store, SessionOp::Enqueue(&enqueue)).await;
        let [Verdict::Decided(SessionAnswer::Enqueued(enqueued))] = batch.answers[..] else {
            panic!("{batch:?}")
        };
        enqueued
    };
    let placed = enqueued(&mut store).await;
    assert!(matches!(placed, Enqueued::Waits(_)), "{placed:?}");
    assert_eq!(enqueued(&mut store).await, placed);
    give_back(&mut holder, &lease).await;
    assert_eq!(enqueued(&mut store).await, Enqueued::Given);
    let Acquire { key, lease, .. } = enqueue.acquire;
    let release = Release::new(key.clone(), lease.id(), None);
    let batch = change(&mut store, SessionOp::Release(&release)).await;
    let released = &batch.answers[..];
    assert!(matches!(released, [Verdict::Decided(SessionAnswer::Released(true))]), "{released:?}");
    assert!(batch.handovers.is_empty());
    let row = store.look_sessions(&[&key]).await.unwrap().pop().flatten().unwrap();
    assert!(!row.live && row.queue.is_empty());
    assert_eq!(store.count(None).await.unwrap().waiters, 0);
}

/// Makes the first statement that writes a plan wait for its lock until a gate is opened,
/// while all others pass.
const GATE: &str = "
CREATE TABLE gate (closed boolean);
INSERT INTO gate VALUES (true);
CREATE SCHEMA slow;
CREATE FUNCTION slow.pg_try_advisory_xact_lock(bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF current_query() LIKE '%left_places%'
            AND pg_catalog.pg_try_advisory_xact_lock(-1) THEN
        WHILE EXISTS (SELECT FROM public.gate) LOOP
            PERFORM pg_sleep(0.001);
        END LOOP;
    END IF;
    RETURN pg_catalog.pg_try_advisory_xact_lock($1);
END $$;
DO $$ BEGIN
    EXECUTE format('ALTER DATABASE %I SET search_path = public, slow, pg_catalog',
        current_database());
END $$;
";

/// A statement sees the queue as it is when it begins, and has the session's lock
/// only later: whoever came in between is not forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_comes_while_a_session_is_given_back_is_next() {
    const STANDS_AT_THE_GATE: &str = "SELECT count(*) FROM pg_locks
        WHERE locktype = 'advisory' AND classid = 4294967295 AND objid = 4294967295
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let url = new_database().await;
    let mut database = PgConnection::connect(&url).await.unwrap();
    database.execute(GATE).await.unwrap();
    database.execute("DELETE FROM gate").await.unwrap();
    let replicas = Replica::start_all(2, &url, &Clock::Store).await;
    let (mut holder, client) = (replicas[0].client().await, replicas[1].client().await);
    let lease = take(&mut holder, acquire("T1", "s", "holder")).await;
    // The session is marked as waited for, and nobody waits: so it is read before it is released.
    database.execute("UPDATE oncegate_sessions SET waiting = true").await.unwrap();

    database.execute("INSERT INTO gate VALUES (true)").await.unwrap();
    let mut releasing = holder.clone();
    let releasing = tokio::spawn(async move { give_back(&mut releasing, &lease).await });
    while sqlx::query_scalar::<_, i64>(STANDS_AT_THE_GATE).fetch_one(&mut database).await.unwrap()
        == 0
    {}
    let waiter = enqueue(&client, waiting("waiter"), 1).await;
    let pushing = tokio::spawn(async move {
        loop {
            let answer = holder.acquire_session_lease(acquire("T1", "s", "pushy")).await.unwrap();
            if held(answer.into_inner()).holder == "waiter" {
                return;
            }
        }
    });
    database.execute("DELETE FROM gate").await.unwrap();
    releasing.await.unwrap();
    assert_eq!(granted(waiter.await.unwrap().unwrap()).holder, "waiter");
    pushing.await.expect("a caller that did not wait got the session first");
}

/// One batch gives a lease back and has a place left: the lease goes to nobody.
#[tokio::test]
async fn no_lease_is_handed_to_a_caller_that_leaves_in_the_same_batch() {
    let store = Memory::new(Clock::Store);
    let max_hold = Duration::from_hours(1);
    let bounds = Bounds { writers: 1, capacity: 16, waiters: 16, max_hold };
    let (runtimes, stop, metrics) = ([Handle::current()], CancellationToken::new(), Metrics::new());
    let sessions = Sessions::start(&store, &runtimes, bounds, &stop, &metrics).remove(0);
    let (first, second) = (ops::acquire("s", 1), ops::acquire("s", 2));
    let AcquireOutcome::Granted(grant) = sessions.acquire(&first, Duration::ZERO).await.unwrap()
    else {
        panic!("not granted")
    };
    let lease = grant.accept().value;
    let mut waiting = Box::pin(sessions.acquire(&second, Duration::from_mins(1)));
    let look = async || sessions.look(first.key.clone()).await.unwrap().unwrap();
    let has_place = async { while look().await.queue.is_empty() {} };
    tokio::select! {
        _ = &mut waiting => panic!("it does not wait"),
        () = has_place => {}
    }
    let mut releasing = pin!(sessions.release(first.key.clone(), lease.id));
    assert!(futures_util::poll!(&mut releasing).is_pending());
    drop(waiting);
    assert!(releasing.await.unwrap());
    let row = look().await;
    assert!(!row.live && row.queue.is_empty() && row.lease.token == lease.token, "{row:?}");
}

/// The store was away for longer than a heartbeat counts.
#[tokio::test]
async fn a_replica_passes_over_none_of_its_own() {
    let url = new_database().await;
    let store = Postgres::new(&url, Duration::from_secs(5), Clock::Store).unwrap();
    store.migrate().await.unwrap();
    let mut store = store.connection(Work::Leases);
    let first = change(&mut store, SessionOp::Acquire(&ops::acquire("s", 1))).await;
    let [Verdict::Decided(SessionAnswer::Acquired(held))] = &first.answers[..] else {
        panic!("{first:?}")
    };
    let waiter = ops::enqueue("s", 2);
    change(&mut store, SessionOp::Enqueue(&waiter)).await;
    execute(&url, "UPDATE oncegate_replicas SET expires_at = now() - interval '30 s'").await;
    // A newcomer takes no place of theirs.
    change(&mut store, SessionOp::Enqueue(&ops::enqueue("s", 3))).await;
    execute(&url, "UPDATE oncegate_replicas SET expires_at = now() - interval '30 s'").await;
    let release = ops::release("s", held.row.lease.id);
    let released = change(&mut store, SessionOp::Release(&release)).await;
    let handed: Vec<_> = released.handovers.iter().map(|row| row.lease.id).collect();
    assert_eq!(handed, [waiter.acquire.lease.id()]);
}
