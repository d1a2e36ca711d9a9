//! What must hold in the store: during faults, and when the replicas have recovered from them.

use std::time::Duration;

use oncegate::{
    domain::{EventKey, LeaseId, Timestamp},
    rules::{Session, State, Waiter, Wanted},
    store::{Records as _, Store as _, Work},
};
use tokio::time::{Instant, sleep};

use super::{
    super::{
        bots::{EVENTS, SESSIONS, event, event_name, session, session_name},
        checker::GrantId,
    },
    CALM, RECOVERY, World,
};

/// How long a session may be free at most while a caller waits for it.
const MAX_IDLE: Duration = Duration::from_secs(1);

impl World {
    /// What was acknowledged is in the store.
    pub(super) async fn check_durability(&self) {
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
            let (subject, event) = (event_name(number), event(number));
            let until = checker.handled_until(&subject, snapshot.now);
            let is_kept = event.names().any(|name| {
                let key = EventKey { team: event.key.team.clone(), event: name.to_owned() };
                snapshot.events.get(&key).is_some_and(|event| {
                    matches!(event.state, State::Handled(..)) && event.is_live(snapshot.now)
                })
            });
            if let Some(until) = until.filter(|_| !is_kept) {
                lost.push(format!("{subject}: handled until {until:?}, but is lost"));
            }
        }
        for number in 0..SESSIONS {
            let subject = session_name(number);
            let latest =
                snapshot.sessions.get(&session(number)).and_then(|found| found.latest.as_ref());
            let Some(GrantId::Lease(lease)) = checker.relied_on(&subject) else { continue };
            if !latest.is_some_and(|latest| latest.lease == lease && latest.is_live(snapshot.now)) {
                lost.push(format!("{subject}: {lease:?} is held, but is lost: {latest:?}"));
            }
        }
        drop(checker);
        self.check(|checker| checker.violations.extend(lost));
    }

    /// Watches the sessions during the recovery from faults, and in calm times after it.
    pub(super) async fn check_recovery(&self) {
        let (begun, began_at) = (Instant::now(), self.clock.now());
        // A step back lets a replica count as there for longer.
        let was_stepped = self.checker.lock().unwrap().was_stepped_back(Duration::from_secs(20));
        let mut store = self.memory.connection(Work::Short);
        let mut wanted = Wanted::default();
        (0..SESSIONS).for_each(|number| wanted.queue(&session(number)));
        let mut watches: Vec<Watch> = (0..SESSIONS).map(|_| Watch::default()).collect();
        while begun.elapsed() < RECOVERY + CALM {
            sleep(Duration::from_millis(100)).await;
            let snapshot = store.read(&wanted).await.unwrap();
            for (number, watch) in (0..SESSIONS).zip(&mut watches) {
                let subject = session_name(number);
                let seen = snapshot.sessions.get(&session(number)).cloned().unwrap_or_default();
                let mut wrong = Vec::new();
                if begun.elapsed() > RECOVERY {
                    wrong.extend(watch.is_stranded(&seen, snapshot.now));
                    wrong.extend(watch.is_passed_over(&seen));
                }
                // By then no place on a replica that is gone is taken for one that is there.
                let from =
                    began_at.plus(if was_stepped { RECOVERY } else { Duration::from_secs(10) });
                let checker = self.checker.lock().unwrap();
                let is_known = |lease| checker.knows(&subject, GrantId::Lease(lease));
                wrong.extend(watch.is_orphaned(&seen, from, snapshot.now, is_known));
                drop(checker);
                watch.queue = seen.queue;
                for text in wrong {
                    let text = format!("{subject}: {text}");
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
    stranded_since: Option<Instant>,
    orphaned_since: Option<Instant>,
}

impl Watch {
    /// Whether it is free for too long although somebody waits.
    fn is_stranded(&mut self, seen: &Session, now: Timestamp) -> Option<String> {
        let latest = seen.latest.as_ref()?;
        let fits = |waiter: &&Waiter| is_eligible(waiter, latest.epic.as_ref());
        let waiter = seen.queue.iter().find(fits).filter(|_| !latest.is_live(now));
        lasts(&mut self.stranded_since, waiter.is_some(), MAX_IDLE)
            .then(|| format!("free, but somebody waits: {seen:?}"))
    }

    /// Whether it went to somebody before whom another waits.
    fn is_passed_over(&self, seen: &Session) -> Option<String> {
        let latest = seen.latest.as_ref()?;
        let place = self.queue.iter().position(|waiter| waiter.lease == latest.lease)?;
        let waits = |waiter: &&Waiter| seen.queue.iter().any(|now| now.lease == waiter.lease);
        let before = self.queue[..place].iter().filter(waits);
        let over = before.into_iter().find(|waiter| is_eligible(waiter, None))?;
        Some(format!("went to {:?} before {over:?}", latest.lease))
    }

    /// Whether it is held by nobody who knows of it.
    fn is_orphaned(
        &mut self,
        seen: &Session,
        from: Timestamp,
        now: Timestamp,
        is_known: impl Fn(LeaseId) -> bool,
    ) -> Option<String> {
        let latest = seen.latest.as_ref()?;
        let is_orphaned =
            latest.is_live(now) && latest.acquire_time >= from && !is_known(latest.lease);
        lasts(&mut self.orphaned_since, is_orphaned, 2 * MAX_IDLE)
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
