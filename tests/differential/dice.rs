//! Draws the steps of a sequence.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use oncegate::{
    domain::{
        Acquire, Begin, Enqueue, EventKey, Id, Labels, LeaseId, OwnLease, PriorGrant, Release,
        Renew, RequestId, ResumedBy, SessionKey, StreamId, Team, TeamFilter, Timestamp, Ttl,
        TurnId,
        limits::{CLAIM_MEMORY, CLAIM_TTL, EVENT_TTL, LEASE_TTL},
    },
    rules::queue::PLACE_KEPT,
    store::{Age, EventFilter, EventStatus, Kind, Page, Scope, Sweep},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::steps::{Grant, Of, Op, Step, lease};

mod events;

const TEAMS: [&str; 3] = ["T1", "T1", "T2"];
const SESSIONS: [&str; 3] = ["r", "s", "t"];
const EVENTS: [&str; 5] = ["a", "b", "c", "d", "e"];
const HOLDERS: [&str; 2] = ["h1", "h2"];
/// In seconds.
const SPANS: [u64; 6] = [1, 2, 5, 10, 30, 60];

/// All sessions that sequences are about.
pub fn sessions() -> Vec<SessionKey> {
    let of = |team: &str| {
        SESSIONS.map(|name| SessionKey { team: Team::stored(team), session: name.into() })
    };
    TEAMS[1..].iter().flat_map(|team| of(team)).collect()
}

/// All names of events that sequences are about.
pub fn events() -> Vec<EventKey> {
    let of =
        |team: &str| EVENTS.map(|name| EventKey { team: Team::stored(team), event: name.into() });
    TEAMS[1..].iter().flat_map(|team| of(team)).collect()
}

/// What was granted so far.
pub struct Granted<'a> {
    pub leases: &'a BTreeMap<Grant, (SessionKey, LeaseId)>,
    pub turns: &'a BTreeMap<Grant, TurnId>,
    /// When these were claimed: the same in each store.
    pub claim_times: &'a BTreeMap<Grant, Timestamp>,
}

/// Draws steps.
pub struct Dice {
    random: StdRng,
    /// The number of the next step.
    number: usize,
    /// How long after the start it is, in microseconds.
    now: u64,
    /// When something may end, in the same way.
    ends: BTreeSet<u64>,
    streams: Vec<StreamId>,
    /// The leases that were asked for.
    acquires: Vec<Acquire>,
    /// The places that were asked for.
    places: Vec<Enqueue>,
    /// The turns that were asked for.
    begins: Vec<Begin>,
    /// Whether a crowd is still to come.
    crowd: bool,
}

impl Dice {
    pub fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let crowd = random.random_range(0..4) == 0;
        let streams = (0..3).map(|_| StreamId::random()).collect();
        Self {
            random,
            number: 0,
            now: 0,
            ends: BTreeSet::new(),
            streams,
            acquires: Vec::new(),
            places: Vec::new(),
            begins: Vec::new(),
            crowd,
        }
    }

    pub fn step(&mut self, granted: &Granted<'_>) -> Step {
        let number = self.number;
        let op = self.op(granted);
        self.number += 1;
        Step { number, op }
    }

    fn op(&mut self, granted: &Granted<'_>) -> Op {
        match self.random.random_range(0..100) {
            0..17 => self.advance(),
            17..23 => Op::Mark(self.marks()),
            23..38 => self.change(granted),
            38..48 => self.enqueue(),
            48..50 => Op::HandOn(self.some_sessions()),
            50..54 => self.leave(granted),
            54..59 => self.renew(granted),
            59..84 => self.turns(granted),
            84..89 => self.prolong(granted),
            89..91 => Op::Bind(self.session(), self.epic()),
            91 => Op::Force(self.session()),
            92..94 => Op::Close(self.session()),
            94..96 => Op::Forget(self.event()),
            96..98 => Op::Sweep(self.sweep()),
            98 => self.list_sessions(),
            _ => self.list_events(),
        }
    }

    fn of<T: Clone>(&mut self, values: &[T]) -> T {
        values.choose(&mut self.random).expect("there are some").clone()
    }

    fn one_in(&mut self, count: u32) -> bool {
        self.random.random_range(0..count) == 0
    }

    fn ends_after(&mut self, span: Duration) {
        self.ends.insert(self.now + u64::try_from(span.as_micros()).expect("a short span"));
    }

    /// Often to exactly the moment when something ends, or to just before or after it.
    fn advance(&mut self) -> Op {
        let next: Vec<u64> = self.ends.range(self.now + 1..).take(4).copied().collect();
        let to = match self.random.random_range(0..10) {
            kind @ 0..7 if !next.is_empty() => {
                let end = self.of(&next);
                [end, end, end, end, end, end - 1, end + 1][kind]
            }
            7 if !next.is_empty() && self.one_in(4) => {
                let all: Vec<u64> = self.ends.range(self.now + 1..).copied().collect();
                self.of(&all)
            }
            _ => self.now + self.of(&[1, 1_000, 500_000, 1_000_000, 3_000_000, 11_000_000]),
        };
        let span = Duration::from_micros(to - self.now);
        self.now = to;
        Op::Advance(span)
    }

    fn session(&mut self) -> SessionKey {
        SessionKey { team: Team::stored(self.of(&TEAMS)), session: self.of(&SESSIONS).into() }
    }

    /// One or several, sorted, none twice.
    fn some_sessions(&mut self) -> Vec<SessionKey> {
        let count = self.of(&[1, 1, 2, 3]);
        let keys: BTreeSet<_> = (0..count).map(|_| self.session()).collect();
        keys.into_iter().collect()
    }

    fn event(&mut self) -> EventKey {
        EventKey { team: Team::stored(self.of(&TEAMS)), event: self.of(&EVENTS).into() }
    }

    /// What the caller says of its attempt: often what another has said before.
    fn attempt(&mut self) -> Id {
        let new = format!("new {} {}", self.number, self.random.random::<u32>());
        let id = self.of(&["r1", "r1", "r2", "r3", &new]).to_owned();
        Id::parse("request_id", id).expect("an id")
    }

    fn span(&mut self) -> Duration {
        let span = Duration::from_secs(self.of(&SPANS));
        self.ends_after(span);
        span
    }

    fn lease_ttl(&mut self) -> Ttl {
        Ttl::parse(Some(self.span()), CLAIM_MEMORY, &LEASE_TTL).expect("a TTL")
    }

    fn claim_ttl(&mut self) -> Ttl {
        // Not so short that few turns end before their claims do.
        let span = self.span().max(Duration::from_secs(5));
        self.ends_after(span);
        Ttl::parse(Some(span), CLAIM_MEMORY, &CLAIM_TTL).expect("a TTL")
    }

    fn event_ttl(&mut self) -> Ttl {
        Ttl::parse(Some(self.span()), CLAIM_MEMORY, &EVENT_TTL).expect("a TTL")
    }

    fn max_hold(&mut self) -> Duration {
        self.of(&[Duration::from_secs(20), Duration::from_mins(1), Duration::from_hours(1)])
    }

    fn epic(&mut self) -> Option<&'static str> {
        self.of(&[None, None, None, None, Some("P-1"), Some("P-2")])
    }

    fn stream(&mut self) -> Option<StreamId> {
        let stream = self.of(&self.streams.clone());
        Some(stream).filter(|_| !self.one_in(2))
    }

    /// What a call names, at times: something that was not found so.
    fn prior<T>(&mut self, id: T) -> Option<PriorGrant<T>> {
        let resumed = if self.one_in(3) { ResumedBy::Nobody } else { ResumedBy::of(self.stream()) };
        Some(PriorGrant { id, resumed }).filter(|_| self.one_in(3))
    }

    fn acquire(&mut self, key: SessionKey, event: Option<&EventKey>) -> Acquire {
        let attempt = Some(self.attempt());
        let labels = self.of(&[vec![], vec![("bot".to_owned(), "b".to_owned())]]);
        Acquire {
            request: match event {
                Some(event) => RequestId::for_turn(&key, event, attempt.as_ref()),
                None => RequestId::for_session(&key, attempt.as_ref()),
            },
            key,
            holder: self.of(&HOLDERS).into(),
            lease: OwnLease::random(),
            ttl: self.lease_ttl(),
            epic: self.epic().map(str::to_owned),
            labels: Labels::parse(labels).expect("labels"),
            stream: self.stream(),
            resumes: self.prior(LeaseId::random()),
            digest: None,
        }
    }

    /// One of the leases that were granted lately, of one of `keys`.
    fn lease_of(&mut self, granted: &Granted<'_>, key: &SessionKey) -> Option<Grant> {
        let of = granted.leases.iter().rev().filter(|(_, (of, _))| of == key);
        let latest: Vec<Grant> = of.take(4).map(|(grant, _)| *grant).collect();
        latest.choose(&mut self.random).copied()
    }

    fn change(&mut self, granted: &Granted<'_>) -> Op {
        let (mut acquires, mut releases) = (Vec::new(), Vec::new());
        for key in self.some_sessions() {
            let grant = self.lease_of(granted, &key).filter(|_| !self.one_in(2));
            if let Some(grant) = grant {
                let unless_resumed = self.stream().filter(|_| !self.one_in(2));
                let release = Release::new(key.clone(), lease(grant), unless_resumed);
                releases.push(Of(grant, release));
            }
            if grant.is_none() || self.one_in(4) {
                let lately = self.acquires.iter().rev().take(6).filter(|lately| lately.key == key);
                let lately: Vec<Acquire> = lately.cloned().collect();
                if !lately.is_empty() && self.one_in(4) {
                    // As if its answer was lost.
                    acquires.push(self.of(&lately));
                } else {
                    let acquire = self.acquire(key, None);
                    self.acquires.push(acquire.clone());
                    acquires.push(acquire);
                }
            }
        }
        Op::Change(acquires, releases)
    }

    /// The place that the request took last, if it names that.
    fn place_of(&mut self, acquire: &Acquire) -> Option<LeaseId> {
        let of_request = |place: &&Enqueue| place.acquire.request == acquire.request;
        let latest =
            self.places.iter().rev().find(of_request).map(|place| place.acquire.lease.id());
        latest.filter(|_| !self.one_in(3))
    }

    fn enqueue(&mut self) -> Op {
        let mut asked = Vec::new();
        // As if its answer was lost.
        let lost: Vec<Enqueue> = self.places.iter().rev().take(4).cloned().collect();
        if !lost.is_empty() && self.one_in(4) {
            return Op::Enqueue(vec![self.of(&lost)]);
        }
        // The queue of a turn.
        let wishes: Vec<Acquire> =
            self.begins.iter().rev().take(6).filter_map(|begin| begin.session.clone()).collect();
        if !wishes.is_empty() && self.one_in(3) {
            let acquire = Acquire { lease: lease((self.number, 0)).into(), ..self.of(&wishes) };
            let takes_over = self.place_of(&acquire);
            let enqueue = Enqueue { acquire, takes_over };
            self.places.push(enqueue.clone());
            return Op::Enqueue(vec![enqueue]);
        }
        for (item, key) in self.some_sessions().into_iter().enumerate() {
            let event = self.event();
            let event = Some(event).filter(|event| event.team == key.team && !self.one_in(2));
            let mut acquire = self.acquire(key, event.as_ref());
            acquire.digest = self.digest().filter(|_| event.is_some());
            acquire.lease = lease((self.number, item)).into();
            let takes_over = self.place_of(&acquire);
            asked.push(Enqueue { acquire, takes_over });
        }
        if self.crowd && self.one_in(8) {
            self.crowd = false;
            let first = asked.remove(0);
            return Op::Crowd(first, self.of(&[63, 64, 65]));
        }
        self.places.extend(asked.iter().cloned());
        Op::Enqueue(asked)
    }

    fn leave(&mut self, granted: &Granted<'_>) -> Op {
        let keep = self.one_in(2);
        if keep {
            self.ends_after(PLACE_KEPT);
        }
        let mut places = Vec::new();
        for key in self.some_sessions() {
            if let Some(grant) = self.lease_of(granted, &key) {
                places.push(Of(grant, key));
            }
        }
        Op::Leave(places, keep)
    }

    fn renew(&mut self, granted: &Granted<'_>) -> Op {
        let mut asked = Vec::new();
        for key in self.some_sessions() {
            if let Some(grant) = self.lease_of(granted, &key) {
                let (ttl, stream) = (self.lease_ttl(), self.stream());
                asked.push(Of(grant, Renew { key, lease: lease(grant), ttl, stream }));
            }
        }
        Op::Renew(asked, self.max_hold())
    }

    fn sweep(&mut self) -> Sweep {
        let age = self.of(&[None, None, Some(0), Some(5), Some(60)]);
        let age = age.map_or(Age::Expired, |age| Age::AtLeast(Duration::from_secs(age)));
        let team = TeamFilter::stored(self.of(&[None, Some("T1")]).map(Team::stored));
        let (dry_run, elected) = (self.one_in(2), false);
        // Which rows go first is up to the store: so all go, or none.
        let limit = if dry_run { self.of(&[2, 1_000]) } else { 1_000 };
        let kind = self.of(&[Kind::Events, Kind::Sessions]);
        Sweep { kind, scope: Scope { team, age, dry_run, elected }, limit }
    }

    fn page(&mut self, ids: &[&str]) -> Page {
        let after = (self.of(&["", "T1", "T2"]).to_owned(), self.of(ids).to_owned());
        let team = TeamFilter::stored(self.of(&[None, Some("T1")]).map(Team::stored));
        Page { team, after, limit: self.of(&[2, 50]) }
    }

    fn list_sessions(&mut self) -> Op {
        Op::ListSessions(self.page(&SESSIONS), self.of(&[None, Some(true), Some(false)]))
    }

    fn list_events(&mut self) -> Op {
        if self.one_in(4) {
            return Op::Count(self.of(&[None, Some("T1".to_owned())]));
        }
        let standing = self.of(&[
            None,
            Some(EventStatus::Claimed),
            Some(EventStatus::Free),
            Some(EventStatus::Processed),
            Some(EventStatus::Succeeded),
            Some(EventStatus::Rejected),
            Some(EventStatus::GaveUp),
        ]);
        let spans = [None, None, Some(Duration::from_secs(5)), Some(Duration::from_mins(1))];
        let (newer_than, older_than) = (self.of(&spans), self.of(&spans));
        Op::ListEvents(self.page(&EVENTS), EventFilter { standing, newer_than, older_than })
    }
}
