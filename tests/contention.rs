//! Many callers at once, through three replicas on one database: one of them
//! wins, whatever the others do.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use futures_util::future::join_all;
use oncegate::{
    grpc::pb::{
        AcquireSessionLeaseRequest, BatchMarkProcessedRequest, MarkProcessedRequest,
        MarkProcessedResponse, SessionLease, acquire_session_lease_response::Outcome,
        batch_mark_processed_result::Result as Item,
    },
    store::{Clock, postgres::Postgres},
};
use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

use crate::harness::{
    Client, Fixture, Replica, TestClock, acquire, granted, mark, postgres, release, seconds,
};

mod between;
mod gone;
pub(crate) mod late;
mod locks;
mod names;
mod storms;
mod turns;
mod unanswered;

const REPLICAS: usize = 3;
const CALLERS: usize = 64;
const ROUNDS: usize = 1_000;

/// Callers spread over the replicas; eight share a connection.
struct Crowd {
    callers: Vec<Client>,
    replicas: Vec<Replica>,
}

impl Crowd {
    async fn new(clock: &Clock) -> Self {
        let url = postgres::new_database().await;
        let replicas = Replica::start_all(REPLICAS, &url, clock).await;
        Self { callers: callers(&replicas).await, replicas }
    }
}

/// One for each replica: a store counts as one replica to the others.
async fn stores(url: &str, clock: &TestClock) -> Vec<Postgres> {
    let store = || Postgres::new(url, Duration::from_secs(5), clock.store_clock()).unwrap();
    let stores: Vec<_> = std::iter::repeat_with(store).take(REPLICAS).collect();
    stores[0].migrate().await.unwrap();
    stores
}

async fn callers(replicas: &[Replica]) -> Vec<Client> {
    let connect = |connection: usize| replicas[connection % replicas.len()].client();
    let clients = join_all((0..CALLERS / 8).map(connect)).await;
    clients.iter().cycle().take(CALLERS).cloned().collect()
}

/// Lets each caller mark what it is told to, all at once.
async fn mark_all(
    callers: &mut [Client],
    request: impl Fn(usize) -> MarkProcessedRequest,
) -> Vec<MarkProcessedResponse> {
    let calls =
        callers.iter_mut().enumerate().map(|(index, caller)| caller.mark_processed(request(index)));
    let answers = join_all(calls).await.into_iter();
    answers.map(|answer| answer.unwrap().into_inner()).collect()
}

fn firsts(answers: &[MarkProcessedResponse]) -> usize {
    answers.iter().filter(|answer| answer.first).count()
}

async fn an_event_has_one_first(callers: &mut [Client]) {
    for round in 0..ROUNDS {
        let request = mark("T1", &format!("Ev{round}"));
        let answers = mark_all(callers, |_| request.clone()).await;
        assert_eq!(firsts(&answers), 1, "round {round}");
        let told: HashSet<_> = answers
            .iter()
            .map(|answer| answer.event.as_ref().unwrap().process_time.unwrap())
            .map(|time| (time.seconds, time.nanos))
            .collect();
        assert_eq!(told.len(), 1, "all are told of one mark, round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_64_callers_on_three_replicas_one_is_first_a_thousand_times() {
    let mut crowd = Crowd::new(&Clock::Store).await;
    an_event_has_one_first(&mut crowd.callers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_64_callers_of_the_embedded_store_one_is_first_a_thousand_times() {
    let fixture = Fixture::sqlite().await;
    let mut callers = callers(std::slice::from_ref(&fixture.replica)).await;
    an_event_has_one_first(&mut callers).await;
}

/// Lets all callers race for one session, and answers the one who got it.
async fn race(callers: &mut [Client], session: &str) -> (usize, SessionLease) {
    let calls = callers.iter_mut().enumerate().map(|(index, caller)| {
        caller.acquire_session_lease(acquire("T1", session, &format!("caller-{index}")))
    });
    let mut winners = Vec::new();
    for (index, answer) in join_all(calls).await.into_iter().enumerate() {
        match answer.unwrap().into_inner().outcome.unwrap() {
            Outcome::Lease(lease) => winners.push((index, lease)),
            Outcome::Held(held) => assert!(held.holder.starts_with("caller-"), "{held:?}"),
        }
    }
    assert_eq!(winners.len(), 1, "{winners:?}");
    winners.remove(0)
}

async fn a_session_has_one_holder(callers: &mut [Client]) {
    let mut last = 0;
    for round in 0..ROUNDS {
        let (winner, lease) = race(callers, "s").await;
        assert!(lease.fencing_token > last, "round {round}");
        assert_eq!(lease.holder, format!("caller-{winner}"));
        last = lease.fencing_token;
        // Any replica gives it back.
        let other = (winner + round) % callers.len();
        let released = callers[other].release_session_lease(release(&lease)).await;
        assert!(released.unwrap().into_inner().released, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_64_callers_on_three_replicas_one_holds_the_session_a_thousand_times() {
    let mut crowd = Crowd::new(&Clock::Store).await;
    a_session_has_one_holder(&mut crowd.callers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_64_callers_of_the_embedded_store_one_holds_the_session_a_thousand_times() {
    let fixture = Fixture::sqlite().await;
    let mut callers = callers(std::slice::from_ref(&fixture.replica)).await;
    a_session_has_one_holder(&mut callers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_repeated_at_once_on_another_replica_is_told_alike() {
    let mut crowd = Crowd::new(&Clock::Store).await;
    let callers = &mut crowd.callers[..6];
    for round in 0..300 {
        let asked = callers[0].acquire_session_lease(acquire("T1", "s", "a"));
        let lease = granted(asked.await.unwrap().into_inner());
        let calls = callers.iter_mut().map(|caller| caller.release_session_lease(release(&lease)));
        for answer in join_all(calls).await {
            assert!(answer.unwrap().into_inner().released, "round {round}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_with_one_request_id_share_its_answer() {
    let mut crowd = Crowd::new(&Clock::Store).await;
    for round in 0..200 {
        // Four attempts, each sent sixteen times over all replicas.
        let request_id = |caller: usize| (caller / 16).to_string();
        let answers = mark_all(&mut crowd.callers, |caller| MarkProcessedRequest {
            request_id: request_id(caller),
            ..mark("T1", &format!("Ev{round}"))
        })
        .await;
        let winner = answers.iter().position(|answer| answer.first).unwrap();
        for (caller, answer) in answers.iter().enumerate() {
            let is_winner = request_id(caller) == request_id(winner);
            assert_eq!(answer.first, is_winner, "round {round}, caller {caller}");
            assert_eq!(answer.event, answers[winner].event);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_with_one_request_id_share_its_lease() {
    let mut crowd = Crowd::new(&Clock::Store).await;
    for round in 0..200 {
        let calls = crowd.callers.iter_mut().enumerate().map(|(index, caller)| {
            caller.acquire_session_lease(AcquireSessionLeaseRequest {
                request_id: (index / 16).to_string(),
                ..acquire("T1", &format!("s{round}"), &format!("run-{}", index / 16))
            })
        });
        let mut leases = HashMap::new();
        for (index, answer) in join_all(calls).await.into_iter().enumerate() {
            if let Outcome::Lease(lease) = answer.unwrap().into_inner().outcome.unwrap() {
                assert_eq!(lease.holder, format!("run-{}", index / 16));
                *leases.entry((lease.lease_id, lease.fencing_token)).or_insert(0) += 1;
            }
        }
        let shares: Vec<_> = leases.into_values().collect();
        assert_eq!(shares, [16], "one attempt has it, round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_that_overlap_have_one_first_for_each_event() {
    const BATCHES: usize = 12;
    const EVENTS: usize = 500;
    let mut crowd = Crowd::new(&Clock::Store).await;
    let mut random = StdRng::seed_from_u64(7);
    for round in 0..10 {
        let mut ids: Vec<String> = (0..EVENTS).map(|id| format!("Ev{round}-{id}")).collect();
        let calls: Vec<_> = crowd.callers[..BATCHES]
            .iter_mut()
            .map(|caller| {
                // Two thirds of the events, others for each batch, in no order.
                ids.shuffle(&mut random);
                let ids = ids[..EVENTS * 2 / 3].to_vec();
                let requests = ids.iter().map(|id| mark("T1", id)).collect();
                async move {
                    let batch = BatchMarkProcessedRequest { requests };
                    (ids, caller.batch_mark_processed(batch).await.unwrap().into_inner().results)
                }
            })
            .collect();
        let mut firsts: HashMap<String, usize> = HashMap::new();
        for (ids, results) in join_all(calls).await {
            assert_eq!(results.len(), ids.len());
            for (id, result) in ids.into_iter().zip(results) {
                let Some(Item::Response(answer)) = result.result else {
                    panic!("round {round}: {result:?}");
                };
                assert_eq!(answer.event.unwrap().event_id, id);
                *firsts.entry(id).or_default() += usize::from(answer.first);
            }
        }
        assert!(firsts.values().all(|&firsts| firsts == 1), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_moment_of_expiry_one_caller_is_first() {
    let clock = TestClock::new();
    let mut crowd = Crowd::new(&clock.store_clock()).await;
    for round in 0..150 {
        let request =
            MarkProcessedRequest { ttl: seconds(60), ..mark("T1", &format!("Ev{}", round % 2)) };
        let mut caller = crowd.callers[round % CALLERS].clone();
        caller.mark_processed(request.clone()).await.unwrap();
        clock.advance(Duration::from_micros(59_999_999));
        // The moment comes while they ask: some are early, some late.
        let expiry = async {
            for _ in 0..round % 20 {
                tokio::task::yield_now().await;
            }
            clock.advance(Duration::from_micros(1));
        };
        let asked = mark_all(&mut crowd.callers, |_| request.clone());
        let (early, ()) = tokio::join!(asked, expiry);
        let late = mark_all(&mut crowd.callers, |_| request.clone()).await;
        assert_eq!(firsts(&early) + firsts(&late), 1, "round {round}");
        clock.advance(Duration::from_mins(1));
    }
}
