//! Callers that go away at any moment.
//!
//! Sessions are tried below gRPC: there the moment when a lease reaches its
//! caller is exact, while an answer that crosses a cancellation on the wire is
//! known to neither side.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use oncegate::{
    domain::{Acquire, Id, Labels, Lease, OwnLease, RequestId, SessionKey, Team, Ttl, limits},
    grpc::pb::{AcquireSessionLeaseRequest, MarkProcessedRequest},
    lane::CallError,
    session::{AcquireOutcome, Bounds, SessionError, Sessions},
    store::{Clock, Store, StoreError, sqlite::Sqlite},
    telemetry::Metrics,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{runtime::Handle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Crowd, stores};
use crate::harness::{
    Client, Fixture, TestClock, acquire, granted, mark, postgres, release, seconds, sqlite_url,
};

/// One attempt at an event: it is cut short a few times, and then sees its
/// answer. Answers whether it was first, which it is told alike each time.
async fn insistent_mark(
    callers: Vec<Client>,
    request: MarkProcessedRequest,
    mut random: StdRng,
) -> bool {
    let mut told = Vec::new();
    for cut in 0..4 {
        let mut caller = callers[random.random_range(..callers.len())].clone();
        let call = caller.mark_processed(request.clone());
        let patience = match cut {
            3 => Duration::from_secs(30),
            _ => Duration::from_micros(random.random_range(..3_000)),
        };
        if let Ok(answer) = timeout(patience, call).await {
            told.push(answer.unwrap().into_inner().first);
        }
    }
    let first = *told.last().expect("an answer within half a minute");
    assert!(told.iter().all(|&told| told == first), "{told:?}");
    first
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marks_cut_short_at_any_moment_leave_one_first_that_a_repetition_finds() {
    const ATTEMPTS: usize = 4;
    let crowd = Crowd::new(&Clock::Store).await;
    for round in 0..15_u64 {
        let attempts = (0..ATTEMPTS * 20).map(|attempt| {
            let event = format!("Ev{round}-{}", attempt / ATTEMPTS);
            let request =
                MarkProcessedRequest { request_id: attempt.to_string(), ..mark("T1", &event) };
            let random = StdRng::seed_from_u64(round << 32 | attempt as u64);
            let run = tokio::spawn(insistent_mark(crowd.callers.clone(), request, random));
            async { (event, run.await.unwrap()) }
        });
        let mut firsts: HashMap<String, usize> = HashMap::new();
        for (event, first) in join_all(attempts).await {
            *firsts.entry(event).or_default() += usize::from(first);
        }
        assert!(firsts.values().all(|&firsts| firsts == 1), "{firsts:?}");
    }
}

const SESSIONS: usize = 6;
const RUNS: u64 = 48;

/// Sessions, and what their holders know of them.
struct Arena {
    replicas: Vec<Sessions>,
    held: [AtomicBool; SESSIONS],
    tokens: [AtomicI64; SESSIONS],
    /// Whether the store may be away for a moment.
    is_rough: bool,
}

impl Arena {
    /// A replica on each of `stores`. Its leases never end by themselves: the clock stands still.
    fn new(stores: &[impl Store], is_rough: bool) -> Arc<Self> {
        let start = |store| {
            let runtimes = [Handle::current()];
            let stop = CancellationToken::new();
            let metrics = Metrics::new();
            let max_hold = Duration::from_hours(1);
            let bounds = Bounds { writers: 2, capacity: 1_024, waiters: 1_024, max_hold };
            Sessions::start(store, &runtimes, bounds, &stop, &metrics).remove(0)
        };
        Arc::new(Self {
            replicas: stores.iter().map(start).collect(),
            held: Default::default(),
            tokens: Default::default(),
            is_rough,
        })
    }

    fn key(session: usize) -> SessionKey {
        let id = |text: String| Id::parse("id", text).unwrap();
        SessionKey::given(Team::stored("T1"), id(session.to_string()))
    }

    fn acquire(session: usize, holder: String, request: Option<String>) -> Acquire {
        let key = Self::key(session);
        let request = request.map(|id| Id::parse("request_id", id).unwrap());
        Acquire {
            request: RequestId::for_session(&key, request.as_ref()),
            key,
            holder,
            lease: OwnLease::random(),
            ttl: Ttl::parse(None, limits::DEFAULT_LEASE_TTL, &limits::LEASE_TTL).unwrap(),
            epic: None,
            labels: Labels::default(),
            stream: None,
            resumes: None,
            digest: None,
        }
    }

    /// Works on a session: alone, and with a token that no one had before.
    async fn work(&self, session: usize, lease: Lease, replica: usize) {
        assert!(!self.held[session].swap(true, Ordering::SeqCst));
        let last = self.tokens[session].swap(lease.token.0, Ordering::SeqCst);
        assert!(last < lease.token.0);
        tokio::task::yield_now().await;
        self.held[session].store(false, Ordering::SeqCst);
        let sessions = &self.replicas[replica];
        loop {
            match sessions.release(Self::key(session), lease.id).await {
                // Repeated where its answer was lost, it may come when the next
                // one has the session.
                Ok(released) => return assert!(released || self.is_rough),
                Err(error) => self.is_away(&error).await,
            }
        }
    }

    /// Leaves a store alone that is away, as it may be here.
    async fn is_away(&self, error: &SessionError) {
        let SessionError::Call(CallError::Store(
            StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_),
        )) = error
        else {
            panic!("{error}");
        };
        assert!(self.is_rough, "{error}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    /// Many runs at once. Returns once they have ended.
    async fn storm(self: &Arc<Self>, seed: u64, attempts: u64) {
        let runs = (0..RUNS).map(|run| tokio::spawn(Arc::clone(self).run(seed + run, attempts)));
        for run in join_all(runs).await {
            run.unwrap();
        }
    }

    /// One attempt after another, most of them cut short.
    async fn run(self: Arc<Self>, run: u64, attempts: u64) {
        let mut random = StdRng::seed_from_u64(run);
        for attempt in 0..attempts {
            let session = random.random_range(..SESSIONS);
            let replica = random.random_range(..self.replicas.len());
            let sessions = &self.replicas[replica];
            let wait = match random.random_range(..3_u8) {
                0 => Duration::ZERO,
                1 => Duration::from_millis(2),
                _ => Duration::from_secs(5),
            };
            let is_named: bool = random.random();
            let request = is_named.then(|| format!("{run}-{attempt}"));
            let holder = format!("{run}-{attempt}, wait {wait:?}, named: {is_named}");
            let acquire = Self::acquire(session, holder, request);
            let patience = Duration::from_micros(random.random_range(..20_000));
            let asked = timeout(patience, sessions.acquire(&acquire, wait));
            let outcome = match asked.await {
                Ok(outcome) => outcome,
                // Some ask again, anywhere; the others are gone.
                Err(_) if is_named && random.random() => {
                    let again = &self.replicas[random.random_range(..self.replicas.len())];
                    again.acquire(&acquire, wait).await
                }
                Err(_) => continue,
            };
            match outcome {
                Ok(AcquireOutcome::Granted(grant)) => {
                    let other = random.random_range(..self.replicas.len());
                    self.work(session, grant.accept().value, other).await;
                }
                Ok(AcquireOutcome::Held { .. }) => {}
                Err(error) => self.is_away(&error).await,
            }
        }
    }

    /// Waits for 50 ms, and then for up to 1 s until a lease was granted: a slow machine gets more
    /// time between two cuts.
    async fn goes_on(self: Arc<Self>) {
        let tokens = || self.tokens.each_ref().map(|token| token.load(Ordering::SeqCst));
        let before = tokens();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let worked = async {
            while tokens() == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = timeout(Duration::from_secs(1), worked).await;
    }

    /// Checks that every session can be had, and that some were.
    async fn is_free(&self) {
        let mut worked_on = 0;
        for session in 0..SESSIONS {
            let last = self.tokens[session].load(Ordering::SeqCst);
            worked_on += usize::from(last > 0);
            let acquire = Self::acquire(session, "last".to_owned(), None);
            let sessions = &self.replicas[session % self.replicas.len()];
            let outcome = loop {
                match sessions.acquire(&acquire, Duration::from_secs(10)).await {
                    Ok(outcome) => break outcome,
                    Err(error) => self.is_away(&error).await,
                }
            };
            match outcome {
                AcquireOutcome::Granted(grant) => assert!(grant.accept().value.token.0 > last),
                AcquireOutcome::Held(held) => panic!("session {session}: {held:?}"),
            }
        }
        // Rough weather may keep everybody from one of them.
        assert!(worked_on == SESSIONS || self.is_rough && worked_on > 0, "{worked_on}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lease_stays_with_a_caller_that_went_away_on_three_replicas() {
    let stores = stores(&postgres::new_database().await, &TestClock::new()).await;
    let arena = Arena::new(&stores, false);
    arena.storm(0, 100).await;
    arena.is_free().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lease_stays_with_a_caller_that_went_away_in_the_embedded_store() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new().store_clock();
    let store = Sqlite::open(&sqlite_url(&directory), clock).await.unwrap();
    store.migrate().await.unwrap();
    let arena = Arena::new(&[store], false);
    arena.storm(0, 100).await;
    arena.is_free().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_connections_are_cut_a_session_still_has_one_holder() {
    let (url, clock) = (postgres::new_database().await, TestClock::new());
    let arena = Arena::new(&stores(&url, &clock).await, true);
    let cut = Arc::clone(&arena);
    let cutting = tokio::spawn(postgres::cut_connections(url, move || Arc::clone(&cut).goes_on()));
    for round in 0..8 {
        arena.storm(round * RUNS, 12).await;
        // What a lost answer left behind ends.
        clock.advance(limits::DEFAULT_LEASE_TTL);
    }
    cutting.abort();
    arena.is_free().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_give_up_at_once_do_not_cost_the_others_their_connection() {
    // All in all fewer than the calls that one connection may have under way: so
    // many may be taken back before the server has seen one, and no more.
    const CALLS: usize = 200;
    const ROUNDS: u64 = 5;
    let fixture = Fixture::sqlite().await;
    let mut holder = fixture.client.clone();
    let lease = holder.acquire_session_lease(acquire("T1", "s", "holder")).await.unwrap();
    let lease = granted(lease.into_inner());
    let mut waiter = fixture.client.clone();
    let waits = AcquireSessionLeaseRequest { wait: seconds(60), ..acquire("T1", "s", "waiter") };
    let waiting = tokio::spawn(async move { waiter.acquire_session_lease(waits).await });
    for round in 0..ROUNDS {
        // Some give up before the server has so much as seen their calls.
        let calls = (0..CALLS).map(|call| {
            let mut caller = fixture.client.clone();
            let patience = Duration::from_micros(10 * call as u64 % 1_000);
            async move {
                let event = mark("T1", &format!("Ev{round}-{call}"));
                timeout(patience, caller.mark_processed(event)).await
            }
        });
        for answer in join_all(calls).await.into_iter().flatten() {
            assert!(answer.unwrap().into_inner().first);
        }
    }
    holder.release_session_lease(release(&lease)).await.unwrap();
    granted(waiting.await.unwrap().unwrap().into_inner());
}
