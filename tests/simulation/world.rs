//! Replicas over one store, what goes wrong with them, and what must hold when all is well again.

use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use oncegate::{
    admin::{Admin, Author},
    cleanup::Cleanup,
    dedup::{Dedup, Known},
    domain::{EventKey, LeaseId, Timestamp},
    rules::{Ids, Session, State, Waiter, Wanted},
    session::{Bounds, Sessions},
    store::{Clock, ManualClock, Records as _, Store as _, Work, memory::Memory},
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
    bots::{self, EVENTS, SESSIONS, event, session},
    chance::Chance,
    checker::{Checker, GrantId},
    store::{Faults, Link, SimStore},
};

/// The moment at which the store's clock begins.
const BEGIN: i64 = 1_800_000_000_000_000;
/// How long things go wrong, and then do not.
const STORM: Duration = Duration::from_secs(90);
const CALM: Duration = Duration::from_mins(1);
/// How long it takes until all is well again: longer than any lease or claim runs.
const SETTLE: Duration = Duration::from_secs(30);
/// The longest that a free session may have somebody who waits for it.
const STRANDED: Duration = Duration::from_secs(1);

pub struct World {
    pub clock: Arc<ManualClock>,
    pub checker: Mutex<Checker>,
    pub faults: Arc<Faults>,
    replicas: Mutex<Vec<Arc<Replica>>>,
    memory: Memory,
    history: Option<Mutex<Vec<String>>>,
    begun: Instant,
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
    fn start_replica(&self, seed: u64) -> Arc<Replica> {
        let link = Link::new(Arc::clone(&self.faults));
        let store = SimStore::new(self.memory.replica(Ids::seeded(seed)), Arc::clone(&link));
        let (stop, metrics) = (CancellationToken::new(), Metrics::new());
        let runtimes = [Handle::current()];
        let max_hold = Duration::from_hours(1);
        let bounds = Bounds { writers: 2, capacity: 1_000, waiters: 1_000, max_hold };
        let known = Known::new(1_000, Duration::from_mins(1), store.invalidations()).unwrap();
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

    /// A replica to ask.
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

    pub fn check(&self, check: impl FnOnce(&mut Checker)) {
        let mut checker = self.checker.lock().unwrap();
        let before = checker.violations.len();
        check(&mut checker);
        let at = self.begun.elapsed();
        for text in &mut checker.violations[before..] {
            *text = format!("after {at:?}: {text}");
        }
    }

    /// A replica is killed, and another is started in its place.
    fn kill(&self, chance: &mut Chance) {
        self.faults.count("replica killed");
        self.note(|| "a replica is killed".to_owned());
        let new = self.start_replica(chance.seed());
        let old = std::mem::replace(chance.pick_mut(&mut self.replicas.lock().unwrap()), new);
        old.link.kill();
    }

    /// An operator closes a session: what its tokens rise above is the floor from then on.
    async fn close_session(&self, chance: &mut Chance) {
        let (number, replica) = (chance.below(SESSIONS), self.replica(chance));
        let what = format!("session {number}");
        let author = Author { actor: "operator".to_owned(), reason: String::new() };
        self.check(|checker| checker.disturbing(&what));
        let close = replica.admin.close(session(number), author);
        if timeout(Duration::from_secs(5), close).await.is_ok() {
            self.check(|checker| checker.disturbed(&what));
        }
    }

    /// Something goes wrong every now and then.
    async fn go_wrong(&self, chance: &mut Chance) {
        sleep(chance.millis(2_000, 20_000)).await;
        match chance.below(5) {
            0 | 1 => self.kill(chance),
            2 => {
                self.faults.count("replica drained");
                self.note(|| "a replica is drained".to_owned());
                let new = self.start_replica(chance.seed());
                let old =
                    std::mem::replace(chance.pick_mut(&mut self.replicas.lock().unwrap()), new);
                old.stop.cancel();
                sleep(Duration::from_secs(5)).await;
                old.link.kill();
            }
            3 => {
                self.faults.count("clock stepped forward");
                self.check(Checker::stepped_forward);
                let span = chance.millis(100, 4_000);
                self.note(|| format!("the clock is stepped forward by {span:?}"));
                self.clock.set(self.clock.now().plus(span).as_micros());
            }
            _ => {
                self.faults.count("clock stepped back");
                self.close_session(chance).await;
                self.check(|checker| checker.stepped_back(self.clock.now()));
                let span = chance.millis(100, 4_000);
                self.note(|| format!("the clock is stepped back by {span:?}"));
                self.clock.set(self.clock.now().minus(span).as_micros());
            }
        }
    }

    /// What was acknowledged is there.
    async fn nothing_is_lost(&self) {
        let mut wanted = Wanted::default();
        for number in 0..EVENTS {
            let event = event(number);
            wanted.event(&event.key.team, event.names(), false);
        }
        for number in 0..SESSIONS {
            wanted.session(&session(number));
        }
        // The records themselves, which no replica remembers otherwise, as they are now.
        let snapshot = self.memory.connection(Work::Short).read(&wanted).await.unwrap();
        let mut lost = Vec::new();
        let checker = self.checker.lock().unwrap();
        for number in 0..EVENTS {
            let (what, event) = (format!("event {number}"), event(number));
            let until = checker.handled_until(&what, snapshot.now);
            let is_kept = event.names().any(|name| {
                let key = EventKey { team: event.key.team.clone(), event: name.to_owned() };
                snapshot.events.get(&key).is_some_and(|event| {
                    matches!(event.state, State::Handled(..)) && event.is_live(snapshot.now)
                })
            });
            if let Some(until) = until.filter(|_| !is_kept) {
                lost.push(format!("{what}: handled until {until:?}, but is lost"));
            }
        }
        for number in 0..SESSIONS {
            let what = format!("session {number}");
            let latest =
                snapshot.sessions.get(&session(number)).and_then(|found| found.latest.as_ref());
            let Some(GrantId::Lease(lease)) = checker.trusted(&what) else { continue };
            if !latest.is_some_and(|latest| latest.lease == lease && latest.is_live(snapshot.now)) {
                lost.push(format!("{what}: {lease:?} is held, but is lost: {latest:?}"));
            }
        }
        drop(checker);
        self.check(|checker| checker.violations.extend(lost));
    }

    /// Watches the sessions until all is well again, and for a while after that.
    async fn watch(&self) {
        let (begun, began_at) = (Instant::now(), self.clock.now());
        // A step back lets a replica count as there for longer.
        let was_stepped = self.checker.lock().unwrap().was_stepped_back(Duration::from_secs(20));
        let mut store = self.memory.connection(Work::Short);
        let mut wanted = Wanted::default();
        (0..SESSIONS).for_each(|number| wanted.queue(&session(number)));
        let mut watches: Vec<Watch> = (0..SESSIONS).map(|_| Watch::default()).collect();
        while begun.elapsed() < SETTLE + CALM {
            sleep(Duration::from_millis(100)).await;
            let snapshot = store.read(&wanted).await.unwrap();
            for (number, watch) in (0..SESSIONS).zip(&mut watches) {
                let what = format!("session {number}");
                let seen = snapshot.sessions.get(&session(number)).cloned().unwrap_or_default();
                let mut wrong = Vec::new();
                if begun.elapsed() > SETTLE {
                    wrong.extend(watch.strands(&seen, snapshot.now));
                    wrong.extend(watch.passes_over(&seen));
                }
                // By then no place on a replica that is gone is taken for one that is there.
                let from =
                    began_at.plus(if was_stepped { SETTLE } else { Duration::from_secs(10) });
                let checker = self.checker.lock().unwrap();
                let is_known = |lease| checker.knows(&what, GrantId::Lease(lease));
                wrong.extend(watch.is_nobodys(&seen, from, snapshot.now, is_known));
                drop(checker);
                watch.queue = seen.queue;
                for text in wrong {
                    let text = format!("{what}: {text}");
                    self.check(|checker| checker.violations.push(text));
                }
            }
        }
    }
}

/// What was seen of a session before.
#[derive(Default)]
struct Watch {
    queue: Vec<Waiter>,
    stranded: Option<Instant>,
    nobodys: Option<Instant>,
}

impl Watch {
    /// Whether it is free for too long although somebody waits.
    fn strands(&mut self, seen: &Session, now: Timestamp) -> Option<String> {
        let latest = seen.latest.as_ref()?;
        let fits = |waiter: &&Waiter| is_eligible(waiter, latest.epic.as_ref());
        let waiter = seen.queue.iter().find(fits).filter(|_| !latest.is_live(now));
        lasts(&mut self.stranded, waiter.is_some(), STRANDED)
            .then(|| format!("free, but somebody waits: {seen:?}"))
    }

    /// Whether it went to somebody before whom another waits.
    fn passes_over(&self, seen: &Session) -> Option<String> {
        let latest = seen.latest.as_ref()?;
        let place = self.queue.iter().position(|waiter| waiter.lease == latest.lease)?;
        let waits = |waiter: &&Waiter| seen.queue.iter().any(|now| now.lease == waiter.lease);
        let before = self.queue[..place].iter().filter(waits);
        let over = before.into_iter().find(|waiter| is_eligible(waiter, None))?;
        Some(format!("went to {:?} before {over:?}", latest.lease))
    }

    /// Whether it is held by nobody who knows of it.
    fn is_nobodys(
        &mut self,
        seen: &Session,
        from: Timestamp,
        now: Timestamp,
        is_known: impl Fn(LeaseId) -> bool,
    ) -> Option<String> {
        let latest = seen.latest.as_ref()?;
        let is_nobodys =
            latest.is_live(now) && latest.acquire_time >= from && !is_known(latest.lease);
        lasts(&mut self.nobodys, is_nobodys, 2 * STRANDED)
            .then(|| format!("held by nobody: {latest:?}"))
    }
}

/// Whether somebody who waits may have a session that is bound to `epic`.
fn is_eligible(waiter: &Waiter, epic: Option<&String>) -> bool {
    let fits = waiter.epic.is_none() || waiter.epic.as_ref() == epic;
    waiter.left_at.is_none() && waiter.is_there && fits
}

/// Whether something is so for longer than it may.
fn lasts(since: &mut Option<Instant>, is_so: bool, most: Duration) -> bool {
    if !is_so {
        *since = None;
        return false;
    }
    let lasts = since.get_or_insert_with(Instant::now).elapsed() > most;
    if lasts {
        *since = None;
    }
    lasts
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
    });
    for _ in 0..settings.replicas {
        let replica = world.start_replica(chance.seed());
        world.replicas.lock().unwrap().push(replica);
    }
    let mut bots = JoinSet::new();
    for number in 0..settings.replicas * 4 {
        bots.spawn(bots::run(Arc::clone(&world), chance.fork(), number));
    }
    let until = world.begun + settings.span;
    while Instant::now() < until && world.checker.lock().unwrap().violations.is_empty() {
        world.faults.are_on.store(true, Ordering::Relaxed);
        let over = Instant::now() + STORM;
        while Instant::now() < over {
            world.go_wrong(&mut chance).await;
            world.nothing_is_lost().await;
        }
        world.kill(&mut chance);
        world.faults.are_on.store(false, Ordering::Relaxed);
        world.watch().await;
        world.nothing_is_lost().await;
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
