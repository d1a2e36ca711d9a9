//! Turns under many callers at once, on three replicas.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use oncegate::{
    domain::{
        Acquire, Begin, Delivered, EventKey, Finish, FinishAs, Id, Labels, OwnLease, RequestId,
        SessionKey, Team, Ttl, limits,
    },
    grpc::pb::{
        self, BeginTurnRequest, FinishTurnRequest, Turn, TurnOutcome as Ends,
        begin_turn_response::Outcome, turn_service_client::TurnServiceClient,
    },
    session::{AcquireOutcome, Bounds, Sessions},
    store::{Clock, postgres::Postgres},
    telemetry::Metrics,
    turn::{TurnOutcome, Turns},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Response, Status, transport::Channel};

use super::{CALLERS, REPLICAS, stores};
use crate::harness::{
    Replica, TestClock, connect, event, postgres,
    proxy::{Line, Proxy},
    seconds, session,
};

type Client = TurnServiceClient<Channel>;

async fn crowd(replicas: &[Replica]) -> Vec<Client> {
    let connect =
        |connection: usize| connect(replicas[connection % replicas.len()].server.address());
    let channels = join_all((0..CALLERS / 8).map(connect)).await;
    channels.into_iter().map(Client::new).cycle().take(CALLERS).collect()
}

/// Lets all callers ask for the turn of one event at once. Answers the one who got it.
async fn race(callers: &mut [Client], round: usize) -> Option<Turn> {
    let calls = callers.iter_mut().enumerate().map(|(caller, client)| {
        client.begin_turn(BeginTurnRequest {
            event: event("T1", &format!("Ev{round}")),
            session: session("T1", &format!("s{}", round % 3)),
            holder: format!("caller-{caller}"),
            ..Default::default()
        })
    });
    let mut turns = Vec::new();
    for answer in join_all(calls).await {
        match answer.unwrap().into_inner().outcome.unwrap() {
            Outcome::Granted(granted) => turns.push(granted.turn.unwrap()),
            Outcome::InProgress(_)
            | Outcome::Busy(_)
            | Outcome::Duplicate(_)
            | Outcome::GaveUp(_) => {}
        }
    }
    assert!(turns.len() <= 1, "{turns:?}");
    turns.pop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_64_callers_on_three_replicas_one_has_the_turn() {
    const ROUNDS: usize = 200;
    let url = postgres::new_database().await;
    let replicas = Replica::start_all(REPLICAS, &url, &Clock::Store).await;
    let mut callers = crowd(&replicas).await;
    let mut last = 0;
    for round in 0..ROUNDS {
        let turn = race(&mut callers, round).await.expect("one has it");
        let fence = turn.lease.unwrap().fencing_token;
        assert!(fence > last);
        last = fence;
        let outcome = Ends::Succeeded.into();
        let finish = FinishTurnRequest { turn_id: turn.turn_id, outcome, ..Default::default() };
        callers[round % CALLERS].finish_turn(finish).await.unwrap();
        assert_eq!(race(&mut callers, round).await, None);
    }
}

const SESSIONS: usize = 4;
const EVENTS: usize = 12;

/// Turns whose callers come and go.
struct Arena {
    replicas: Vec<(Turns, Sessions)>,
    /// How often each event was handled.
    handled: [AtomicU32; EVENTS],
    working: [AtomicU32; SESSIONS],
}

impl Arena {
    /// A replica on each of `stores`. Its claims never lapse: the clock stands still.
    fn new(stores: &[Postgres]) -> Self {
        let start = |store| {
            let (runtimes, stop) = ([Handle::current()], CancellationToken::new());
            let metrics = Metrics::new();
            let max_hold = Duration::from_hours(1);
            let bounds = Bounds { writers: 2, capacity: 1_024, waiters: 1_024, max_hold };
            let sessions = Sessions::start(store, &runtimes, bounds, &stop, &metrics);
            let turns = Turns::start(store, &runtimes, &sessions, bounds, &metrics);
            turns.into_iter().zip(sessions).next().unwrap()
        };
        Self {
            replicas: stores.iter().map(start).collect(),
            handled: Default::default(),
            working: Default::default(),
        }
    }

    /// Every other event is delivered under one of three names, with an alias that those
    /// have in common.
    fn begin(number: usize, name: u32) -> Begin {
        let id = |text: &str| Id::parse("id", text.to_owned()).unwrap();
        let (name, aliases) = match number % 2 {
            0 => (format!("Ev{number}"), vec![]),
            _ => (format!("Ev{number}.{name}"), vec![format!("ts{number}")]),
        };
        let event = EventKey::given(Team::stored("T1"), id(&name));
        let key = SessionKey::given(Team::stored("T1"), id(&format!("s{}", number % SESSIONS)));
        let ttl = Ttl::parse(None, limits::DEFAULT_LEASE_TTL, &limits::LEASE_TTL).unwrap();
        let acquire = Acquire {
            request: RequestId::for_session(&key, None),
            key,
            holder: "run".into(),
            lease: OwnLease::random(),
            ttl,
            epic: None,
            labels: Labels::default(),
            stream: None,
            resumes: None,
            digest: None,
        };
        Begin {
            request: RequestId::for_event(&event, None),
            event: Delivered::new(event, aliases, None, None),
            holder: "run".into(),
            claim_ttl: ttl,
            max_attempts: 100,
            session: Some(acquire),
            stream: None,
            resumes: None,
            grace: Duration::ZERO,
        }
    }

    /// Asks for the turn of an event, perhaps again and again.
    async fn run(&self, mut random: StdRng) {
        let number = random.random_range(0..EVENTS);
        let begin = Self::begin(number, random.random_range(0..3));
        // Whoever repeats a request sees it through: else its lease or claim is nobody's.
        let cuts = random.random_range(0..4);
        for cut in 0..=cuts {
            let (turns, _) = &self.replicas[random.random_range(0..REPLICAS)];
            let wait = Duration::from_millis(random.random_range(0..20));
            let is_last = cut == cuts && cuts > 0;
            let patience = if is_last { 30_000_000 } else { random.random_range(0..15_000) };
            let patience = Duration::from_micros(patience);
            let asked = timeout(patience, turns.begin(begin.clone(), wait)).await;
            let Ok(Ok(TurnOutcome::Granted(grant))) = asked else { continue };
            let turn = grant.accept();
            let working = &self.working[number % SESSIONS];
            assert_eq!(working.fetch_add(1, Ordering::SeqCst), 0, "two runs in one session");
            tokio::task::yield_now().await;
            working.fetch_sub(1, Ordering::SeqCst);
            let succeeds = random.random_bool(0.3);
            let ttl = Ttl::parse(None, limits::DEFAULT_EVENT_TTL, &limits::EVENT_TTL).unwrap();
            let ending = if succeeds {
                FinishAs::Succeeded(Arc::default(), ttl)
            } else {
                FinishAs::Failed(None)
            };
            self.handled[number].fetch_add(u32::from(succeeds), Ordering::SeqCst);
            turns.finish(Finish::new(turn.id, ending, None)).await.unwrap();
            return;
        }
    }
}

/// Of two calls with one request id in one batch, one goes away: the other's turn is its.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_twin_that_went_away_takes_no_turn_with_it() {
    let stores = stores(&postgres::new_database().await, &TestClock::new()).await;
    let arena = Arena::new(&stores);
    let (turns, _) = &arena.replicas[0];
    let ttl = Ttl::parse(None, limits::DEFAULT_EVENT_TTL, &limits::EVENT_TTL).unwrap();
    for round in 0..200_u64 {
        let begin = Begin {
            event: Delivered::new(
                EventKey { team: Team::stored("T1"), event: round.to_string() },
                Vec::new(),
                None,
                None,
            ),
            ..Arena::begin(0, 0)
        };
        let patience = Duration::from_micros(round * 20);
        let gone = timeout(patience, turns.begin(begin.clone(), Duration::ZERO));
        let stays = turns.begin(begin.clone(), Duration::ZERO);
        let (gone, stays) = tokio::join!(gone, stays);
        // Whichever of them was told of it first.
        drop(gone);
        let Ok(TurnOutcome::Granted(grant)) = stays else { panic!("round {round}") };
        let ending = FinishAs::Succeeded(Arc::default(), ttl);
        turns.finish(Finish::new(grant.accept().id, ending, None)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_turn_stays_with_a_caller_that_went_away() {
    let stores = stores(&postgres::new_database().await, &TestClock::new()).await;
    let arena = Arc::new(Arena::new(&stores));
    for storm in 0..20_u64 {
        let runs = (0..48_u64).map(|run| {
            let arena = Arc::clone(&arena);
            let random = StdRng::seed_from_u64(storm << 32 | run);
            tokio::spawn(async move { arena.run(random).await })
        });
        for run in join_all(runs).await {
            run.unwrap();
        }
    }
    let handled = arena.handled.each_ref().map(|handled| handled.load(Ordering::SeqCst));
    assert!(handled.iter().all(|&count| count <= 1), "{handled:?}");
    assert!(handled.contains(&1), "{handled:?}");
    // Whoever went away has left everything as it was.
    let wait = Duration::from_secs(10);
    for (number, handled) in handled.into_iter().enumerate() {
        let (turns, sessions) = &arena.replicas[number % REPLICAS];
        let begin = Arena::begin(number, 0);
        let acquire = begin.session.clone().unwrap();
        match turns.begin(begin, wait).await.unwrap() {
            TurnOutcome::Granted(grant) => {
                assert_eq!(handled, 0, "event {number} was handled");
                let turn = grant.accept().id;
                turns.finish(Finish::new(turn, FinishAs::Failed(None), None)).await.unwrap();
            }
            TurnOutcome::Duplicate(..) => assert_eq!(handled, 1, "event {number}"),
            TurnOutcome::InProgress(claim) => panic!("event {number}: {claim:?}"),
            TurnOutcome::Busy(held) => panic!("event {number}: {held:?}"),
        }
        match sessions.acquire(&acquire, wait).await.unwrap() {
            AcquireOutcome::Granted(grant) => drop(grant),
            AcquireOutcome::Held(held) => panic!("session of {number}: {held:?}"),
        }
    }
}

/// What a caller says that has no answer for certain: the same again.
async fn until_known<T>(
    answered: &AtomicUsize,
    mut ask: impl AsyncFnMut() -> Result<Response<T>, Status>,
) -> T {
    loop {
        match ask().await {
            Ok(answer) => {
                answered.fetch_add(1, Ordering::SeqCst);
                return answer.into_inner();
            }
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// Handles events in a session, each once, whatever answers are lost.
async fn handle_events(mut turns: Client, caller: usize, answered: &AtomicUsize) {
    for number in 0..6 {
        let name = format!("{caller}.{number}");
        let aliases = if number % 4 == 0 { vec![format!("ts:{name}")] } else { Vec::new() };
        let wish = |request_id: &str| BeginTurnRequest {
            event: Some(pb::EventKey { aliases: aliases.clone(), ..event("T1", &name).unwrap() }),
            session: session("T1", &caller.to_string()),
            holder: "run".into(),
            request_id: request_id.into(),
            // The lease of a turn whose end was told again is given back a moment later.
            wait: seconds(60),
            ..Default::default()
        };
        let begun = until_known(answered, async || turns.begin_turn(wish("r1")).await).await;
        let Some(Outcome::Granted(granted)) = begun.outcome else { panic!("{begun:?}") };
        let turn = granted.turn.unwrap();
        assert_eq!(turn.attempt, 1, "{name}");
        let end = FinishTurnRequest {
            turn_id: turn.turn_id,
            outcome: Ends::Succeeded.into(),
            result: name.clone().into(),
            ttl: None,
            ..Default::default()
        };
        until_known(answered, async || turns.finish_turn(end.clone()).await).await;
        let again = until_known(answered, async || turns.begin_turn(wish("r2")).await).await;
        let Some(Outcome::Duplicate(duplicate)) = again.outcome else { panic!("{again:?}") };
        assert_eq!(duplicate.result, name.as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_answers_are_lost_every_turn_is_begun_and_ended_once() {
    let proxy = Proxy::start_for("oncegate", &postgres::new_database().await, Line::Open).await;
    let replicas = Replica::start_all(REPLICAS, &proxy.url, &Clock::Store).await;
    let answered = Arc::new(AtomicUsize::new(0));
    let progress = Arc::clone(&answered);
    let losing = tokio::spawn(async move {
        loop {
            proxy.set(Line::Open);
            // On a slow machine too, some calls are answered each time.
            let before = progress.load(Ordering::SeqCst);
            sleep(Duration::from_millis(200)).await;
            while progress.load(Ordering::SeqCst) == before {
                sleep(Duration::from_millis(10)).await;
            }
            // What is committed meanwhile is not answered.
            proxy.set(Line::Mute);
            sleep(Duration::from_millis(10)).await;
            proxy.set(Line::Cut);
            sleep(Duration::from_millis(1)).await;
        }
    });
    let addresses = replicas.iter().map(|replica| replica.server.address());
    let clients = join_all(addresses.map(connect)).await;
    let callers = clients.iter().cycle().take(CALLERS / 2).enumerate();
    let handling = callers
        .map(|(caller, client)| handle_events(Client::new(client.clone()), caller, &answered));
    timeout(Duration::from_mins(5), join_all(handling)).await.expect("it takes for ever");
    losing.abort();
}
