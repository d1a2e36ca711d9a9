//! What callers see, and whether it may be. A caller trusts what it was granted from the answer
//! until the time that it was told has passed since it asked, or until it gives it up.

use std::{collections::BTreeMap, time::Duration};

use oncegate::domain::{LeaseId, RequestId, Timestamp};
use tokio::time::Instant;

/// How many of the latest grants of a session or an event are compared.
const COMPARED: usize = 64;

/// Names something that was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantId {
    Lease(LeaseId),
    /// A turn, by its request and its attempt.
    Turn(RequestId, u32),
}

/// Something that was granted to one caller.
#[derive(Debug, Clone)]
struct Held {
    id: GrantId,
    /// A fencing token, or the number of an attempt.
    number: i64,
    sent: Instant,
    answered: Instant,
    /// Until when its holder trusts in it, at most.
    until: Instant,
    /// When it gave it up.
    ended: Option<Instant>,
    /// Whether it may have been taken away, by hand or by a step of the clock.
    is_shaky: bool,
}

impl Held {
    fn is_trusted(&self, now: Instant) -> bool {
        !self.is_shaky && self.ended.is_none() && self.until > now
    }
}

/// What is known of a session or an event.
#[derive(Debug, Default)]
struct Log {
    grants: Vec<Held>,
    /// How many changes by hand are under way.
    disturbing: usize,
    /// When the latest change by hand was over.
    disturbed: Option<Instant>,
    /// What the latest writer to the resource had.
    register: i64,
    /// What is acknowledged to be handled: when that was answered, and until when it is.
    handled: Option<(Instant, Timestamp)>,
    /// The latest first marks: who made them, and from when until when they count.
    firsts: Vec<(RequestId, Timestamp, Timestamp)>,
    /// When it was forgotten: when that was answered, and when it began by the store's clock.
    forgotten: Option<(Instant, Timestamp)>,
    /// Numbers of grants that were answered before are not compared any more.
    numbers_since: Option<Instant>,
}

#[derive(Debug)]
pub struct Checker {
    pub violations: Vec<String>,
    logs: BTreeMap<String, Log>,
    /// When the clock was last stepped forward.
    stepped: Option<Instant>,
    /// When it was last stepped back.
    stepped_back: Option<Instant>,
    /// The latest that it showed before a step back: what ended until then may have been swept.
    shown: Timestamp,
}

/// A grant, as its caller was told of it.
pub struct Told {
    pub id: GrantId,
    pub number: i64,
    pub sent: Instant,
    pub until: Instant,
}

impl Default for Checker {
    fn default() -> Self {
        Self {
            violations: Vec::new(),
            logs: BTreeMap::new(),
            stepped: None,
            stepped_back: None,
            shown: Timestamp::from_micros(0),
        }
    }
}

impl Checker {
    fn log(&mut self, what: &str) -> &mut Log {
        self.logs.entry(what.to_owned()).or_default()
    }

    fn violated(&mut self, text: String) {
        self.violations.push(text);
    }

    /// Something was granted.
    pub fn granted(&mut self, what: &str, told: &Told) {
        let (now, stepped) = (Instant::now(), self.stepped);
        let log = self.log(what);
        let mut broken = Vec::new();
        let is_shaky = log.disturbing > 0
            || log.disturbed.is_some_and(|at| at >= told.sent)
            || stepped.is_some_and(|at| at >= told.sent);
        let is_turn = matches!(told.id, GrantId::Turn(..));
        if let Some(own) = log.grants.iter_mut().find(|held| held.id == told.id) {
            // The same answer again.
            if own.number != told.number {
                broken.push(format!("{:?} has number {} and {}", own.id, own.number, told.number));
            }
            (own.until, own.is_shaky) = (told.until, own.is_shaky || is_shaky);
        } else {
            for other in &log.grants {
                let comes_later = other.answered < told.sent;
                let counts =
                    !is_turn || log.numbers_since.is_none_or(|since| other.answered > since);
                if comes_later && counts && other.number >= told.number {
                    broken.push(format!(
                        "number {} of {:?} is not above {} of {:?}, which was answered before",
                        told.number, told.id, other.number, other.id
                    ));
                }
            }
            log.grants.push(Held {
                id: told.id,
                number: told.number,
                sent: told.sent,
                answered: now,
                until: told.until,
                ended: None,
                is_shaky,
            });
            let surplus = log.grants.len().saturating_sub(COMPARED);
            log.grants.drain(..surplus);
        }
        for text in broken {
            self.violated(format!("{what}: {text}"));
        }
        self.is_alone(what, told.id);
    }

    /// Something was renewed.
    pub fn renewed(&mut self, what: &str, id: GrantId, until: Instant) {
        if let Some(own) = self.log(what).grants.iter_mut().find(|held| held.id == id) {
            own.until = until;
        }
        self.is_alone(what, id);
    }

    /// Nobody else trusts in having the same.
    fn is_alone(&mut self, what: &str, id: GrantId) {
        let now = Instant::now();
        let log = self.log(what);
        let Some(own) = log.grants.iter().find(|held| held.id == id) else { return };
        if !own.is_trusted(now) {
            return;
        }
        let other = log.grants.iter().find(|held| held.id != id && held.is_trusted(now));
        if let Some(other) = other {
            let text = format!("{what}: held by two at once: {own:?} and {other:?}");
            self.violated(text);
        }
    }

    /// A caller gives up what it was granted, or is told that it is lost.
    pub fn ended(&mut self, what: &str, id: GrantId) {
        let now = Instant::now();
        if let Some(own) = self.log(what).grants.iter_mut().find(|held| held.id == id) {
            own.ended.get_or_insert(now);
        }
    }

    /// The holder of a session writes to a resource that refuses lower tokens.
    pub fn writes(&mut self, what: &str, id: GrantId) {
        let now = Instant::now();
        let log = self.log(what);
        let Some(own) = log.grants.iter().find(|held| held.id == id).cloned() else { return };
        if own.number >= log.register {
            log.register = own.number;
        } else if own.is_trusted(now) {
            let text = format!("{what}: the holder {own:?} is below the fence {}", log.register);
            self.violated(text);
        }
    }

    /// A change by hand begins.
    pub fn disturbing(&mut self, what: &str) {
        let log = self.log(what);
        log.disturbing += 1;
        log.grants.iter_mut().for_each(|held| held.is_shaky = true);
        (log.handled, log.numbers_since) = (None, Some(Instant::now()));
        log.firsts.clear();
    }

    /// A change by hand is over.
    pub fn disturbed(&mut self, what: &str) {
        let log = self.log(what);
        log.disturbing -= 1;
        log.disturbed = Some(Instant::now());
        log.grants.iter_mut().for_each(|held| held.is_shaky = true);
        (log.handled, log.numbers_since) = (None, Some(Instant::now()));
        log.firsts.clear();
    }

    /// The clock, which shows `shown`, is stepped back: what was granted before may last longer.
    pub fn stepped_back(&mut self, shown: Timestamp) {
        self.stepped_back = Some(Instant::now());
        self.shown = self.shown.max(shown);
    }

    /// Whether the clock was stepped back within the latest `span`.
    pub fn was_stepped_back(&self, span: Duration) -> bool {
        self.stepped_back.is_some_and(|at| at.elapsed() < span)
    }

    /// The clock is stepped forward: what was granted before may end early.
    pub fn stepped_forward(&mut self) {
        self.stepped = Some(Instant::now());
        let grants = self.logs.values_mut().flat_map(|log| &mut log.grants);
        grants.for_each(|held| held.is_shaky = true);
    }

    /// An event may be handled, or forgotten, from now on: its attempts may be counted anew.
    pub fn may_be_handled(&mut self, what: &str) {
        self.log(what).numbers_since = Some(Instant::now());
    }

    /// An event is acknowledged to be handled.
    pub fn handled(&mut self, what: &str, sent: Instant, until: Timestamp) {
        let log = self.log(what);
        let is_sure = log.disturbing == 0 && log.disturbed.is_none_or(|at| at < sent);
        log.numbers_since = Some(Instant::now());
        if is_sure {
            log.handled = Some((Instant::now(), until));
        }
    }

    /// A turn was granted, or a mark was the first, by a decision at `time` on a call that began
    /// at `sent`.
    pub fn is_new(&mut self, what: &str, sent: Instant, time: Timestamp, who: &str) {
        let over = time.max(self.shown);
        if let Some((answered, until)) = self.log(what).handled
            && answered < sent
            && over < until
        {
            let text = format!("{what}: {who} at {time:?}, but is handled until {until:?}");
            self.violated(text);
        }
    }

    /// A mark was the first, by a call that began at `sent`. Answers whether that was not known
    /// before.
    pub fn first(
        &mut self,
        what: &str,
        sent: Instant,
        request: RequestId,
        from: Timestamp,
        until: Timestamp,
    ) -> bool {
        let over = from.max(self.shown);
        let log = self.log(what);
        // It may have been forgotten before it was answered.
        let is_sure = log.disturbing == 0 && log.disturbed.is_none_or(|at| at < sent);
        if !is_sure || log.firsts.contains(&(request, from, until)) {
            return false;
        }
        let twice = log.firsts.iter().find(|(other, start, end)| {
            let is_other = *other != request || *start != from;
            is_other && over.max(*start) < until.min(*end)
        });
        let twice = twice.copied();
        log.firsts.push((request, from, until));
        let surplus = log.firsts.len().saturating_sub(COMPARED);
        log.firsts.drain(..surplus);
        if let Some(other) = twice {
            let own = (request, from, until);
            self.violated(format!("{what}: two firsts: {own:?} and {other:?}"));
        }
        true
    }

    /// Whether a grant certainly ended when it was to.
    pub fn was_sure(&self, what: &str, id: GrantId) -> bool {
        let grants = self.logs.get(what).map(|log| &log.grants);
        grants.into_iter().flatten().any(|held| {
            let is_longer = self.stepped_back.is_some_and(|at| at >= held.sent);
            held.id == id && !held.is_shaky && !is_longer
        })
    }

    /// Whether somebody was told of a grant.
    pub fn knows(&self, what: &str, id: GrantId) -> bool {
        let grants = self.logs.get(what).map(|log| &log.grants);
        grants.into_iter().flatten().any(|held| held.id == id)
    }

    /// An event was forgotten: what was on record before the store's time `before` is gone.
    pub fn forgotten(&mut self, what: &str, before: Timestamp) {
        self.log(what).forgotten = Some((Instant::now(), before));
    }

    /// A call that began at `sent` found an event handled since `time`.
    pub fn found(&mut self, what: &str, sent: Instant, time: Timestamp) {
        let stepped = self.stepped.max(self.stepped_back);
        let log = self.log(what);
        if let Some((answered, before)) = log.forgotten
            && answered < sent
            && time < before
            && stepped.is_none_or(|at| at < answered)
        {
            let text = format!("{what}: handled since {time:?}, but was forgotten at {before:?}");
            self.violated(text);
        }
    }

    /// Until when an event is acknowledged to be handled, if that was not over by `now`.
    pub fn handled_until(&self, what: &str, now: Timestamp) -> Option<Timestamp> {
        let (_, until) = self.logs.get(what)?.handled?;
        Some(until).filter(|until| *until > now.max(self.shown))
    }

    /// What somebody trusts in having.
    pub fn trusted(&self, what: &str) -> Option<GrantId> {
        let now = Instant::now();
        let grants = &self.logs.get(what)?.grants;
        grants.iter().find(|held| held.is_trusted(now)).map(|held| held.id)
    }
}
