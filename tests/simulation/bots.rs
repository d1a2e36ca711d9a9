//! Callers: what bots in several replicas and an operator do.

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use oncegate::{
    admin::Author,
    domain::{
        Acquire, Begin, Delivered, Detail, Ending, EventKey, Finish, Id, Labels, Mark, MarkOutcome,
        Prolong, Renew, RequestId, SessionKey, Ttl, TurnResult, limits,
    },
    session::{AcquireOutcome, Caller, SessionError, StreamEvent},
    store::{Age, Scope},
    turn::{Closed, RunEnd, Turn, TurnOutcome},
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use super::{
    chance::Chance,
    checker::{GrantId, Told},
    world::World,
};

pub const EVENTS: u64 = 12;
pub const SESSIONS: u64 = 3;
/// How long a caller waits for an answer.
const PATIENCE: Duration = Duration::from_secs(8);

fn id(text: String) -> Id {
    Id::parse("id", text).unwrap()
}

fn ttl(span: Duration) -> Ttl {
    Ttl::parse(Some(span), span, &(Duration::from_millis(1)..=limits::CLAIM_MEMORY)).unwrap()
}

/// An event, which every third time has another name beside its own.
pub fn event(number: u64) -> Delivered {
    let key = |name: &str| EventKey::given(id("T".into()), id(format!("{name}{number}")));
    let aliases =
        if number.is_multiple_of(3) { vec![format!("alias{number}")] } else { Vec::new() };
    Delivered::new(key("event"), aliases, None, None)
}

/// The same, sometimes delivered under its other name first, or alone.
fn delivered(number: u64, chance: &mut Chance) -> Delivered {
    let key = EventKey::given(id("T".into()), id(format!("alias{number}")));
    match chance.below(3) {
        0 if number.is_multiple_of(3) => {
            Delivered::new(key, vec![format!("event{number}")], None, None)
        }
        1 if number.is_multiple_of(3) => Delivered::new(key, Vec::new(), None, None),
        _ => event(number),
    }
}

pub fn session(number: u64) -> SessionKey {
    SessionKey::given(id("T".into()), id(format!("session{number}")))
}

/// A bot, or every sixth time an operator, for as long as the simulation lasts.
pub async fn run(world: Arc<World>, mut chance: Chance, number: usize) {
    let name = format!("bot{number}");
    let mut bot = Bot { world, chance: chance.fork(), name, requests: 0 };
    loop {
        sleep(chance.millis(0, 2_500)).await;
        match chance.below(24) {
            0..6 => bot.mark().await,
            6..10 => bot.lease().await,
            10..13 => bot.hold().await,
            13..18 => bot.turn().await,
            18..22 => bot.run_turn().await,
            22 => bot.look().await,
            _ if chance.one_in(4) => bot.operate().await,
            _ => {}
        }
    }
}

struct Bot {
    world: Arc<World>,
    chance: Chance,
    name: String,
    requests: u64,
}

/// What a bot was granted.
struct Grant {
    /// Each session or event that it has, and by what.
    parts: Vec<(String, GrantId)>,
    /// Until when the bot may trust in all of it: counted from when the store was asked.
    until: Instant,
    /// When one of them is over at the latest: counted from the answer.
    over: Instant,
}

impl Bot {
    fn request(&mut self) -> Id {
        self.requests += 1;
        id(format!("{} {}", self.name, self.requests))
    }

    fn note(&self, line: impl FnOnce() -> String) {
        self.world.note(|| format!("{} {}", self.name, line()));
    }

    /// How long the body of a handler takes.
    fn work(&mut self) -> Duration {
        if self.chance.one_in(6) {
            self.chance.millis(5_000, 30_000)
        } else {
            self.chance.millis(0, 3_000)
        }
    }

    async fn mark(&mut self) {
        let number = self.chance.below(EVENTS);
        let what = format!("event {number}");
        let event = delivered(number, &mut self.chance);
        let given = self.request();
        // Of the event, whichever of its names comes first.
        let request = RequestId::for_event(&event.key, Some(&given));
        let mark = Mark { event, ttl: ttl(self.chance.millis(5_000, 90_000)), request };
        self.world.check(|checker| checker.may_be_handled(&what));
        for _ in 0..3 {
            let (sent, replica) = (Instant::now(), self.world.replica(&mut self.chance));
            let answer = timeout(PATIENCE, replica.dedup.mark(mark.clone())).await;
            self.note(|| format!("marks {what}: {}", shown(&answer)));
            match answer {
                Ok(Ok(MarkOutcome::First(row))) => {
                    let (from, until) = (row.process_time, row.expire_time);
                    self.world.check(|checker| {
                        if checker.first(&what, sent, request, from, until) {
                            checker.is_new(&what, sent, from, "first");
                        }
                        checker.handled(&what, sent, until);
                    });
                    // Sometimes it asks again.
                    if !self.chance.one_in(3) {
                        return;
                    }
                }
                Ok(Ok(MarkOutcome::Duplicate(row))) => {
                    return self
                        .world
                        .check(|checker| checker.found(&what, sent, row.process_time));
                }
                Ok(Ok(_)) => return,
                _ => sleep(self.chance.millis(10, 2_000)).await,
            }
        }
    }

    fn acquire(&mut self) -> (u64, Acquire) {
        let number = self.chance.below(SESSIONS);
        let key = session(number);
        let given = self.request();
        let epic = self.chance.one_in(20).then(|| "epic".to_owned());
        let acquire = Acquire {
            request: RequestId::for_session(&key, Some(&given)),
            key,
            holder: self.name.clone(),
            ttl: ttl(self.chance.millis(3_000, 15_000)),
            epic,
            labels: Labels::default(),
            stream: None,
            digest: None,
        };
        (number, acquire)
    }

    async fn lease(&mut self) {
        let (number, acquire) = self.acquire();
        let what = format!("session {number}");
        let wait =
            if self.chance.one_in(2) { Duration::ZERO } else { self.chance.millis(0, 10_000) };
        for _ in 0..3 {
            let (sent, replica) = (Instant::now(), self.world.replica(&mut self.chance));
            let answer = timeout(wait + PATIENCE, replica.sessions.acquire(&acquire, wait)).await;
            match answer {
                Ok(Ok(AcquireOutcome::Granted(grant))) => {
                    let lease = grant.accept();
                    let until = lease.asked + lease.value.remaining;
                    let id = GrantId::Lease(lease.value.id);
                    let number = lease.value.token.0;
                    self.note(|| format!("has {what}: token {number}"));
                    let told = Told { id, number, sent, until };
                    self.world.check(|checker| checker.granted(&what, &told));
                    self.keep_lease(&what, &acquire, &lease.value, until).await;
                    return;
                }
                Ok(Ok(AcquireOutcome::Held(_))) => return,
                Ok(Err(SessionError::Call(_))) | Err(_) => {
                    self.note(|| format!("does not know of {what}"));
                    sleep(self.chance.millis(10, 1_000)).await;
                }
                Ok(Err(error)) => return self.note(|| format!("is refused {what}: {error}")),
            }
        }
    }

    /// Works under a lease, renews it at times, and gives it back, or forgets it.
    async fn keep_lease(
        &mut self,
        what: &str,
        acquire: &Acquire,
        lease: &oncegate::domain::Lease,
        mut until: Instant,
    ) {
        let (id, key) = (GrantId::Lease(lease.id), acquire.key.clone());
        for _ in 0..self.chance.below(4) {
            sleep(self.work()).await;
            self.world.check(|checker| checker.writes(what, id));
            let (sent, replica) = (Instant::now(), self.world.replica(&mut self.chance));
            let renew = Renew { key: key.clone(), lease: lease.id, ttl: acquire.ttl, stream: None };
            let answer = timeout(PATIENCE, replica.sessions.renew(renew)).await;
            match answer {
                Ok(Ok(renewed)) => {
                    until = renewed.asked + renewed.value.remaining;
                    self.note(|| format!("renews {what}"));
                    self.world.check(|checker| checker.renewed(what, id, until));
                }
                Ok(Err(SessionError::Call(_))) | Err(_) => {}
                Ok(Err(error)) => {
                    self.note(|| format!("loses {what}: {error}"));
                    if sent < until {
                        self.lost_early(&[(what.to_owned(), id)]);
                    }
                    return self.world.check(|checker| checker.ended(what, id));
                }
            }
        }
        self.world.check(|checker| checker.writes(what, id));
        if self.chance.one_in(5) {
            // It crashes.
            return self.world.check(|checker| checker.ended(what, id));
        }
        self.world.check(|checker| checker.ended(what, id));
        for _ in 0..3 {
            let replica = self.world.replica(&mut self.chance);
            if let Ok(Ok(is_released)) =
                timeout(PATIENCE, replica.sessions.release(key.clone(), lease.id)).await
            {
                return self.note(|| format!("releases {what}: {is_released}"));
            }
            sleep(self.chance.millis(10, 1_000)).await;
        }
    }

    /// A holder learns that it has lost a grant in which it trusts.
    fn lost_early(&self, parts: &[(String, GrantId)]) {
        self.world.check(|checker| {
            let is_sure = parts.iter().all(|(what, id)| checker.trusted(what) == Some(*id));
            if is_sure {
                checker.violations.push(format!("{parts:?} is lost before its end"));
            }
        });
    }

    async fn hold(&mut self) {
        let (number, acquire) = self.acquire();
        let what = format!("session {number}");
        let (sent, replica) = (Instant::now(), self.world.replica(&mut self.chance));
        let wait = self.chance.millis(0, 20_000);
        let events = replica.sessions.hold(acquire, wait, PATIENCE, Caller::default());
        let mut events = pin!(events.into_stream());
        let mut over = Instant::now() + wait + PATIENCE;
        let mut id = None;
        loop {
            let event = tokio::time::timeout_at(over, events.next()).await;
            match event {
                Ok(Some(Ok(StreamEvent::Granted(lease)))) => {
                    let own = GrantId::Lease(lease.value.id);
                    id = Some(own);
                    let until = lease.asked + lease.value.remaining;
                    let told = Told { id: own, number: lease.value.token.0, sent, until };
                    self.note(|| format!("holds {what}: token {}", told.number));
                    self.world.check(|checker| checker.granted(&what, &told));
                    self.world.check(|checker| checker.writes(&what, own));
                    over = Instant::now() + self.work();
                }
                Ok(Some(Ok(StreamEvent::Renewed(lease)))) => {
                    let (own, until) =
                        (GrantId::Lease(lease.value.id), lease.asked + lease.value.remaining);
                    self.world.check(|checker| checker.renewed(&what, own, until));
                    self.world.check(|checker| checker.writes(&what, own));
                }
                Ok(Some(Ok(StreamEvent::Queued(position)))) => {
                    self.note(|| format!("is number {position} for {what}"));
                }
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(error))) => {
                    self.note(|| format!("holds {what} no longer: {error}"));
                    break;
                }
                Ok(None) | Err(_) => break,
            }
        }
        if let Some(id) = id {
            self.world.check(|checker| checker.ended(&what, id));
        }
    }

    fn begin(&mut self) -> (u64, Option<u64>, Begin) {
        let number = self.chance.below(EVENTS);
        let event = delivered(number, &mut self.chance);
        let given = self.request();
        let on = (!self.chance.one_in(4)).then_some(number % SESSIONS);
        let lease_ttl = self.chance.millis(3_000, 15_000);
        // A claim may outlast its lease.
        let claim_ttl = ttl(lease_ttl * if self.chance.one_in(3) { 2 } else { 1 });
        let acquire = on.map(|on| {
            let key = session(on);
            Acquire {
                request: RequestId::for_turn(&key, &event.key, Some(&given)),
                key,
                holder: self.name.clone(),
                ttl: ttl(lease_ttl),
                epic: None,
                labels: Labels::default(),
                stream: None,
                digest: None,
            }
        });
        let request = match &acquire {
            Some(acquire) => acquire.request,
            None => RequestId::for_event(&event.key, Some(&given)),
        };
        let begin = Begin {
            event,
            request,
            holder: self.name.clone(),
            claim_ttl,
            max_attempts: 100,
            session: acquire,
            stream: None,
            grace: self.chance.millis(0, 3_000),
        };
        (number, on, begin)
    }

    /// A turn was granted.
    fn granted(&mut self, number: u64, on: Option<u64>, turn: &Turn, sent: Instant) -> Grant {
        let what = format!("event {number}");
        let claim = &turn.claim.value;
        let id = GrantId::Turn(turn.id.request, claim.attempt);
        let until = turn.claim.asked + claim.remaining;
        let told = Told { id, number: claim.attempt.into(), sent, until };
        self.note(|| format!("has {what}: attempt {}", claim.attempt));
        self.world.check(|checker| {
            checker.is_new(&what, sent, claim.claim_time, "granted");
            checker.granted(&what, &told);
        });
        let over = Instant::now() + claim.remaining;
        let mut grant = Grant { parts: vec![(what, id)], until, over };
        if let Some((on, lease)) = on.zip(turn.lease.as_ref()) {
            let (what, id) = (format!("session {on}"), GrantId::Lease(lease.value.id));
            let until = lease.asked + lease.value.remaining;
            let told = Told { id, number: lease.value.token.0, sent, until };
            self.world.check(|checker| {
                checker.granted(&what, &told);
                checker.writes(&what, id);
            });
            grant.parts.push((what, id));
            grant.until = grant.until.min(until);
            grant.over = grant.over.min(Instant::now() + lease.value.remaining);
        }
        grant
    }

    fn renewed(&self, grant: &mut Grant, turn: &Turn) {
        let claim = turn.claim.asked + turn.claim.value.remaining;
        let lease = turn.lease.as_ref().map(|lease| lease.asked + lease.value.remaining);
        grant.until = lease.map_or(claim, |lease| lease.min(claim));
        let of_claim = turn.claim.value.remaining;
        let remaining =
            turn.lease.as_ref().map_or(of_claim, |lease| lease.value.remaining.min(of_claim));
        grant.over = Instant::now() + remaining;
        self.world.check(|checker| {
            for (what, id) in &grant.parts {
                let until = match id {
                    GrantId::Turn(..) => claim,
                    GrantId::Lease(_) => lease.unwrap_or(claim),
                };
                checker.renewed(what, *id, until);
                if let GrantId::Lease(_) = id {
                    checker.writes(what, *id);
                }
            }
        });
    }

    fn gave_up(&self, grant: &Grant) {
        self.world.check(|checker| {
            grant.parts.iter().for_each(|(what, id)| checker.ended(what, *id));
        });
    }

    async fn turn(&mut self) {
        let (number, on, begin) = self.begin();
        let wait =
            if self.chance.one_in(2) { Duration::ZERO } else { self.chance.millis(0, 10_000) };
        for _ in 0..3 {
            let (sent, replica) = (Instant::now(), self.world.replica(&mut self.chance));
            let answer = timeout(wait + PATIENCE, replica.turns.begin(begin.clone(), wait)).await;
            match answer {
                Ok(Ok(TurnOutcome::Granted(grant))) => {
                    let turn = grant.accept();
                    let grant = self.granted(number, on, &turn, sent);
                    return self.keep_turn(number, &begin, turn, grant).await;
                }
                Ok(Err(SessionError::Call(_))) | Err(_) => {
                    sleep(self.chance.millis(10, 1_000)).await;
                }
                Ok(_) => return,
            }
        }
    }

    async fn keep_turn(&mut self, number: u64, begin: &Begin, turn: Turn, mut grant: Grant) {
        let what = format!("event {number}");
        // Whether it knows until when the turn runs.
        let mut is_sure = true;
        for _ in 0..self.chance.below(3) {
            sleep(self.work()).await;
            let prolong = Prolong {
                turn: turn.id.clone(),
                claim_ttl: begin.claim_ttl,
                lease_ttl: begin.session.as_ref().map_or(begin.claim_ttl, |acquire| acquire.ttl),
                stream: None,
                interruption: None,
            };
            let (sent, replica) = (Instant::now(), self.world.replica(&mut self.chance));
            match timeout(PATIENCE, replica.turns.renew(prolong)).await {
                Ok(Ok(renewed)) => self.renewed(&mut grant, &renewed),
                Ok(Err(SessionError::Call(_))) | Err(_) => is_sure = false,
                Ok(Err(error)) => {
                    self.note(|| format!("loses {what}: {error}"));
                    if sent < grant.until {
                        self.lost_early(&grant.parts);
                    }
                    return self.gave_up(&grant);
                }
            }
        }
        if self.chance.one_in(6) {
            // It takes longer than it may.
            sleep(self.chance.millis(3_000, 20_000)).await;
        }
        if self.chance.one_in(6) {
            // It crashes.
            return self.gave_up(&grant);
        }
        let finish = Finish { turn: turn.id, ending: self.ending(), unless_resumed: None };
        if !matches!(finish.ending, Ending::Failed(_)) {
            self.world.check(|checker| checker.may_be_handled(&what));
        }
        self.gave_up(&grant);
        for _ in 0..3 {
            let (sent, replica) = (Instant::now(), self.world.replica(&mut self.chance));
            let answer = timeout(PATIENCE, replica.turns.finish(finish.clone())).await;
            self.note(|| format!("ends {what}: {}", shown(&answer)));
            match answer {
                Ok(Ok(handled)) => {
                    // It had ended by itself by then, unless this is the repetition of an answer.
                    self.world.check(|checker| {
                        if let Some(oncegate::domain::EventRow::Processed(row)) = handled {
                            checker.handled(&what, sent, row.expire_time);
                        }
                        if sent > grant.over && is_sure && grant.is_sure(checker) {
                            checker.violations.push(format!("{what}: ended after its end"));
                        }
                    });
                    return;
                }
                Ok(Err(SessionError::Call(_))) | Err(_) => {
                    grant.parts.clear();
                    sleep(self.chance.millis(10, 1_000)).await;
                }
                Ok(Err(_)) => return,
            }
        }
    }

    fn ending(&mut self) -> Ending {
        let span = ttl(self.chance.millis(5_000, 60_000));
        match self.chance.below(4) {
            0 => Ending::Failed(Detail::optional("detail", "failed".into()).unwrap()),
            1 => Ending::Rejected(None, span),
            _ => Ending::Succeeded(Arc::new(TurnResult::default()), span),
        }
    }

    async fn run_turn(&mut self) {
        let (number, on, begin) = self.begin();
        let what = format!("event {number}");
        let wait = self.chance.millis(0, 15_000);
        let (close, closed) = oneshot::channel();
        let (sent, replica) = (Instant::now(), self.world.replica(&mut self.chance));
        let events = replica.turns.run(begin, wait, PATIENCE, closed, Caller::default());
        let mut events = pin!(events.into_stream());
        let mut over = Instant::now() + wait + PATIENCE;
        let (mut close, mut grant) = (Some(close), None);
        loop {
            match tokio::time::timeout_at(over, events.next()).await {
                Ok(Some(Ok(StreamEvent::Granted(turn)))) => {
                    grant = Some(self.granted(number, on, &turn, sent));
                    over = Instant::now() + self.work();
                }
                Ok(Some(Ok(StreamEvent::Renewed(turn)))) => {
                    if let Some(grant) = &mut grant {
                        self.renewed(grant, &turn);
                    }
                }
                Ok(Some(Ok(StreamEvent::Last(RunEnd::Finished(row))))) => {
                    self.note(|| format!("ends {what}"));
                    if let Some(oncegate::domain::EventRow::Processed(row)) = row {
                        self.world.check(|checker| checker.handled(&what, sent, row.expire_time));
                    }
                    break;
                }
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(_)) | None) => break,
                Err(_) => {
                    let Some(grant) = &grant else { break };
                    let Some(close) = close.take() else { break };
                    if self.chance.one_in(3) {
                        // It breaks off.
                        break;
                    }
                    let ending = self.ending();
                    if !matches!(ending, Ending::Failed(_)) {
                        self.world.check(|checker| checker.may_be_handled(&what));
                    }
                    self.gave_up(grant);
                    let _ = close.send(Closed::With(ending));
                    over = Instant::now() + PATIENCE;
                }
            }
        }
        if let Some(grant) = &grant {
            self.gave_up(grant);
        }
    }

    async fn look(&mut self) {
        let number = self.chance.below(EVENTS);
        let replica = self.world.replica(&mut self.chance);
        let row = timeout(PATIENCE, replica.dedup.look(event(number), false)).await;
        self.note(|| format!("looks at event {number}: {}", shown(&row)));
    }

    /// What an operator does.
    async fn operate(&mut self) {
        let replica = self.world.replica(&mut self.chance);
        let author = Author { actor: self.name.clone(), reason: String::new() };
        let on = self.chance.below(SESSIONS);
        let key = session(on);
        let mut what = vec![format!("session {on}")];
        let kind = self.chance.below(6);
        if kind == 3 {
            what = vec![format!("event {}", self.chance.below(EVENTS))];
        } else if kind == 4 {
            what = (0..EVENTS).map(|number| format!("event {number}")).collect();
        }
        let all = |each: fn(&mut super::checker::Checker, &str)| {
            self.world.check(|checker| what.iter().for_each(|what| each(checker, what)));
        };
        if kind != 5 {
            all(super::checker::Checker::disturbing);
        }
        let done = async {
            match kind {
                0 => drop(replica.admin.bind_epic(key, None, author).await),
                1 => drop(replica.admin.force_release(key, author).await),
                2 => drop(replica.admin.close(key, author).await),
                3 => {
                    let number = what[0].trim_start_matches("event ").parse().unwrap();
                    let before = self.world.clock.now();
                    // Under another name it may be on record alone.
                    let is_gone = replica.admin.forget(event(number).key, author).await.is_ok();
                    if is_gone && event(number).aliases.is_empty() {
                        self.world.check(|checker| checker.forgotten(&what[0], before));
                    }
                }
                _ => {
                    let age = if kind == 4 {
                        Age::AtLeast(Duration::from_secs(30))
                    } else {
                        Age::Expired
                    };
                    let scope = Scope { team: None, age, dry_run: false, elected: false };
                    let until = Instant::now() + PATIENCE;
                    drop(replica.cleanup.run(&scope, 1_000, until).await);
                }
            }
        };
        // Not cut short: then it would not be known when it is over.
        let is_over = timeout(Duration::from_mins(1), done).await.is_ok();
        self.note(|| format!("operates {kind} on {what:?}: {is_over}"));
        if kind != 5 && is_over {
            all(super::checker::Checker::disturbed);
        }
    }
}

impl Grant {
    /// Whether nothing was taken away by hand, and no answer was lost.
    fn is_sure(&self, checker: &super::checker::Checker) -> bool {
        !self.parts.is_empty() && self.parts.iter().all(|(what, id)| checker.was_sure(what, *id))
    }
}

fn shown<T, E: std::fmt::Display, L>(answer: &Result<Result<T, E>, L>) -> String {
    match answer {
        Ok(Ok(_)) => "done".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer".to_owned(),
    }
}
