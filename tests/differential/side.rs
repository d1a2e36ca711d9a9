//! One of the stores, and what it has granted.

use std::{collections::BTreeMap, fmt::Debug};

use oncegate::{
    domain::{
        Acquire, Begin, Begun, Decision, Enqueue, Enqueued, EventKey, Finish, Kept, LeaseId,
        Prolong, Release, Renew, Renewed, SessionKey, SessionRow, TurnId,
    },
    store::{Connection, EventFilter, Look, Page, StoreError, Sweep, Verdict},
};
use sqlx::PgConnection;

use super::{
    names::{Names, Tickets, handed, without_queue},
    steps::{Grant, Of, Op, Step, lease, request},
};

/// How often what another decides just now is asked again: nobody else is there, but a statement
/// may find in a first run what it decides by in the next.
const RUNS: usize = 4;

/// Whether somebody waits for a session, and not only may. When the last that waits goes,
/// PostgreSQL leaves the flag set until the next hand-over; and it looks for those who wait for
/// other work than the session is bound to only as they look themselves. The rules know both as a
/// session is bound or closed; they free one that somebody waits for, rather than delete it.
const AWAITED: &str = "
UPDATE oncegate_sessions s SET waiting = EXISTS (
    SELECT FROM oncegate_waiters w
    WHERE w.team_id = s.team_id AND w.session_id = s.session_id AND w.left_at IS NULL)
WHERE team_id = $1 AND session_id = $2
";

const ALL: EventFilter = EventFilter { standing: None, newer_than: None, older_than: None };

/// A store under test.
pub struct Side<C> {
    store: C,
    /// A further connection to PostgreSQL.
    database: Option<PgConnection>,
    names: Names,
    tickets: BTreeMap<SessionKey, Tickets>,
    /// What those who took places would bind their session to, by the lease that they wait for.
    epics: BTreeMap<LeaseId, Option<String>>,
    /// Leases that were granted, also as places in queues that are to end in one.
    pub leases: BTreeMap<Grant, (SessionKey, LeaseId)>,
    /// Turns that were granted.
    pub turns: BTreeMap<Grant, TurnId>,
}

impl<C: Connection> Side<C> {
    pub fn new(store: C, database: Option<PgConnection>) -> Self {
        Self {
            store,
            database,
            names: Names::default(),
            tickets: BTreeMap::new(),
            epics: BTreeMap::new(),
            leases: BTreeMap::new(),
            turns: BTreeMap::new(),
        }
    }

    /// Takes a step, and tells what came of it.
    pub async fn take(&mut self, step: &Step) -> String {
        let done = match &step.op {
            // The replica is there: its callers are not passed over.
            Op::Advance(_) => self.beat().await,
            Op::Mark(marks) => self.mark(marks).await,
            Op::Change(acquires, releases) => self.change(step.number, acquires, releases).await,
            Op::Enqueue(asked) => self.enqueue(step.number, asked).await,
            Op::Crowd(first, count) => self.crowd(step.number, first, *count).await,
            Op::HandOn(keys) => self.hand_on(keys).await,
            Op::Leave(places, keep) => self.leave(places, *keep).await,
            Op::Renew(asked, max_hold) => self.renew(asked, *max_hold).await,
            Op::Turns(begins, finishes) => self.turns(step.number, begins, finishes).await,
            Op::Prolong(asked, max_hold) => self.prolong(asked, *max_hold).await,
            Op::Bind(key, epic) => self.bind(key, *epic).await,
            Op::Force(key) => self.store.force_release(key).await.map(told),
            Op::Close(key) => self.close(key).await,
            Op::Forget(key) => self.store.forget_event(key).await.map(told),
            Op::Sweep(sweep) => self.sweep(sweep).await,
            Op::ListSessions(page, held) => self.list_sessions(page, *held).await,
            Op::ListEvents(page, filter) => self.store.list_events(page, filter).await.map(told),
            Op::Count(team) => self.store.count(team.as_deref()).await.map(told),
        };
        let text = done.unwrap_or_else(|error| format!("error: {error}"));
        self.names.rename(&text)
    }

    /// All rows, as far as they show.
    pub async fn rows(&mut self, sessions: &[SessionKey], events: &[EventKey]) -> String {
        let text = self.try_rows(sessions, events).await;
        self.names.rename(&text.unwrap_or_else(|error| format!("error: {error}")))
    }

    async fn try_rows(
        &mut self,
        sessions: &[SessionKey],
        events: &[EventKey],
    ) -> Result<String, StoreError> {
        let page = Page { team: None, after: Default::default(), limit: 1_000 };
        let mut text = self.list_sessions(&page, None).await?;
        text += &told(self.store.list_events(&page, &ALL).await?);
        text += &told(self.store.count(None).await?);
        text += &told(self.store.count_leases().await?);
        let keys: Vec<&SessionKey> = sessions.iter().collect();
        let looked = self.store.look_sessions(&keys).await?;
        text += &told(looked.into_iter().map(|row| row.map(|row| self.with_queue(row))).collect::<Vec<_>>());
        let looks: Vec<Look> =
            events.iter().map(|key| Look { key: key.clone(), with_result: true }).collect();
        text += &told(self.store.look_events(&looks.iter().collect::<Vec<_>>()).await?);
        Ok(text)
    }

    /// A row that was read with its queue, without those who wait for other work than the session
    /// is bound to: they are passed over, and leave as soon as they look. Until then the rules do
    /// not show them once they were passed over, and PostgreSQL may. The flag, too, says only
    /// that somebody may wait: PostgreSQL leaves it set when the last of them goes.
    fn with_queue(&self, mut row: SessionRow) -> SessionRow {
        let bound = row.lease.epic.as_ref();
        row.queue.retain(|lease| {
            let epic = self.epics.get(lease).and_then(Option::as_ref);
            epic.zip(bound).is_none_or(|(own, of)| own == of)
        });
        row.waiting = !row.queue.is_empty();
        row
    }

    async fn beat(&mut self) -> Result<String, StoreError> {
        let mut places = self.store.beat().await?;
        places.sort();
        Ok(told(places))
    }

    async fn mark(&mut self, marks: &[oncegate::domain::Mark]) -> Result<String, StoreError> {
        marks.iter().for_each(|mark| self.names.is_chosen(&mark.request.as_uuid()));
        let marks: Vec<_> = marks.iter().collect();
        let store = &mut self.store;
        Ok(told(decided(&marks, async |open| store.mark(open).await).await?))
    }

    async fn change(
        &mut self,
        number: usize,
        acquires: &[Acquire],
        releases: &[Of<Release>],
    ) -> Result<String, StoreError> {
        acquires.iter().for_each(|acquire| self.names.is_chosen(&acquire.request.as_uuid()));
        let mut keys: Vec<&SessionKey> = acquires.iter().map(|acquire| &acquire.key).collect();
        keys.extend(releases.iter().map(|Of(_, release)| &release.key));
        keys.sort();
        let mut text = self.hand_free_on(&keys).await?;
        let own = |Of(grant, release): &Of<Release>| {
            Release { lease: self.lease(*grant), ..release.clone() }
        };
        let releases: Vec<Release> = releases.iter().map(own).collect();
        let mut taken = vec![Verdict::Again; acquires.len()];
        let mut ended = vec![Verdict::Again; releases.len()];
        let mut moved = Vec::new();
        for _ in 0..RUNS {
            let (own, open_acquires) = open(&taken, acquires);
            let (others, open_releases) = open(&ended, &releases);
            if own.is_empty() && others.is_empty() {
                break;
            }
            let changed = self.store.change(&open_acquires, &open_releases).await?;
            own.into_iter().zip(changed.taken).for_each(|(place, one)| taken[place] = one);
            others.into_iter().zip(changed.ended).for_each(|(place, one)| ended[place] = one);
            moved.extend(changed.handed);
        }
        for (item, (verdict, acquire)) in taken.iter_mut().zip(acquires).enumerate() {
            if let Verdict::Decided(acquired) = verdict {
                if let Decision::Granted(lease) = acquired.row.decision(acquire) {
                    self.leases.insert((number, item), (acquire.key.clone(), lease.id));
                }
                // PostgreSQL reads the queue of a session only where it is another's.
                acquired.row = match acquired.row.decision(acquire) {
                    Decision::Held(_) => self.with_queue(acquired.row.clone()),
                    _ => without_queue(acquired.row.clone()),
                };
            }
        }
        text += &told((taken, ended, handed(moved)));
        Ok(text)
    }

    /// Hands on those of `keys` that are free. With the rules an acquire and a begin do so
    /// themselves, and a release of a lease that has ended leaves it to the next hand-over; with
    /// PostgreSQL's statements it is the other way round.
    async fn hand_free_on(&mut self, keys: &[&SessionKey]) -> Result<String, StoreError> {
        let rows = self.store.look_sessions(keys).await?;
        let free = keys.iter().zip(rows).filter(|(_, row)| row.as_ref().is_some_and(|row| !row.live));
        let free: Vec<SessionKey> = free.map(|(key, _)| (*key).clone()).collect();
        if free.is_empty() { Ok(String::new()) } else { self.hand_on(&free).await }
    }

    async fn hand_on(&mut self, keys: &[SessionKey]) -> Result<String, StoreError> {
        let keys: Vec<&SessionKey> = keys.iter().collect();
        let store = &mut self.store;
        let rows = decided(&keys, async |open| store.hand_on(open).await).await?;
        let rows: Vec<_> =
            rows.into_iter().map(|verdict| verdict.map(|row| row.map(|row| self.with_queue(row)))).collect();
        Ok(format!("handed on: {}", told(rows)))
    }

    async fn enqueue(&mut self, number: usize, asked: &[Enqueue]) -> Result<String, StoreError> {
        for (item, Enqueue { acquire, lease, .. }) in asked.iter().enumerate() {
            self.epics.insert(*lease, acquire.epic.clone());
            self.names.is_chosen(&acquire.request.as_uuid());
            self.names.is_chosen(&lease.as_uuid());
            self.leases.insert((number, item), (acquire.key.clone(), *lease));
        }
        // A session that is free, and that nobody waits for, PostgreSQL may still take for one
        // that somebody waits for.
        let keys: Vec<&SessionKey> = asked.iter().map(|enqueue| &enqueue.acquire.key).collect();
        let rows = self.store.look_sessions(&keys).await?;
        let is_idle = |row: &SessionRow| !row.live && !self.with_queue(row.clone()).waiting;
        let idle = keys.iter().zip(rows).filter(|(_, row)| row.as_ref().is_some_and(is_idle));
        let idle: Vec<SessionKey> = idle.map(|(key, _)| (*key).clone()).collect();
        let mut text = if idle.is_empty() { String::new() } else { self.hand_on(&idle).await? };
        let asked: Vec<&Enqueue> = asked.iter().collect();
        let store = &mut self.store;
        let enqueued = decided(&asked, async |open| store.enqueue(open).await).await?;
        for (Enqueue { acquire, .. }, verdict) in asked.into_iter().zip(enqueued) {
            let tickets = self.tickets.entry(acquire.key.clone()).or_default();
            text += &match verdict {
                Verdict::Decided(Enqueued::Waits(ticket)) => tickets.waits(ticket),
                Verdict::Decided(Enqueued::TookOver(ticket, was)) => tickets.took_over(ticket, was),
                other => told(other),
            };
        }
        Ok(text)
    }

    async fn crowd(
        &mut self,
        number: usize,
        first: &Enqueue,
        count: usize,
    ) -> Result<String, StoreError> {
        let mut text = String::new();
        for item in 0..count {
            let mut enqueue = Enqueue { lease: lease((number, item)), ..first.clone() };
            enqueue.acquire.request = request((number, item));
            text += &self.enqueue(number, &[enqueue]).await?;
        }
        Ok(text)
    }

    async fn leave(&mut self, places: &[Of<SessionKey>], keep: bool) -> Result<String, StoreError> {
        let places: Vec<(&SessionKey, LeaseId)> =
            places.iter().map(|Of(grant, key)| (key, self.lease(*grant))).collect();
        let left = if keep {
            self.store.keep_places(&places).await?
        } else {
            self.store.leave(&places).await?
        };
        Ok(told(left))
    }

    async fn renew(
        &mut self,
        asked: &[Of<Renew>],
        max_hold: std::time::Duration,
    ) -> Result<String, StoreError> {
        let own =
            |Of(grant, renew): &Of<Renew>| Renew { lease: self.lease(*grant), ..renew.clone() };
        let asked: Vec<Renew> = asked.iter().map(own).collect();
        let asked: Vec<&Renew> = asked.iter().collect();
        let store = &mut self.store;
        let renewed = decided(&asked, async |open| store.renew(open, max_hold).await).await?;
        let plain = |renewed| match renewed {
            Renewed::Found(row) => Renewed::Found(without_queue(row)),
            other => other,
        };
        Ok(told(renewed.into_iter().map(|verdict| verdict.map(plain)).collect::<Vec<_>>()))
    }

    async fn turns(
        &mut self,
        number: usize,
        begins: &[Begin],
        finishes: &[Of<Finish>],
    ) -> Result<String, StoreError> {
        for begin in begins {
            self.names.is_chosen(&begin.request.as_uuid());
            if let Some(acquire) = &begin.session {
                self.names.is_chosen(&acquire.request.as_uuid());
            }
        }
        let acquires = begins.iter().filter_map(|begin| begin.session.as_ref());
        let keys: Vec<&SessionKey> = acquires.map(|acquire| &acquire.key).collect();
        let mut text = self.hand_free_on(&keys).await?;
        let own = |Of(grant, finish): &Of<Finish>| {
            let turn = self.turn(*grant, &finish.turn)?;
            Some(Finish { turn, ..finish.clone() })
        };
        let finishes: Vec<Finish> = finishes.iter().filter_map(own).collect();
        let mut begun = vec![Verdict::Again; begins.len()];
        let mut kept = vec![Verdict::Again; finishes.len()];
        let (mut moved, mut idle, mut counts) = (Vec::new(), Vec::new(), (0, 0));
        for _ in 0..RUNS {
            let (own, open_begins) = open(&begun, begins);
            let (others, open_finishes) = open(&kept, &finishes);
            if own.is_empty() && others.is_empty() {
                break;
            }
            let turned = self.store.change_turns(&open_begins, &open_finishes).await?;
            own.into_iter().zip(turned.begun).for_each(|(place, one)| begun[place] = one);
            others.into_iter().zip(turned.kept).for_each(|(place, one)| kept[place] = one);
            moved.extend(turned.handed);
            idle.extend(turned.idle);
            counts = (counts.0 + turned.lapsed, counts.1 + turned.gave_up);
        }
        for (item, (verdict, begin)) in begun.iter_mut().zip(begins).enumerate() {
            match verdict {
                Verdict::Decided(Begun::Granted { claim, lease, .. }) => {
                    let held = begin.session.as_ref().zip(lease.as_ref());
                    let lease = held.map(|(acquire, lease)| (acquire.key.clone(), lease.id));
                    self.leases.extend(lease.clone().map(|lease| ((number, item), lease)));
                    let turn = TurnId {
                        event: begin.event.key.clone(),
                        request: begin.request,
                        attempt: claim.attempt,
                        lease,
                        max_attempts: begin.max_attempts,
                    };
                    self.turns.insert((number, item), turn);
                }
                Verdict::Decided(Begun::Busy(row)) => *row = self.with_queue(row.clone()),
                _ => {}
            }
        }
        for verdict in &mut kept {
            // Nobody is answered the digest of a turn that ends, and PostgreSQL's shortest
            // statement does not read it.
            if let Verdict::Decided(Kept::Done(Some(row))) = verdict {
                *row = row.clone().with_digest(None);
            }
        }
        text += &told((begun, kept, handed(moved), counts));
        text += &self.give_idle_back(idle, &finishes).await?;
        Ok(text)
    }

    /// Gives leases back that are of no use, as the service does.
    async fn give_idle_back(
        &mut self,
        mut idle: Vec<(SessionKey, LeaseId)>,
        finishes: &[Finish],
    ) -> Result<String, StoreError> {
        // PostgreSQL names the lease of a turn that had ended before as well, in case that its
        // answer was lost half-way. It is given back already, which has no effect.
        let is_ended = |lease: &_| finishes.iter().any(|end| end.turn.lease.as_ref() == Some(lease));
        idle.retain(|lease| !is_ended(lease));
        idle.sort_by(|(one, _), (other, _)| one.cmp(other));
        idle.dedup();
        let mut text = String::new();
        for (key, lease) in idle {
            let release = Release { key, lease, unless_resumed: None };
            let changed = self.store.change(&[], &[&release]).await?;
            text += &told((release, changed.ended, handed(changed.handed)));
        }
        Ok(text)
    }

    async fn prolong(
        &mut self,
        asked: &[Of<Prolong>],
        max_hold: std::time::Duration,
    ) -> Result<String, StoreError> {
        let own = |Of(grant, prolong): &Of<Prolong>| {
            let turn = self.turn(*grant, &prolong.turn)?;
            Some(Prolong { turn, ..prolong.clone() })
        };
        let asked: Vec<Prolong> = asked.iter().filter_map(own).collect();
        let asked: Vec<&Prolong> = asked.iter().collect();
        let store = &mut self.store;
        let kept: Vec<Verdict<Kept<_>>> =
            decided(&asked, async |open| store.prolong_turns(open, max_hold).await).await?;
        Ok(told(kept))
    }

    async fn bind(
        &mut self,
        key: &SessionKey,
        epic: Option<&str>,
    ) -> Result<String, StoreError> {
        let bound = self.store.bind_epic(key, epic).await?;
        self.note_awaited(key).await;
        Ok(told(bound))
    }

    async fn close(&mut self, key: &SessionKey) -> Result<String, StoreError> {
        self.note_awaited(key).await;
        Ok(told(self.store.close_session(key).await?))
    }

    /// See [`AWAITED`].
    async fn note_awaited(&mut self, SessionKey { team, session }: &SessionKey) {
        if let Some(database) = &mut self.database {
            let note = sqlx::query(AWAITED).bind(team).bind(session);
            note.execute(database).await.expect("the flag is put right");
        }
    }

    async fn sweep(&mut self, sweep: &Sweep) -> Result<String, StoreError> {
        Ok(told(self.store.sweep(sweep).await?.rows))
    }

    async fn list_sessions(
        &mut self,
        page: &Page,
        held: Option<bool>,
    ) -> Result<String, StoreError> {
        let rows = self.store.list_sessions(page, held).await?;
        Ok(told(rows.into_iter().map(|(key, row)| (key, self.with_queue(row))).collect::<Vec<_>>()))
    }

    /// This store's lease of a grant; one that there never was where it granted none.
    fn lease(&self, grant: Grant) -> LeaseId {
        self.leases.get(&grant).map_or_else(|| lease(grant), |(_, lease)| *lease)
    }

    /// This store's turn of a grant, as far as `like` does not differ from it on purpose.
    fn turn(&self, grant: Grant, like: &TurnId) -> Option<TurnId> {
        let own = self.turns.get(&grant)?;
        Some(TurnId { lease: own.lease.clone(), ..like.clone() })
    }
}

fn told(answer: impl Debug) -> String {
    format!("{answer:?}\n")
}

/// Those that are not decided, and their places.
fn open<'a, T, A>(verdicts: &[Verdict<T>], asked: &'a [A]) -> (Vec<usize>, Vec<&'a A>) {
    let open = verdicts.iter().zip(asked).enumerate();
    let open = open.filter(|(_, (verdict, _))| matches!(verdict, Verdict::Again));
    open.map(|(place, (_, asked))| (place, asked)).unzip()
}

/// Asks until all is decided.
async fn decided<A: Copy, T: Clone>(
    asked: &[A],
    mut call: impl AsyncFnMut(&[A]) -> Result<Vec<Verdict<T>>, StoreError>,
) -> Result<Vec<Verdict<T>>, StoreError> {
    let mut verdicts = vec![Verdict::Again; asked.len()];
    for _ in 0..RUNS {
        let (places, open) = open(&verdicts, asked);
        if places.is_empty() {
            break;
        }
        let open: Vec<A> = open.into_iter().copied().collect();
        let found = call(&open).await?;
        places.into_iter().zip(found).for_each(|(place, verdict)| verdicts[place] = verdict);
    }
    Ok(verdicts)
}
