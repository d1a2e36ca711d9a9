//! Known duplicates, answered from memory: never once the row would say
//! otherwise, but for as long as the docs say.

use std::time::Duration;

use oncegate::{
    grpc::pb::{
        BatchMarkProcessedRequest, CleanupRequest, EventKey, ForgetEventRequest,
        IsProcessedRequest, MarkProcessedRequest, MarkProcessedResponse,
        admin_service_client::AdminServiceClient, batch_mark_processed_result::Result as Item,
    },
    store::{Clock, postgres::MAX_STALENESS},
};
use sqlx::{Connection as _, Executor as _, PgConnection, postgres::PgListener};
use tokio::time::{Instant, interval, timeout};
use tonic::{Code, Request};

use crate::{
    harness::{
        Client, Fixture, Replica, connect, event, mark,
        metrics::{metric, metrics_page},
        outsider::Outsider,
        postgres::{new_database, new_database_with},
        proxy::{Line, Proxy},
        seconds,
    },
    on_both_stores,
};

mod replicas;

on_both_stores!(
    a_known_event_is_answered_while_the_store_cannot_be_asked,
    an_event_of_several_names_is_known_by_its_own,
    a_known_event_is_new_from_the_moment_it_expires,
    nothing_is_remembered_for_longer_than_the_greatest_age,
    what_a_cleanup_takes_is_new_at_once,
    what_is_forgotten_by_hand_is_new_at_once,
    a_sweep_of_what_has_expired_leaves_the_memory_alone,
    without_room_nothing_is_remembered,
);

const METRICS: [&str; 2] = ["--ops-listen", "127.0.0.1:0"];
const IN_USE: &str = "oncegate_duplicate_cache_in_use 1";
const OUT_OF_USE: &str = "oncegate_duplicate_cache_in_use 0";

/// The fixture, once it answers from memory.
async fn remembering(f: Fixture) -> Fixture {
    let f = f.restarted(&METRICS).await;
    metric(&f.replica, IN_USE).await;
    f
}

/// Another replica, once it answers from memory.
async fn replica(url: &str) -> (Replica, Client) {
    let replica = Replica::start(url, Clock::Store, &METRICS).await;
    metric(&replica, IN_USE).await;
    let client = replica.client().await;
    (replica, client)
}

async fn forget(replica: &Replica, id: &str) {
    let mut admin = AdminServiceClient::new(connect(replica.server.address()).await);
    let event = event("T", id);
    let request = ForgetEventRequest { event, actor: "test".into(), reason: String::new() };
    admin.forget_event(request).await.unwrap();
}

fn named(event: &str, request_id: &str) -> MarkProcessedRequest {
    MarkProcessedRequest { request_id: request_id.into(), ..mark("T", event) }
}

async fn told(client: &mut Client, request: MarkProcessedRequest) -> MarkProcessedResponse {
    client.mark_processed(request).await.unwrap().into_inner()
}

async fn is_new(client: &mut Client, event: &str) -> bool {
    told(client, mark("T", event)).await.first
}

/// Deletes all marks of the team, expired or not.
async fn clean(client: &mut Client) -> i64 {
    let all = CleanupRequest { team_id: "T".into(), older_than: seconds(0), ..Default::default() };
    client.cleanup(all).await.unwrap().into_inner().deleted_events
}

/// How many answers came from memory so far.
async fn hits(replica: &Replica) -> u64 {
    let page = metrics_page(replica).await;
    let count =
        page.lines().find_map(|line| line.strip_prefix("oncegate_duplicate_cache_hits_total "));
    count.unwrap().parse().unwrap()
}

async fn an_event_of_several_names_is_known_by_its_own(f: Fixture) {
    let mut f = remembering(f).await;
    let with_alias = |name: &str| MarkProcessedRequest {
        event: Some(EventKey { aliases: vec!["ts".into()], ..event("T", name).unwrap() }),
        ..Default::default()
    };
    assert!(told(&mut f.client, with_alias("message")).await.first);
    // That one is taken tells nothing of the other.
    assert!(!told(&mut f.client, with_alias("mention")).await.first);
    assert!(is_new(&mut f.client, "mention").await);
    let _outsider = Outsider::at(&f.url).await;
    assert!(!told(&mut f.client, with_alias("message")).await.first);
    assert!(!is_new(&mut f.client, "message").await);
}

async fn a_known_event_is_answered_while_the_store_cannot_be_asked(f: Fixture) {
    let mut f = remembering(f).await;
    let first = told(&mut f.client, named("Ev1", "r1")).await;
    assert!(first.first);
    let _outsider = Outsider::at(&f.url).await;
    let mut unknown = Request::new(mark("T", "Ev2"));
    unknown.set_timeout(Duration::from_millis(200));
    f.client.mark_processed(unknown).await.unwrap_err();

    assert_eq!(told(&mut f.client, named("Ev1", "r1")).await, first);
    for another in [named("Ev1", "r2"), mark("T", "Ev1")] {
        let again = told(&mut f.client, another).await;
        assert!(!again.first);
        assert_eq!(again.event, first.event);
    }
    let requests = vec![named("Ev1", "r2"), mark("T", ""), named("Ev1", "r1")];
    let batch = f.client.batch_mark_processed(BatchMarkProcessedRequest { requests }).await;
    let told: Vec<_> = batch.unwrap().into_inner().results.into_iter().collect();
    let told = told.into_iter().map(|result| match result.result.unwrap() {
        Item::Response(response) => Ok(response.first),
        Item::Error(error) => Err(error.code),
    });
    assert_eq!(told.collect::<Vec<_>>(), [Ok(false), Err(3), Ok(true)]);
    let ask = IsProcessedRequest { event: event("T", "Ev1"), ..Default::default() };
    let answer = f.client.is_processed(ask).await.unwrap().into_inner();
    assert!(answer.processed);
    assert_eq!(answer.event, first.event);
    assert_eq!(hits(&f.replica).await, 6);
}

async fn a_known_event_is_new_from_the_moment_it_expires(f: Fixture) {
    let mut f = remembering(f).await;
    let request = MarkProcessedRequest { ttl: seconds(60), ..mark("T", "Ev1") };
    assert!(told(&mut f.client, request.clone()).await.first);
    f.clock.advance(Duration::from_micros(59_999_999));
    assert!(!told(&mut f.client, request.clone()).await.first);
    assert_eq!(hits(&f.replica).await, 1);
    f.clock.advance(Duration::from_micros(1));
    assert!(told(&mut f.client, request).await.first);
    assert_eq!(hits(&f.replica).await, 1);
}

async fn nothing_is_remembered_for_longer_than_the_greatest_age(f: Fixture) {
    let mut f = remembering(f).await;
    assert!(is_new(&mut f.client, "Ev1").await);
    f.clock.advance(Duration::from_micros(299_999_999));
    assert!(!is_new(&mut f.client, "Ev1").await);
    assert_eq!(hits(&f.replica).await, 1);
    f.clock.advance(Duration::from_micros(1));
    assert!(!is_new(&mut f.client, "Ev1").await);
    assert_eq!(hits(&f.replica).await, 1, "the store was asked");
    assert!(!is_new(&mut f.client, "Ev1").await);
    assert_eq!(hits(&f.replica).await, 2);
}

async fn what_a_cleanup_takes_is_new_at_once(f: Fixture) {
    let mut f = remembering(f).await;
    for round in 0..50 {
        assert!(is_new(&mut f.client, "Ev1").await, "round {round}");
        assert!(!is_new(&mut f.client, "Ev1").await);
        assert_eq!(clean(&mut f.client).await, 1);
    }
}

async fn what_is_forgotten_by_hand_is_new_at_once(f: Fixture) {
    let mut f = remembering(f).await;
    for round in 0..50 {
        assert!(is_new(&mut f.client, "Ev1").await, "round {round}");
        assert!(!is_new(&mut f.client, "Ev1").await);
        forget(&f.replica, "Ev1").await;
    }
}

async fn a_sweep_of_what_has_expired_leaves_the_memory_alone(f: Fixture) {
    let mut f = remembering(f).await;
    let short = MarkProcessedRequest { ttl: seconds(1), ..mark("T", "short") };
    assert!(told(&mut f.client, short).await.first);
    assert!(is_new(&mut f.client, "Ev1").await);
    f.clock.advance(Duration::from_secs(1));
    let swept = f.client.cleanup(CleanupRequest::default()).await.unwrap();
    assert_eq!(swept.into_inner().deleted_events, 1);
    assert!(!is_new(&mut f.client, "Ev1").await);
    assert_eq!(hits(&f.replica).await, 1);
    metric(&f.replica, "oncegate_duplicate_cache_entries 2").await;
}

async fn without_room_nothing_is_remembered(f: Fixture) {
    let mut f =
        f.restarted(&[METRICS.as_slice(), &["--duplicate-cache-entries", "0"]].concat()).await;
    assert!(is_new(&mut f.client, "Ev1").await);
    for _ in 0..3 {
        assert!(!is_new(&mut f.client, "Ev1").await);
    }
    assert_eq!(hits(&f.replica).await, 0);
    metric(&f.replica, OUT_OF_USE).await;
    if f.url.starts_with("postgres") {
        let mut database = PgConnection::connect(&f.url).await.unwrap();
        assert_eq!(listener(&mut database).await, None);
    }
}

/// The backend of the database's only listener.
async fn listener(database: &mut PgConnection) -> Option<i32> {
    const LISTENER: &str = "SELECT pid FROM pg_stat_activity
        WHERE application_name = 'oncegate listener' AND datname = current_database()";
    sqlx::query_scalar(LISTENER).fetch_optional(database).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_failed_is_not_remembered() {
    let options = "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0";
    let url = new_database_with(options).await;
    let flags = [METRICS.as_slice(), &["--store-timeout", "1s"]].concat();
    let replica = Replica::start(&url, Clock::Store, &flags).await;
    metric(&replica, IN_USE).await;
    let mut client = replica.client().await;
    for _ in 0..2 {
        // LATIN1 has no robots.
        let refused = client.mark_processed(mark("T", "🤖")).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let mut outside = PgConnection::connect(&url).await.unwrap();
    let mut marking = outside.begin().await.unwrap();
    let insert = "INSERT INTO processed_events (team_id, event_id) VALUES ('T', 'Ev1')";
    marking.execute(insert).await.unwrap();
    for _ in 0..2 {
        let refused = client.mark_processed(mark("T", "Ev1")).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
    }
    marking.rollback().await.unwrap();
    assert!(is_new(&mut client, "Ev1").await);
    assert_eq!(hits(&replica).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_the_databases_own_clock_an_expiry_is_exact_too() {
    let url = new_database().await;
    let (replica, mut client) = replica(&url).await;
    let mut database = PgConnection::connect(&url).await.unwrap();
    let request = MarkProcessedRequest { ttl: seconds(1), ..mark("T", "Ev1") };
    let marked = told(&mut client, request.clone()).await.event.unwrap();
    let expire_time = marked.expire_time.unwrap();
    let over = "SELECT clock_timestamp() >= timestamptz 'epoch' + $1 * interval '1 s'
        + $2 * interval '1 microsecond'";
    loop {
        let over =
            sqlx::query_scalar(over).bind(expire_time.seconds).bind(expire_time.nanos / 1_000);
        let over: bool = over.fetch_one(&mut database).await.unwrap();
        let answer = told(&mut client, request.clone()).await;
        if answer.first {
            break;
        }
        assert!(!over, "told of {:?} after its end", answer.event);
    }
    assert!(hits(&replica).await > 0);
}
