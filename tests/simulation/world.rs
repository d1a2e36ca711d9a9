//! Replicas over one store, and the faults that are injected.

use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use oncegate::{
    admin::{Admin, Author},
    cleanup::Cleanup,
    dedup::{Dedup, DuplicateCache},
    rules::Ids,
    session::{Bounds, Sessions},
    store::{Clock, ManualClock, Store as _, memory::Memory},
    telemetry::Metrics,
    turn::Turns,
};
use tokio::{
    runtime::Handle,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Report, Settings,
    bots::{self, SESSIONS, session, session_name},
    chance::Chance,
    checker::Checker,
    store::{Faults, Link, SimStore},
};

/// The moment at which the store's clock begins.
const BEGIN: i64 = 1_800_000_000_000_000;
/// How long faults are injected, and how long they are not.
const FAULTY: Duration = Duration::from_secs(90);
const CALM: Duration = Duration::from_mins(1);
/// How long the recovery from faults takes: longer than any lease or claim runs.
const RECOVERY: Duration = Duration::from_secs(30);
/// How long after the last fault a call may still fail because of it: a late call delays those
/// behind it.
const AFTERMATH: Duration = Duration::from_secs(10);
/// How long a repair by an operator takes at most, unless its replica is killed: then it is
/// certainly over.
pub const REPAIR_TIMEOUT: Duration = Duration::from_mins(1);

mod recovery;

pub struct World {
    pub clock: Arc<ManualClock>,
    pub checker: Mutex<Checker>,
    pub faults: Arc<Faults>,
    replicas: Mutex<Vec<Arc<Replica>>>,
    memory: Memory,
    history: Option<Mutex<Vec<String>>>,
    begun: Instant,
    /// Since when no faults are injected.
    calm_since: Mutex<Option<Instant>>,
}

/// One replica of the server.
pub struct Replica {
    pub dedup: Dedup,
    pub sessions: Sessions,
    pub turns: Turns,
    pub admin: Admin,
    pub cleanup: Cleanup,
    link: Arc<Link>,
    stop: CancellationToken,
}

impl World {
    /// Starts the replica that takes this place among them.
    fn start_replica(&self, place: usize, seed: u64) -> Arc<Replica> {
        let link = Link::new(Arc::clone(&self.faults), place == 0);
        let store = SimStore::new(self.memory.replica(Ids::seeded(seed)), Arc::clone(&link));
        let (stop, metrics) = (CancellationToken::new(), Metrics::new());
        let runtimes = [Handle::current()];
        let max_hold = Duration::from_hours(1);
        let bounds = Bounds { writers: 2, capacity: 1_000, waiters: 1_000, max_hold };
        let known =
            DuplicateCache::new(1_000, Duration::from_mins(1), store.invalidations()).unwrap();
        let dedup = Dedup::start(&store, &runtimes, 2, 1_000, Some(known), &metrics);
        let sessions = Sessions::start(&store, &runtimes, bounds, &stop, &metrics);
        let turns = Turns::start(&store, &runtimes, &sessions, bounds, &metrics);
        let admin = Admin::start(&store, &runtimes[0], sessions[0].clone(), &metrics);
        let cleanup = Cleanup::start(&store, &runtimes[0], &metrics);
        let only = |mut all: Vec<_>| all.remove(0);
        Arc::new(Replica {
            dedup: { dedup }.remove(0),
            turns: { turns }.remove(0),
            sessions: only(sessions),
            admin,
            cleanup,
            link,
            stop,
        })
    }

    /// A replica to call.
    pub fn replica(&self, chance: &mut Chance) -> Arc<Replica> {
        Arc::clone(chance.pick(&self.replicas.lock().unwrap()))
    }

    /// Notes what a caller saw.
    pub fn note(&self, line: impl FnOnce() -> String) {
        if let Some(history) = &self.history {
            let at = self.begun.elapsed().as_micros();
            history.lock().unwrap().push(format!("{at} {}", line()));
        }
    }

    /// Counts something that happened.
    pub fn count(&self, what: &'static str) {
        self.faults.count(what);
    }

    /// Whether a call that began at `sent`, and ends now, has met no fault.
    pub fn is_calm_since(&self, sent: Instant) -> bool {
        self.calm_since.lock().unwrap().is_some_and(|since| sent > since + AFTERMATH)
    }

    /// Whether faults are injected from now on.
    fn inject_faults(&self, are_on: bool) {
        self.faults.are_on.store(are_on, Ordering::Relaxed);
        *self.calm_since.lock().unwrap() = (!are_on).then(Instant::now);
    }

    pub fn check(&self, check: impl FnOnce(&mut Checker)) {
        let mut checker = self.checker.lock().unwrap();
        let before = checker.violations.len();
        check(&mut checker);
        let at = self.begun.elapsed();
        for text in &mut checker.violations[before..] {
            *text = format!("after {at:?}: {text}");
        }
    }

    /// Starts another replica in the place of one, which it answers.
    fn replace_replica(&self, chance: &mut Chance) -> Arc<Replica> {
        let seed = chance.seed();
        let mut replicas = self.replicas.lock().unwrap();
        let place = chance.place(&replicas);
        let new = self.start_replica(place, seed);
        std::mem::replace(&mut replicas[place], new)
    }

    fn kill_replica(&self, chance: &mut Chance) {
        self.count("replica killed");
        self.note(|| "a replica is killed".to_owned());
        self.replace_replica(chance).link.kill();
    }

    /// An operator closes a session: the floor of fencing tokens rises to its token.
    async fn close_session(self: &Arc<Self>, chance: &mut Chance) {
        let (number, replica) = (chance.below(SESSIONS), self.replica(chance));
        let subject = session_name(number);
        let author =
            Author { principal: None, actor: "operator".to_owned(), reason: String::new() };
        self.check(|checker| checker.repair_begins(&subject));
        let world = Arc::clone(self);
        let mut closing = tokio::spawn(async move {
            let close = replica.admin.close(session(number), author);
            let _ = timeout(REPAIR_TIMEOUT, close).await;
            world.check(|checker| checker.repair_ends(&subject));
        });
        let _ = timeout(Duration::from_secs(5), &mut closing).await;
    }

    /// Injects a fault after a while.
    async fn inject_fault(self: &Arc<Self>, chance: &mut Chance) {
        sleep(chance.millis(2_000, 20_000)).await;
        match chance.below(5) {
            0 | 1 => self.kill_replica(chance),
            2 => {
                self.count("replica drained");
                self.note(|| "a replica is drained".to_owned());
                let old = self.replace_replica(chance);
                old.stop.cancel();
                sleep(Duration::from_secs(5)).await;
                old.link.kill();
            }
            3 => {
                self.count("clock stepped forward");
                self.check(Checker::step_forward);
                let span = chance.millis(100, 4_000);
                self.note(|| format!("the clock is stepped forward by {span:?}"));
                self.clock.set(self.clock.now().plus(span).as_micros());
            }
            _ => {
                self.count("clock stepped back");
                self.close_session(chance).await;
                self.check(|checker| checker.step_back(self.clock.now()));
                let span = chance.millis(100, 4_000);
                self.note(|| format!("the clock is stepped back by {span:?}"));
                self.clock.set(self.clock.now().minus(span).as_micros());
            }
        }
    }
}

/// Simulates.
pub async fn run(settings: Settings) -> Report {
    let mut chance = Chance::of(settings.seed);
    let clock = Arc::new(ManualClock::running_from(BEGIN));
    let world = Arc::new(World {
        memory: Memory::new(Clock::Manual(Arc::clone(&clock))),
        clock,
        checker: Mutex::default(),
        faults: Arc::new(Faults::new(chance.fork(), settings.bug)),
        replicas: Mutex::default(),
        history: settings.keeps_history.then(Mutex::default),
        begun: Instant::now(),
        calm_since: Mutex::default(),
    });
    for place in 0..settings.replicas {
        let replica = world.start_replica(place, chance.seed());
        world.replicas.lock().unwrap().push(replica);
    }
    let mut bots = JoinSet::new();
    for number in 0..settings.replicas * 4 {
        bots.spawn(bots::run(Arc::clone(&world), chance.fork(), number));
    }
    let until = world.begun + settings.span;
    while Instant::now() < until && world.checker.lock().unwrap().violations.is_empty() {
        world.inject_faults(true);
        let over = Instant::now() + FAULTY;
        while Instant::now() < over {
            world.inject_fault(&mut chance).await;
            world.check_durability().await;
        }
        world.kill_replica(&mut chance);
        world.inject_faults(false);
        world.check_recovery().await;
        world.check_durability().await;
    }
    let dead = bots.try_join_next();
    if let Some(Err(error)) = dead {
        std::panic::resume_unwind(error.into_panic());
    }
    bots.abort_all();
    let history = world.history.as_ref().map(|lines| std::mem::take(&mut *lines.lock().unwrap()));
    Report {
        violations: std::mem::take(&mut world.checker.lock().unwrap().violations),
        counts: std::mem::take(&mut world.faults.counts.lock().unwrap()),
        history: history.unwrap_or_default(),
    }
}
