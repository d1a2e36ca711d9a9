//! A store whose calls fail, are late, or never return.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use oncegate::{
    domain::{LeaseId, SessionKey, SessionRow, Timestamp},
    rules::{Ids, Plan, SessionWrite, Snapshot, Wanted},
    store::{
        AdminStore, Applied, Connection, Counts, Decided, EventFilter, Events, Hint, Invalidations,
        Page, Records, Reset, Store, StoreError, Sweep, Swept, Upkeep, Work,
        memory::{self, Memory},
    },
};
use tokio::{sync::mpsc, time::sleep};

use super::{Bug, chance::Chance};

/// What goes wrong, for all replicas.
pub struct Faults {
    chance: Mutex<Chance>,
    /// Whether anything goes wrong at the moment.
    pub are_on: AtomicBool,
    pub counts: Mutex<BTreeMap<&'static str, u64>>,
    pub bug: Option<Bug>,
}

/// What goes wrong with one call.
enum Fault {
    None,
    FailsBefore,
    FailsAfter,
}

/// How long until a statement whose answer was lost is run again, in milliseconds.
const RECONNECTION: (u64, u64) = (0, 3_000);

impl Faults {
    pub fn new(chance: Chance, bug: Option<Bug>) -> Self {
        let (chance, counts) = (Mutex::new(chance), Mutex::default());
        Self { chance, are_on: AtomicBool::new(false), counts, bug }
    }

    pub fn count(&self, what: &'static str) {
        *self.counts.lock().unwrap().entry(what).or_default() += 1;
    }

    /// The delays before and after a call is committed, and what goes wrong with it.
    fn draw(&self) -> (Duration, Fault, Duration) {
        let mut chance = self.chance.lock().unwrap();
        let are_on = self.are_on.load(Ordering::Relaxed);
        let delay = |chance: &mut Chance| {
            if are_on && chance.one_in(40) {
                (chance.millis(50, 3_000), true)
            } else {
                (Duration::from_micros(chance.below(1_500)), false)
            }
        };
        let ((before, late), (after, later)) = (delay(&mut chance), delay(&mut chance));
        let fault = match chance.below(60) {
            0 if are_on => Fault::FailsBefore,
            1 if are_on => Fault::FailsAfter,
            _ => Fault::None,
        };
        drop(chance);
        if late || later {
            self.count("late call");
        }
        (before, fault, after)
    }

    /// Whether the answer to a write is lost, which is then run again; and when.
    fn loses_answer(&self) -> Option<Duration> {
        let mut chance = self.chance.lock().unwrap();
        let is_lost = self.are_on.load(Ordering::Relaxed) && chance.one_in(30);
        is_lost.then(|| chance.millis(RECONNECTION.0, RECONNECTION.1))
    }

    fn loses_hint(&self) -> bool {
        let is_lost = self.are_on.load(Ordering::Relaxed) && self.chance.lock().unwrap().one_in(4);
        if is_lost {
            self.count("lost notification");
        }
        is_lost
    }
}

/// The store as one replica reaches it.
pub struct SimStore {
    inner: Memory,
    link: Arc<Link>,
}

/// How a replica reaches the store.
pub struct Link {
    faults: Arc<Faults>,
    /// Whether the replica is the one that `Bug::WrongClock` is planted in.
    is_clock_wrong: bool,
    /// No call of a killed replica returns.
    is_dead: AtomicBool,
}

impl Link {
    pub fn new(faults: Arc<Faults>, is_first: bool) -> Arc<Self> {
        let is_clock_wrong = is_first && faults.bug == Some(Bug::WrongClock);
        Arc::new(Self { faults, is_clock_wrong, is_dead: AtomicBool::new(false) })
    }

    /// The bug that is planted in this replica.
    fn bug(&self) -> Option<Bug> {
        self.faults.bug.filter(|bug| *bug != Bug::WrongClock || self.is_clock_wrong)
    }

    pub fn kill(&self) {
        self.is_dead.store(true, Ordering::Relaxed);
    }

    async fn unless_dead(&self) {
        if self.is_dead.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }

    /// Makes a call, which may fail. Nothing of it happens before it is polled: a store in memory
    /// that changed its records when it was called would do so before a failure.
    async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let (before, fault, after) = self.faults.draw();
        sleep(before).await;
        self.unless_dead().await;
        if let Fault::FailsBefore = fault {
            self.faults.count("failure before the commit");
            return Err(StoreError::unavailable("simulated"));
        }
        let answer = call.await;
        sleep(after).await;
        self.unless_dead().await;
        if let Fault::FailsAfter = fault {
            self.faults.count("failure after the commit");
            return Err(StoreError::unknown("simulated"));
        }
        answer
    }
}

impl SimStore {
    pub fn new(inner: Memory, link: Arc<Link>) -> Self {
        Self { inner, link }
    }
}

impl Store for SimStore {
    type Connection = SimConnection;

    fn connection(&self, work: Work) -> SimConnection {
        SimConnection { inner: self.inner.connection(work), link: Arc::clone(&self.link) }
    }

    fn invalidations(&self) -> Arc<dyn Invalidations> {
        let inner = self.inner.invalidations();
        match self.link.bug() {
            Some(Bug::StaleMemory) => Arc::new(Stale { inner, first: AtomicU64::new(u64::MAX) }),
            _ => inner,
        }
    }

    fn hints(&self) -> mpsc::Receiver<Hint> {
        let (mut from, link) = (self.inner.hints(), Arc::clone(&self.link));
        let (sender, receiver) = mpsc::channel(1_024);
        tokio::spawn(async move {
            while let Some(hint) = from.recv().await {
                link.unless_dead().await;
                if !link.faults.loses_hint() && sender.send(hint).await.is_err() {
                    return;
                }
            }
        });
        receiver
    }

    fn writers(&self, wanted: usize) -> usize {
        wanted
    }

    fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        self.inner.closed()
    }
}

/// Never reports that marks were removed.
struct Stale {
    inner: Arc<dyn Invalidations>,
    first: AtomicU64,
}

impl Invalidations for Stale {
    fn epoch(&self) -> u64 {
        let _ = self.first.compare_exchange(
            u64::MAX,
            self.inner.epoch(),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        self.first.load(Ordering::Relaxed)
    }

    fn now(&self) -> Option<Timestamp> {
        self.inner.now()
    }
}

pub struct SimConnection {
    inner: memory::Handle,
    link: Arc<Link>,
}

impl Connection for SimConnection {}

impl Reset for SimConnection {
    fn reset(&mut self) {
        self.inner.reset();
    }
}

impl Decided for SimConnection {}

impl Records for SimConnection {
    async fn read(&mut self, wanted: &Wanted) -> Result<Snapshot, StoreError> {
        let Self { inner, link } = self;
        let read = link.call(async { inner.read(wanted).await }).await;
        let mut snapshot = read.map_err(StoreError::of_read)?;
        if let Some(bug) = self.link.bug() {
            bug.of_snapshot(wanted, &mut snapshot);
        }
        Ok(snapshot)
    }

    async fn apply(&mut self, mut plans: Vec<Plan>) -> Result<Vec<Applied>, StoreError> {
        let faults = &self.link.faults;
        if let Some(bug) = self.link.bug() {
            for plan in &mut plans {
                bug.of_plan(plan);
            }
            let is_lost =
                bug == Bug::AnswerBeforeCommit && faults.chance.lock().unwrap().one_in(50);
            if is_lost {
                return Ok(plans.iter().map(|_| Applied::Written(Vec::new())).collect());
            }
        }
        let lost = plans.iter().all(grants).then(|| self.link.faults.loses_answer()).flatten();
        let Some(pause) = lost else { return self.write(plans).await };
        self.write(plans.clone()).await?;
        self.link.faults.count("lost answer");
        sleep(pause).await;
        let again = self.write(plans.clone()).await.map_err(StoreError::after_change)?;
        self.find_written(&plans, again).await
    }

    fn known_time(&self) -> Option<Timestamp> {
        self.inner.known_time()
    }

    fn ids(&mut self) -> &mut Ids {
        self.inner.ids()
    }
}

/// Whether a plan grants a lease to its caller, or adds a place in a queue. What ends or renews a lease
/// is not written again here: if another has the session by then, the caller is answered that the
/// lease is gone, and the checker could not know better.
fn grants(plan: &Plan) -> bool {
    let sessions = &plan.writes.sessions;
    let is_grant = |write: &SessionWrite| {
        write.remove.is_empty() && (plan.token.is_some() || !write.add.is_empty())
    };
    !plan.is_once && !sessions.is_empty() && sessions.iter().all(is_grant)
}

impl SimConnection {
    async fn write(&mut self, plans: Vec<Plan>) -> Result<Vec<Applied>, StoreError> {
        let Self { inner, link } = self;
        link.call(async { inner.apply(plans).await }).await
    }

    /// Finds those plans written by the first run of a write that conflict in the second, as the
    /// store for PostgreSQL does.
    async fn find_written(
        &mut self,
        plans: &[Plan],
        mut applied: Vec<Applied>,
    ) -> Result<Vec<Applied>, StoreError> {
        for (plan, applied) in plans.iter().zip(&mut applied) {
            if !matches!(applied, Applied::Conflict) {
                continue;
            }
            let mut wanted = Wanted::default();
            plan.wants(&mut wanted);
            *applied = match self.read(&wanted).await {
                Ok(found) => plan.tickets_if_written_in(&found).map_or_else(
                    || {
                        self.link.faults.count("conflict after a lost answer");
                        Applied::ConflictAfterLoss
                    },
                    Applied::Written,
                ),
                Err(error) => Applied::Failed(error.after_change()),
            };
        }
        Ok(applied)
    }
}

impl Upkeep for SimConnection {
    async fn sweep(&mut self, sweep: &Sweep) -> Result<Swept, StoreError> {
        let Self { inner, link } = self;
        link.call(async { inner.sweep(sweep).await }).await
    }

    async fn heartbeat(&mut self) -> Result<Vec<(SessionKey, LeaseId)>, StoreError> {
        let Self { inner, link } = self;
        link.call(async { inner.heartbeat().await }).await
    }

    async fn count_leases(&mut self) -> Result<u64, StoreError> {
        let Self { inner, link } = self;
        link.call(async { inner.count_leases().await }).await
    }

    async fn ping(&mut self) -> Result<(), StoreError> {
        let Self { inner, link } = self;
        link.call(async { inner.ping().await }).await
    }
}

impl AdminStore for SimConnection {
    async fn list_sessions(
        &mut self,
        page: &Page,
        held: Option<bool>,
    ) -> Result<Vec<(SessionKey, SessionRow)>, StoreError> {
        let Self { inner, link } = self;
        link.call(async { inner.list_sessions(page, held).await }).await
    }

    async fn list_events(
        &mut self,
        page: &Page,
        filter: &EventFilter,
    ) -> Result<Events, StoreError> {
        let Self { inner, link } = self;
        link.call(async { inner.list_events(page, filter).await }).await
    }

    async fn count(&mut self, team: Option<&str>) -> Result<Counts, StoreError> {
        let Self { inner, link } = self;
        link.call(async { inner.count(team).await }).await
    }
}
