//! Invalidations of a cache by other replicas, and by a listener that misses some.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_replicas_cleanup_takes_is_new_once_that_is_heard_of() {
    let url = new_database().await;
    let (a, mut at_a) = replica(&url).await;
    let (b, mut at_b) = replica(&url).await;
    assert!(is_new(&mut at_a, "Ev1").await);
    for (replica, client) in [(&a, &mut at_a), (&b, &mut at_b)] {
        assert!(!is_new(client, "Ev1").await);
        assert!(!is_new(client, "Ev1").await);
        metric(replica, "oncegate_duplicate_cache_entries 1").await;
    }
    assert_eq!((hits(&a).await, hits(&b).await), (2, 1));
    assert_eq!(clean(&mut at_b).await, 1);
    metric(&a, "oncegate_duplicate_cache_entries 0").await;
    assert!(is_new(&mut at_a, "Ev1").await);
    assert!(!is_new(&mut at_b, "Ev1").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_forgotten_on_another_replica_is_new_once_that_is_heard_of() {
    let url = new_database().await;
    let (a, mut at_a) = replica(&url).await;
    let (b, mut at_b) = replica(&url).await;
    assert!(is_new(&mut at_a, "Ev1").await);
    for (replica, client) in [(&a, &mut at_a), (&b, &mut at_b)] {
        assert!(!is_new(client, "Ev1").await);
        metric(replica, "oncegate_duplicate_cache_entries 1").await;
    }
    forget(&b, "Ev1").await;
    metric(&a, "oncegate_duplicate_cache_entries 0").await;
    assert!(is_new(&mut at_a, "Ev1").await);
    assert!(!is_new(&mut at_b, "Ev1").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_deletion_of_what_may_live_is_told_to_all() {
    let url = new_database().await;
    let (_replica, mut client) = replica(&url).await;
    let mut others = PgListener::connect(&url).await.unwrap();
    others.listen("oncegate_invalidations").await.unwrap();
    let mut outside = PgConnection::connect(&url).await.unwrap();

    let expired = "INSERT INTO processed_events (team_id, event_id, processed_at, expires_at)
        VALUES ('T', 'over', now() - interval '2 h', now() - interval '1 h')";
    outside.execute(expired).await.unwrap();
    let swept = client.cleanup(CleanupRequest::default()).await.unwrap();
    assert_eq!(swept.into_inner().deleted_events, 1);
    assert!(is_new(&mut client, "Ev1").await);
    assert!(!is_new(&mut client, "Ev1").await);
    let old = CleanupRequest { older_than: seconds(3_600), ..Default::default() };
    for nothing in [CleanupRequest { dry_run: true, older_than: seconds(0), ..old.clone() }, old] {
        let nothing = CleanupRequest { team_id: "T".into(), ..nothing };
        client.cleanup(nothing).await.unwrap();
    }
    outside.execute("NOTIFY oncegate_invalidations, 'nothing before'").await.unwrap();
    assert_eq!(others.recv().await.unwrap().payload(), "nothing before");
    assert_eq!(clean(&mut client).await, 1);
    let notified = timeout(Duration::from_secs(10), others.recv()).await.expect("a notification");
    assert_eq!(notified.unwrap().payload(), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_is_cut_off_remembers_nothing_of_before() {
    let url = new_database().await;
    let (replica, mut client) = replica(&url).await;
    assert!(is_new(&mut client, "Ev1").await);
    metric(&replica, "oncegate_duplicate_cache_entries 1").await;
    let mut database = PgConnection::connect(&url).await.unwrap();
    let pid = listener(&mut database).await.unwrap();
    let cut = sqlx::query("SELECT pg_terminate_backend($1)").bind(pid);
    cut.execute(&mut database).await.unwrap();
    metric(&replica, "oncegate_duplicate_cache_entries 0").await;
    metric(&replica, IN_USE).await;
    let other = listener(&mut database).await;
    assert!(other.is_some_and(|other| other != pid), "{other:?}");
    for hits_then in [0, 1] {
        assert!(!is_new(&mut client, "Ev1").await);
        assert_eq!(hits(&replica).await, hits_then);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_listener_the_store_is_asked_and_what_was_missed_is_not_told() {
    let url = new_database().await;
    let proxy = Proxy::start(&url, Line::Open).await;
    let (replica, mut client) = replica(&proxy.url).await;
    for event in ["asked meanwhile", "asked later"] {
        assert!(is_new(&mut client, event).await);
        assert!(!is_new(&mut client, event).await);
    }
    assert_eq!(hits(&replica).await, 2);

    proxy.set(Line::Cut);
    metric(&replica, OUT_OF_USE).await;
    assert!(!is_new(&mut client, "asked meanwhile").await);
    assert_eq!(hits(&replica).await, 2, "the store was asked");
    let mut other = Replica::start(&url, Clock::Store, &[]).await.client().await;
    assert_eq!(clean(&mut other).await, 2);
    assert!(is_new(&mut client, "asked meanwhile").await);

    proxy.set(Line::Open);
    metric(&replica, IN_USE).await;
    assert!(is_new(&mut client, "asked later").await);
    assert!(!is_new(&mut client, "asked meanwhile").await);
    assert_eq!(hits(&replica).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_whose_loss_goes_unheard_is_told_no_longer_than_the_bound() {
    let url = new_database().await;
    let proxy = Proxy::start(&url, Line::Open).await;
    let (replica, mut client) = replica(&proxy.url).await;
    let mut other = Replica::start(&url, Clock::Store, &[]).await.client().await;
    assert!(is_new(&mut client, "Ev1").await);
    assert!(!is_new(&mut client, "Ev1").await);

    proxy.set(Line::Mute);
    assert_eq!(clean(&mut other).await, 1);
    let cleaned = Instant::now();
    let mut calls = interval(Duration::from_millis(5));
    let mut stale = 0;
    loop {
        calls.tick().await;
        let asked = Instant::now();
        if is_new(&mut client, "Ev1").await {
            break;
        }
        stale += 1;
        let after = asked - cleaned;
        assert!(after < MAX_STALENESS, "told of a mark that was gone for {after:?}");
    }
    assert!(stale > 0, "the notification was to be lost");

    // The mute connection is given up, and does not stay open.
    metric(&replica, OUT_OF_USE).await;
    proxy.set(Line::Open);
    metric(&replica, IN_USE).await;
    let closed = async {
        while proxy.listeners() > 1 {
            calls.tick().await;
        }
    };
    timeout(Duration::from_secs(10), closed).await.expect("one connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_notifications_never_come_the_store_is_asked() {
    let url = new_database().await;
    let proxy = Proxy::start(&url, Line::Deaf).await;
    let replica = Replica::start(&proxy.url, Clock::Store, &METRICS).await;
    let mut client = replica.client().await;
    assert!(is_new(&mut client, "Ev1").await);
    let mut calls = interval(Duration::from_millis(5));
    while proxy.given_up() < 2 {
        calls.tick().await;
        assert!(!is_new(&mut client, "Ev1").await);
        assert_eq!(hits(&replica).await, 0);
    }
    metric(&replica, OUT_OF_USE).await;
    proxy.set(Line::Open);
    metric(&replica, IN_USE).await;
}
