//! One queue over several replicas.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_released_on_another_replica_is_taken_within_a_second() {
    let url = new_database().await;
    let here = Replica::start(&url, Clock::Store, &[]).await;
    let there = Replica::start(&url, Clock::Store, &[]).await;
    goes_on_within_a_second(&there, &here).await;
}

/// What is given back at one replica is had by one who waits at another, three
/// times over.
async fn goes_on_within_a_second(there: &Replica, here: &Replica) {
    let (mut holder, client) = (there.client().await, here.client().await);
    for _ in 0..3 {
        let lease = take(&mut holder, acquire("T1", "s", "holder")).await;
        let waiter = enqueue(&client, waiting("waiter"), 1).await;
        give_back(&mut holder, &lease).await;
        let begun = Instant::now();
        let next = granted(waiter.await.unwrap().unwrap());
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        assert!(next.fencing_token > lease.fencing_token);
        give_back(&mut holder, &next).await;
    }
}

/// Callers that queue one after another, each on the next of three replicas, are
/// served in that order; `leaves` selects the callers that cancel while they wait.
async fn one_queue_over_three_replicas(rounds: usize, leaves: impl Fn(usize) -> bool) {
    const WAITERS: usize = 60;
    // However slow the machine: no lease ends by itself, and no wait.
    let long = |holder: &str| AcquireSessionLeaseRequest {
        ttl: seconds(900),
        wait: seconds(600),
        ..acquire("T1", "s", holder)
    };
    let url = new_database().await;
    let replicas = Replica::start_all(3, &url, &Clock::Store).await;
    let mut clients = Vec::new();
    for replica in &replicas {
        clients.push(replica.client().await);
    }
    let mut database = PgConnection::connect(&url).await.unwrap();
    for round in 0..rounds {
        let mut lease = take(&mut clients[round % 3], long("holder")).await;
        let mut waiters = Vec::new();
        for place in 0..WAITERS {
            let mut client = clients[place % 3].clone();
            let request = long(&format!("waiter {place}"));
            waiters.push(tokio::spawn(async move {
                client.acquire_session_lease(request).await.map(tonic::Response::into_inner)
            }));
            places(&mut database, i64::try_from(place + 1).unwrap()).await;
        }
        let mut stay = WAITERS;
        for (place, waiter) in waiters.iter().enumerate() {
            if leaves(place) {
                waiter.abort();
                stay -= 1;
            }
        }
        places(&mut database, i64::try_from(stay).unwrap()).await;
        for (place, waiter) in waiters.into_iter().enumerate() {
            if leaves(place) {
                continue;
            }
            give_back(&mut clients[(place + round) % 3], &lease).await;
            let next = granted(waiter.await.unwrap().unwrap());
            assert_eq!(next.holder, format!("waiter {place}"), "round {round}");
            assert!(next.fencing_token > lease.fencing_token);
            lease = next;
        }
        give_back(&mut clients[0], &lease).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_on_three_replicas_are_served_in_the_order_in_which_they_came() {
    one_queue_over_three_replicas(100, |_| false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_on_three_replicas_that_went_away_are_passed_over() {
    one_queue_over_three_replicas(100, |place| place % 7 < 2 || place == 59).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_on_within_a_second_though_every_notification_is_lost() {
    let url = new_database().await;
    let proxy = Proxy::start_for("oncegate queue", &url, Line::Deaf).await;
    let deaf = Replica::start(&proxy.url, Clock::Store, &[]).await;
    let there = Replica::start(&url, Clock::Store, &[]).await;
    goes_on_within_a_second(&there, &deaf).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_waited_on_a_replica_that_has_gone_are_passed_over() {
    // As if the time that it counts as there had gone by.
    const GONE: &str = "UPDATE oncegate_replicas SET expires_at = now() - interval '2 minutes'
        WHERE replica = (SELECT replica FROM oncegate_waiters ORDER BY ticket LIMIT 1)";
    let url = new_database().await;
    let here = Replica::start(&url, Clock::Store, &[]).await;
    let mut client = here.client().await;
    let mut database = PgConnection::connect(&url).await.unwrap();
    let lease = take(&mut client, acquire("T1", "s", "holder")).await;
    let killed = Process::start(&url, &[]).await;
    let mut there = killed.client().await;
    let first = tokio::spawn(async move { there.acquire_session_lease(waiting("gone")).await });
    places(&mut database, 1).await;
    let mut second = client.clone();
    let second = tokio::spawn(async move { take(&mut second, waiting("stays")).await });
    places(&mut database, 2).await;
    killed.kill();
    assert!(first.await.unwrap().is_err());
    database.execute(GONE).await.unwrap();
    give_back(&mut client, &lease).await;
    assert_eq!(second.await.unwrap().holder, "stays");
    // Its place is forgotten while somebody waits; here, one who waits in vain.
    let mut third = client.clone();
    let third = tokio::spawn(async move { third.acquire_session_lease(waiting("third")).await });
    places(&mut database, 1).await;
    third.abort();
}
