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
    domain::{Acquire, Id, Labels, Lease, RequestId, SessionKey, Ttl, limits},
    grpc::pb::MarkProcessedRequest,
    session::{AcquireOutcome, Sessions},
    store::{Clock, Store, postgres::Postgres, sqlite::Sqlite},
    telemetry::Metrics,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::time::timeout;

use super::{Crowd, REPLICAS};
use crate::harness::{Client, TestClock, mark, postgres, sqlite_url};

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
const ATTEMPTS_OF_A_RUN: u64 = 100;

/// Sessions, and what their holders know of them.
struct Arena {
    replicas: Vec<Sessions>,
    held: [AtomicBool; SESSIONS],
    tokens: [AtomicI64; SESSIONS],
}

impl Arena {
    /// Its leases never end by themselves: the clock stands still.
    fn new(replicas: usize, store: &impl Store) -> Arc<Self> {
        let start = || Sessions::start(store, 2, 1_024, &Metrics::new());
        Arc::new(Self {
            replicas: std::iter::repeat_with(start).take(replicas).collect(),
            held: Default::default(),
            tokens: Default::default(),
        })
    }

    fn key(session: usize) -> SessionKey {
        let id = |text: String| Id::parse("id", text).unwrap();
        SessionKey::given(id("T1".into()), id(session.to_string()))
    }

    fn acquire(session: usize, holder: String, request: Option<String>) -> Acquire {
        let key = Self::key(session);
        let request = request.map(|id| Id::parse("request_id", id).unwrap());
        Acquire {
            request: RequestId::for_session(&key, request.as_ref()),
            key,
            holder,
            ttl: Ttl::parse(None, limits::DEFAULT_LEASE_TTL, &limits::LEASE_TTL).unwrap(),
            epic: None,
            labels: Labels::default(),
        }
    }

    /// Works on a session: alone, and with a token that no one had before.
    async fn work(&self, session: usize, lease: Lease, replica: usize) {
        assert!(!self.held[session].swap(true, Ordering::SeqCst));
        let last = self.tokens[session].swap(lease.token.0, Ordering::SeqCst);
        assert!(last < lease.token.0);
        tokio::task::yield_now().await;
        self.held[session].store(false, Ordering::SeqCst);
        let released = self.replicas[replica].release(Self::key(session), lease.id);
        assert!(released.await.unwrap());
    }

    /// One attempt after another, most of them cut short.
    async fn run(self: Arc<Self>, run: u64) {
        let mut random = StdRng::seed_from_u64(run);
        for attempt in 0..ATTEMPTS_OF_A_RUN {
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
            if let AcquireOutcome::Granted(grant) = outcome.unwrap() {
                let other = random.random_range(..self.replicas.len());
                self.work(session, grant.accept(), other).await;
            }
        }
    }
}

async fn no_lease_stays_with_a_caller_that_went_away(arena: Arc<Arena>) {
    let runs = (0..RUNS).map(|run| tokio::spawn(Arc::clone(&arena).run(run)));
    for run in join_all(runs).await {
        run.unwrap();
    }
    for session in 0..SESSIONS {
        let last = arena.tokens[session].load(Ordering::SeqCst);
        let acquire = Arena::acquire(session, "last".to_owned(), None);
        let sessions = &arena.replicas[session % arena.replicas.len()];
        let outcome = sessions.acquire(&acquire, Duration::from_secs(10));
        match outcome.await.unwrap() {
            AcquireOutcome::Granted(grant) => {
                assert!(grant.accept().token.0 > last && last > 0);
            }
            AcquireOutcome::Held { held, .. } => panic!("session {session}: {held:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lease_stays_with_a_caller_that_went_away_on_three_replicas() {
    let url = postgres::new_database().await;
    let clock = TestClock::new().store_clock();
    let store = Postgres::new(&url, Duration::from_secs(5), clock).unwrap();
    store.migrate().await.unwrap();
    no_lease_stays_with_a_caller_that_went_away(Arena::new(REPLICAS, &store)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lease_stays_with_a_caller_that_went_away_in_the_embedded_store() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new().store_clock();
    let store = Sqlite::open(&sqlite_url(&directory), clock).await.unwrap();
    store.migrate().await.unwrap();
    no_lease_stays_with_a_caller_that_went_away(Arena::new(1, &store)).await;
}
