//! Callers that have gone, and whose operation reaches the database after what they asked anew on
//! another replica.

use std::time::Duration;

use oncegate::{
    domain::{Acquire, Begin, Id, LeaseId, Renew, RenewTurn, RequestId, StreamId},
    session::{AcquireOutcome, Bounds, Grant, SessionError, Sessions},
    store::postgres::Postgres,
    telemetry::Metrics,
    turn::{self, TurnOutcome, Turns},
};
use tokio::{
    runtime::Handle,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::harness::{
    TestClock, ops, postgres,
    proxy::{Line, Proxy},
};

/// For as long as the test needs.
const LONG: Duration = Duration::from_mins(1);

/// Two replicas, of which the first is behind the proxy. The clock stands still: nothing ends by
/// itself.
pub(super) struct Stage {
    pub(super) proxy: Proxy,
    replicas: [(Turns, Sessions); 2],
}

impl Stage {
    pub(super) async fn new() -> Self {
        let (url, clock) = (postgres::new_database().await, TestClock::new());
        let proxy = Proxy::start_for("oncegate", &url, Line::Open).await;
        let start = async |url: &str| {
            let store = Postgres::new(url, LONG, clock.store_clock()).unwrap();
            store.migrate().await.unwrap();
            let (runtimes, stop) = ([Handle::current()], CancellationToken::new());
            let metrics = Metrics::new();
            let bounds = Bounds { writers: 1, capacity: 64, waiters: 64, max_hold: LONG };
            let sessions = Sessions::start(&store, &runtimes, bounds, &stop, &metrics);
            let turns = Turns::start(&store, &runtimes, &sessions, bounds, &metrics);
            turns.into_iter().zip(sessions).next().unwrap()
        };
        let replicas = [start(&proxy.url).await, start(&url).await];
        Self { proxy, replicas }
    }

    fn sessions(&self, replica: usize) -> Sessions {
        self.replicas[replica].1.clone()
    }

    pub(super) fn turns(&self, replica: usize) -> Turns {
        self.replicas[replica].0.clone()
    }

    /// Begins a turn on a replica.
    pub(super) fn begin(
        &self,
        replica: usize,
        begin: Begin,
    ) -> JoinHandle<Option<Box<turn::Grant>>> {
        let turns = self.turns(replica);
        tokio::spawn(async move {
            match turns.begin(begin, Duration::ZERO).await.unwrap() {
                TurnOutcome::Granted(grant) => Some(grant),
                _ => None,
            }
        })
    }

    /// Acquires a session on a replica, with a wait.
    fn ask(&self, replica: usize, acquire: &Acquire) -> JoinHandle<Option<Grant>> {
        let asking = self.asking(replica, acquire);
        tokio::spawn(async { asking.await.unwrap() })
    }

    /// The same, which may end with an error.
    fn asking(
        &self,
        replica: usize,
        acquire: &Acquire,
    ) -> impl Future<Output = Result<Option<Grant>, SessionError>> + Send + use<> {
        let (sessions, acquire) = (self.sessions(replica), acquire.clone());
        async move {
            Ok(match sessions.acquire(&acquire, LONG).await? {
                AcquireOutcome::Granted(grant) => Some(grant),
                AcquireOutcome::Held(_) => None,
            })
        }
    }

    /// A caller on the first replica waits for a session, and goes away. From then on, each
    /// statement of such a caller is one request.
    async fn prepares(&self) {
        let first = self.ask(1, &acquire("first", "holder")).await.unwrap().unwrap();
        let waits = self.ask(0, &acquire("first", "again"));
        self.queue("first", 1).await;
        waits.abort();
        self.queue("first", 0).await;
        drop(first);
    }

    /// A caller on the first replica goes away while its request with this number waits before
    /// the database.
    async fn goes_away<T>(&self, caller: JoinHandle<T>) {
        self.proxy.holds().await;
        caller.abort();
        assert!(caller.await.is_err());
    }

    /// What has waited before the database is done.
    async fn passes(&self) {
        self.proxy.let_pass();
        let taken = self.ask(0, &acquire("after", "after")).await.unwrap();
        drop(taken.unwrap().accept());
    }

    /// The same of turns, and what that has left to the lane.
    async fn turns_pass(&self) {
        self.proxy.let_pass();
        for event in ["after", "after that"] {
            let begun = self.begin(0, begin(event, "after")).await.unwrap();
            let _ = begun.unwrap().accept();
        }
    }

    /// Waits until so many callers wait for a session, and answers which.
    async fn queue(&self, session: &str, count: usize) -> Vec<LeaseId> {
        loop {
            let row = self.sessions(1).look(ops::key(session)).await.unwrap().unwrap();
            if row.queue.len() == count {
                return row.queue;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    async fn release(&self, grant: Grant) {
        let lease = grant.accept().value;
        let released = self.sessions(1).release(ops::key("s"), lease.id).await.unwrap();
        assert!(released);
    }
}

/// A call of this name, each time with one request id.
fn acquire(session: &str, name: &str) -> Acquire {
    let key = ops::key(session);
    let request = Id::parse("request_id", name.to_owned()).unwrap();
    let request = RequestId::for_session(&key, Some(&request));
    Acquire { request, ..ops::acquire(session, 0) }
}

pub(super) fn begin(event: &str, name: &str) -> Begin {
    let begin = ops::begin(event, &[]);
    let request = Id::parse("request_id", name.to_owned()).unwrap();
    let request = RequestId::for_event(&begin.event.key, Some(&request));
    Begin { request, session: None, ..begin }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_acquire_keeps_no_lease_that_came_since() {
    let stage = Stage::new().await;
    let holder = stage.ask(1, &acquire("s", "holder")).await.unwrap().unwrap();
    stage.proxy.hold_after(0);
    let gone = stage.ask(0, &acquire("s", "again"));
    stage.goes_away(gone).await;
    let again = stage.ask(1, &acquire("s", "again"));
    stage.queue("s", 1).await;
    stage.release(holder).await;
    let grant = again.await.unwrap().unwrap();
    stage.passes().await;
    // This caller has gone as well, before it could be told.
    drop(grant);
    assert!(stage.ask(1, &acquire("s", "next")).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_enqueue_takes_no_place_that_came_since() {
    let stage = Stage::new().await;
    stage.prepares().await;
    let holder = stage.ask(1, &acquire("s", "holder")).await.unwrap().unwrap();
    // The two of the acquire that finds the session held.
    stage.proxy.hold_after(2);
    let gone = stage.ask(0, &acquire("s", "again"));
    stage.goes_away(gone).await;
    let again = stage.ask(1, &acquire("s", "again"));
    let queue = stage.queue("s", 1).await;
    stage.passes().await;
    assert_eq!(stage.queue("s", 1).await, queue);
    stage.release(holder).await;
    assert!(again.await.unwrap().is_some());
}

/// A call finds the place of its request, and comes late to take it over: a newer one has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_take_over_finds_the_place_that_came_since() {
    let stage = Stage::new().await;
    stage.prepares().await;
    let holder = stage.ask(1, &acquire("s", "holder")).await.unwrap().unwrap();
    let first = tokio::spawn(stage.asking(1, &acquire("s", "again")));
    let place = stage.queue("s", 1).await;
    // The two of the acquire that finds the session held, and the one that finds the place.
    stage.proxy.hold_after(3);
    let last = stage.ask(0, &acquire("s", "again"));
    stage.proxy.holds().await;
    let second = tokio::spawn(stage.asking(1, &acquire("s", "again")));
    let is_replaced = |ended| matches!(ended, Err(SessionError::StreamReplaced));
    assert!(is_replaced(first.await.unwrap()));
    assert_ne!(stage.queue("s", 1).await, place);
    stage.proxy.let_pass();
    assert!(is_replaced(second.await.unwrap()));
    stage.release(holder).await;
    assert!(last.await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_begin_keeps_no_turn_that_came_since() {
    let stage = Stage::new().await;
    stage.proxy.hold_after(0);
    stage.goes_away(stage.begin(0, begin("e", "again"))).await;
    let grant = stage.begin(1, begin("e", "again")).await.unwrap().unwrap();
    stage.proxy.let_pass();
    assert!(stage.begin(0, begin("after", "after")).await.unwrap().is_some());
    drop(grant);
    // After what was left to the lane.
    assert!(stage.begin(1, begin("after that", "after that")).await.unwrap().is_some());
    assert!(stage.begin(1, begin("e", "next")).await.unwrap().is_some());
}

/// A caller on the first replica is granted a session, and neither that answer reaches the replica
/// nor what its statement finds when it is run again: by then, somebody waits. Answers both callers,
/// before the replica knows more.
async fn unanswered(stage: &Stage) -> (JoinHandle<Option<Grant>>, JoinHandle<Option<Grant>>) {
    stage.prepares().await;
    let holder = stage.ask(1, &acquire("s", "holder")).await.unwrap().unwrap();
    // So the first replica reads before it takes the session the next time.
    let waits = stage.ask(1, &acquire("s", "waits"));
    stage.queue("s", 1).await;
    let held = stage.sessions(0).acquire(&acquire("s", "other"), Duration::ZERO).await.unwrap();
    assert!(matches!(held, AcquireOutcome::Held(_)));
    waits.abort();
    stage.queue("s", 0).await;
    stage.release(holder).await;
    // The read passes; and so does the write, but not its answer.
    stage.proxy.hold_after(2);
    stage.proxy.lose_answer_after(1);
    let caller = stage.ask(0, &acquire("s", "caller"));
    stage.proxy.holds().await;
    let next = stage.ask(1, &acquire("s", "next"));
    stage.queue("s", 1).await;
    (caller, next)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_whose_grant_was_not_answered_is_new_to_its_caller() {
    let stage = Stage::new().await;
    let (caller, next) = unanswered(&stage).await;
    stage.proxy.let_pass();
    let grant = caller.await.unwrap().unwrap();
    assert!(grant.is_fresh());
    // It has gone before it could be told.
    drop(grant);
    assert!(timeout(LONG, next).await.unwrap().unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_whose_grant_was_not_answered_is_given_back_if_its_caller_has_gone() {
    let stage = Stage::new().await;
    let (caller, next) = unanswered(&stage).await;
    caller.abort();
    assert!(caller.await.is_err());
    stage.proxy.let_pass();
    assert!(timeout(LONG, next).await.unwrap().unwrap().is_some());
}

/// A stream that has found the lease of its request goes away, and what takes it over comes late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_stream_takes_no_lease_from_a_newer_call() {
    let stage = Stage::new().await;
    let again = |session: &str, stream| Acquire { stream, ..acquire(session, "again") };
    let stream = || Some(StreamId::random());
    // From then on, each statement is one request.
    for _ in 0..2 {
        let _ = stage.ask(0, &again("first", stream())).await.unwrap().unwrap().accept();
    }
    let late = async |session: &str| {
        // The two by which it finds the lease.
        stage.proxy.hold_after(2);
        stage.goes_away(stage.ask(0, &again(session, stream()))).await;
    };
    let _ = stage.ask(1, &again("alone", None)).await.unwrap().unwrap().accept();
    late("alone").await;
    stage.passes().await;
    // So it does take over, and gives the lease back.
    assert!(stage.ask(1, &acquire("alone", "next")).await.unwrap().is_some());

    for (session, newer) in [("stream", stream()), ("call", None)] {
        let _ = stage.ask(1, &again(session, None)).await.unwrap().unwrap().accept();
        if newer.is_none() {
            // The calls of its holder look alike.
            let _ = stage.ask(1, &again(session, None)).await.unwrap().unwrap().accept();
        }
        late(session).await;
        let acquire = again(session, newer);
        let lease = stage.ask(1, &acquire).await.unwrap().unwrap().accept().value;
        stage.passes().await;
        let Acquire { key, ttl, .. } = acquire;
        let renew = Renew { key, lease: lease.id, ttl, stream: newer };
        stage.sessions(1).renew(renew).await.unwrap();
    }
}

/// The same of a turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_stream_takes_no_turn_from_a_newer_call() {
    let stage = Stage::new().await;
    let again = |event: &str, stream: Option<StreamId>| {
        let begin = begin(event, "again");
        Begin { stream, ..begin }
    };
    let stream = || Some(StreamId::random());
    // From then on, each statement is one request.
    for _ in 0..2 {
        let _ = stage.begin(0, again("first", stream())).await.unwrap().unwrap().accept();
    }
    let late = async |event: &str| {
        // The one by which it finds the claim.
        stage.proxy.hold_after(1);
        stage.goes_away(stage.begin(0, again(event, stream()))).await;
    };
    let _ = stage.begin(1, again("alone", None)).await.unwrap().unwrap().accept();
    late("alone").await;
    stage.turns_pass().await;
    // So it does take over, and gives the turn up.
    assert!(stage.begin(1, begin("alone", "next")).await.unwrap().is_some());

    for (event, newer) in [("stream", stream()), ("call", None)] {
        let _ = stage.begin(1, again(event, None)).await.unwrap().unwrap().accept();
        if newer.is_none() {
            // The calls of its holder look alike.
            let _ = stage.begin(1, again(event, None)).await.unwrap().unwrap().accept();
        }
        late(event).await;
        let begin = again(event, newer);
        let (claim_ttl, lease_ttl) = (begin.claim_ttl, begin.claim_ttl);
        let turn = stage.begin(1, begin).await.unwrap().unwrap().accept().id;
        stage.turns_pass().await;
        let renew = RenewTurn { turn, claim_ttl, lease_ttl, stream: newer, interruption: None };
        stage.turns(1).renew(renew).await.unwrap();
    }
}
