//! What callers were answered, compared with the guarantees. A caller relies on a grant from the
//! answer on, for as long as the answer says, counted from when the store was asked; or until it
//! gives the grant up.

use std::{collections::BTreeMap, time::Duration};

use oncegate::domain::{LeaseId, RequestId, Timestamp};
use tokio::time::Instant;

mod events;

pub use events::FirstMark;
use events::Handling;

/// How many of the latest grants of a session or an event are compared.
const COMPARED: usize = 64;

/// Names a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantId {
    Lease(LeaseId),
    /// A turn, by its request and its attempt.
    Turn(RequestId, u32),
}

/// A grant, as its caller was answered.
pub struct GrantAnswer {
    pub id: GrantId,
    /// A fencing token, or the number of an attempt.
    pub number: i64,
    /// When the caller called.
    pub sent: Instant,
    /// When the replica asked the store: the decision came later.
    pub asked: Instant,
    /// Until when the caller may rely on it.
    pub until: Instant,
}

/// What is known of a grant.
#[derive(Debug, Clone)]
struct GrantRecord {
    id: GrantId,
    number: i64,
    sent: Instant,
    answered: Instant,
    /// When the store was asked for the latest grant or renewal.
    asked: Instant,
    /// Until when its holder relies on it, at most.
    until: Instant,
    /// When its holder gave it up.
    ended: Option<Instant>,
    /// Whether an operator or a step of the clock may have ended it early.
    is_uncertain: bool,
}

impl GrantRecord {
    /// Whether it has certainly not ended by itself.
    fn is_valid(&self, now: Instant) -> bool {
        !self.is_uncertain && self.until > now
    }

    fn is_relied_on(&self, now: Instant) -> bool {
        self.is_valid(now) && self.ended.is_none()
    }
}

/// What is known of a session or an event.
#[derive(Debug, Default)]
struct Log {
    grants: Vec<GrantRecord>,
    /// How many repairs by an operator are in progress.
    repairs: usize,
    /// When the latest repair was over.
    repaired: Option<Instant>,
    /// The fencing token of the latest writer to the resource.
    fence: i64,
    /// Numbers of grants that were requested before are not compared any more.
    numbers_since: Option<Instant>,
    handling: Handling,
}

impl Log {
    fn grant(&self, id: GrantId) -> Option<&GrantRecord> {
        self.grants.iter().find(|grant| grant.id == id)
    }

    fn grant_mut(&mut self, id: GrantId) -> Option<&mut GrantRecord> {
        self.grants.iter_mut().find(|grant| grant.id == id)
    }

    /// Whether no repair may have come after a decision that was made after `asked`.
    fn is_undisturbed(&self, asked: Instant) -> bool {
        self.repairs == 0 && self.repaired.is_none_or(|at| at < asked)
    }

    fn disturb(&mut self) {
        self.grants.iter_mut().for_each(|grant| grant.is_uncertain = true);
        self.numbers_since = Some(Instant::now());
        self.handling.disturb();
    }
}

#[derive(Debug)]
pub struct Checker {
    pub violations: Vec<String>,
    logs: BTreeMap<String, Log>,
    /// When the clock was last stepped forward.
    stepped_forward: Option<Instant>,
    /// When the clock was last stepped back.
    stepped_back: Option<Instant>,
    /// The latest time that the clock showed before a step back: what ended until then may have
    /// been swept.
    latest_time: Timestamp,
}

impl Default for Checker {
    fn default() -> Self {
        Self {
            violations: Vec::new(),
            logs: BTreeMap::new(),
            stepped_forward: None,
            stepped_back: None,
            latest_time: Timestamp::from_micros(0),
        }
    }
}

impl Checker {
    fn log(&mut self, subject: &str) -> &mut Log {
        self.logs.entry(subject.to_owned()).or_default()
    }

    fn violated(&mut self, text: String) {
        self.violations.push(text);
    }

    /// Something was granted, or the grant of a repeated request was found.
    pub fn granted(&mut self, subject: &str, answer: &GrantAnswer) {
        let GrantAnswer { id, number, sent, asked, until } = *answer;
        let stepped = self.stepped_forward;
        let log = self.log(subject);
        let is_uncertain =
            !log.is_undisturbed(asked) || stepped.is_some_and(|stepped| stepped >= asked);
        let is_turn = matches!(id, GrantId::Turn(..));
        let numbers_since = log.numbers_since;
        let mut broken = Vec::new();
        if let Some(own) = log.grant_mut(id) {
            if own.number != number {
                broken.push(format!("{id:?} has number {} and {number}", own.number));
            }
            (own.asked, own.until, own.is_uncertain) = (asked, until, is_uncertain);
        } else {
            for other in &log.grants {
                let comes_later = other.answered < sent;
                let counts = !is_turn || numbers_since.is_none_or(|since| other.sent > since);
                if comes_later && counts && other.number >= number {
                    broken.push(format!(
                        "number {number} of {id:?} is not above {} of {:?}, which was answered \
                         before",
                        other.number, other.id
                    ));
                }
            }
            let answered = Instant::now();
            let ended = None;
            log.grants.push(GrantRecord {
                id,
                number,
                sent,
                answered,
                asked,
                until,
                ended,
                is_uncertain,
            });
            let surplus = log.grants.len().saturating_sub(COMPARED);
            log.grants.drain(..surplus);
        }
        for text in broken {
            self.violated(format!("{subject}: {text}"));
        }
        self.must_be_exclusive(subject, id);
    }

    /// Something was renewed until `until`, by a decision that was made after `asked`.
    pub fn renewed(&mut self, subject: &str, id: GrantId, asked: Instant, until: Instant) {
        let stepped = self.stepped_forward;
        let log = self.log(subject);
        let is_certain = log.is_undisturbed(asked) && stepped.is_none_or(|stepped| stepped < asked);
        if let Some(own) = log.grant_mut(id) {
            (own.asked, own.until, own.is_uncertain) = (asked, until, !is_certain);
        }
        self.must_be_exclusive(subject, id);
    }

    /// No other caller relies on a grant of the same.
    fn must_be_exclusive(&mut self, subject: &str, id: GrantId) {
        let now = Instant::now();
        let log = self.log(subject);
        let Some(own) = log.grant(id).filter(|own| own.is_relied_on(now)) else { return };
        let other = log.grants.iter().find(|grant| grant.id != id && grant.is_relied_on(now));
        if let Some(other) = other {
            let text = format!("{subject}: held by two at once: {own:?} and {other:?}");
            self.violated(text);
        }
    }

    /// A caller gives a grant up, or learns that it is lost.
    pub fn ended(&mut self, subject: &str, id: GrantId) {
        let now = Instant::now();
        if let Some(own) = self.log(subject).grant_mut(id) {
            own.ended.get_or_insert(now);
        }
    }

    /// The server refused a call of the holder of all these grants, as if one had ended.
    pub fn refused(&mut self, grants: &[(String, GrantId)], why: &str) {
        let now = Instant::now();
        let is_valid = |(subject, id): &(String, GrantId)| {
            let grant = self.logs.get(subject).and_then(|log| log.grant(*id));
            grant.is_some_and(|grant| grant.is_valid(now))
        };
        if !grants.is_empty() && grants.iter().all(is_valid) {
            self.violated(format!("{grants:?} is lost before its end: {why}"));
        }
    }

    /// The holder of a session writes to a resource that refuses lower tokens.
    pub fn writes(&mut self, subject: &str, id: GrantId) {
        let now = Instant::now();
        let log = self.log(subject);
        let Some(own) = log.grant(id).cloned() else { return };
        if own.number >= log.fence {
            log.fence = own.number;
        } else if own.is_relied_on(now) {
            let text = format!("{subject}: the holder {own:?} is below the fence {}", log.fence);
            self.violated(text);
        }
    }

    /// A repair by an operator begins.
    pub fn repair_begins(&mut self, subject: &str) {
        let log = self.log(subject);
        log.repairs += 1;
        log.disturb();
    }

    /// A repair by an operator is over.
    pub fn repair_ends(&mut self, subject: &str) {
        let log = self.log(subject);
        log.repairs -= 1;
        log.repaired = Some(Instant::now());
        log.disturb();
    }

    /// The clock, which shows `time`, is stepped back: what was granted before may last longer.
    pub fn step_back(&mut self, time: Timestamp) {
        self.stepped_back = Some(Instant::now());
        self.latest_time = self.latest_time.max(time);
    }

    /// Whether the clock was stepped back within the latest `span`.
    pub fn was_stepped_back(&self, span: Duration) -> bool {
        self.stepped_back.is_some_and(|at| at.elapsed() < span)
    }

    /// The clock is stepped forward: what was granted before may end early.
    pub fn step_forward(&mut self) {
        self.stepped_forward = Some(Instant::now());
        let grants = self.logs.values_mut().flat_map(|log| &mut log.grants);
        grants.for_each(|grant| grant.is_uncertain = true);
    }

    /// Whether a grant certainly ended when its holder was answered that it would.
    pub fn ended_in_time(&self, subject: &str, id: GrantId) -> bool {
        self.logs.get(subject).and_then(|log| log.grant(id)).is_some_and(|grant| {
            let is_longer = self.stepped_back.is_some_and(|at| at >= grant.asked);
            !grant.is_uncertain && !is_longer
        })
    }

    /// Whether a caller was answered a grant.
    pub fn knows(&self, subject: &str, id: GrantId) -> bool {
        self.logs.get(subject).is_some_and(|log| log.grant(id).is_some())
    }

    /// What a caller relies on.
    pub fn relied_on(&self, subject: &str) -> Option<GrantId> {
        let now = Instant::now();
        let grants = &self.logs.get(subject)?.grants;
        grants.iter().find(|grant| grant.is_relied_on(now)).map(|grant| grant.id)
    }
}
