//! Draws marks and turns.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use oncegate::domain::{
    Acquire, Begin, Delivered, Detail, EventKey, Finish, FinishAs, Interruption, Mark,
    PayloadDigest, RenewTurn, RequestId, SessionKey, Timestamp, TurnId, TurnResult,
    limits::CLAIM_MEMORY,
};
use rand::{RngExt as _, seq::IndexedRandom as _};
use uuid::Uuid;

use super::{
    super::steps::{Grant, Of, Op, names},
    Dice, EVENTS, Granted, HOLDERS, SESSIONS,
};

impl Dice {
    pub(super) fn digest(&mut self) -> Option<PayloadDigest> {
        let digest = self.of(&[None, None, None, Some(1), Some(2)]);
        digest.map(|digest| PayloadDigest::from_uuid(Uuid::from_u128(digest)))
    }

    pub(super) fn delivered(&mut self) -> Delivered {
        let count = self.of(&[0, 0, 0, 1, 2]);
        let aliases = (0..count).map(|_| self.of(&EVENTS).to_owned()).collect();
        let (key, digest) = (self.event(), self.digest());
        Delivered::new(key, aliases, None, digest)
    }

    /// Several that have no name in common.
    pub(super) fn deliveries(&mut self, taken: &mut BTreeSet<EventKey>) -> Vec<Delivered> {
        let mut found = Vec::new();
        for _ in 0..self.of(&[1, 1, 1, 2, 3]) {
            let event = self.delivered();
            let names = names(&event);
            if names.iter().all(|name| !taken.contains(name)) {
                taken.extend(names);
                found.push(event);
            }
        }
        found.sort_by(|one, other| one.key.cmp(&other.key));
        found
    }

    pub(super) fn marks(&mut self) -> Vec<Mark> {
        let mut marks = Vec::new();
        for event in self.deliveries(&mut BTreeSet::new()) {
            let attempt = self.attempt();
            let request = RequestId::for_event(&event.key, Some(&attempt));
            marks.push(Mark { event, ttl: self.event_ttl(), request });
        }
        marks
    }

    pub(super) fn begin(&mut self, event: Delivered, key: Option<SessionKey>) -> Begin {
        let attempt = self.attempt();
        let acquire = key.map(|key| {
            let acquire = self.acquire(key.clone(), Some(&event.key));
            let request = RequestId::for_turn(&key, &event.key, Some(&attempt));
            Acquire { request, digest: event.digest, ..acquire }
        });
        let stream = self.stream();
        self.ends_after(CLAIM_MEMORY);
        Begin {
            request: match &acquire {
                Some(acquire) => acquire.request,
                None => RequestId::for_event(&event.key, Some(&attempt)),
            },
            event,
            // The service gives both the same.
            holder: match &acquire {
                Some(acquire) => acquire.holder.clone(),
                None => self.of(&HOLDERS).into(),
            },
            claim_ttl: self.claim_ttl(),
            max_attempts: self.of(&[1, 2, 2, 3, 5]),
            session: acquire.map(|acquire| Acquire { stream, ..acquire }),
            stream,
            resumes: self.prior(Timestamp::from_micros(0)),
            grace: Duration::from_secs(5),
        }
    }

    /// Turns that were begun lately, of which no two are about the same event or session.
    pub(super) fn some_turns(
        &mut self,
        granted: &Granted<'_>,
        most: usize,
    ) -> Vec<(Grant, TurnId)> {
        let latest: Vec<_> = granted.turns.iter().rev().take(3).collect();
        let mut found: Vec<(Grant, TurnId)> = Vec::new();
        for _ in 0..most {
            let Some((grant, turn)) = latest.choose(&mut self.random) else { break };
            let key = |turn: &TurnId| turn.lease.clone().map(|(key, _)| key);
            let is_apart = |(_, other): &(Grant, TurnId)| {
                other.event != turn.event && (key(other).is_none() || key(other) != key(turn))
            };
            if found.iter().all(is_apart) {
                found.push((**grant, (*turn).clone()));
            }
        }
        found
    }

    pub(super) fn turns(&mut self, granted: &Granted<'_>) -> Op {
        let count = self.of(&[0, 0, 1, 1, 1, 2]);
        let turns = self.some_turns(granted, count);
        let mut names: BTreeSet<EventKey> =
            turns.iter().map(|(_, turn)| turn.event.clone()).collect();
        let held = turns.iter().filter_map(|(_, turn)| turn.lease.clone());
        let mut taken: BTreeSet<SessionKey> = held.map(|(key, _)| key).collect();
        let finishes: Vec<_> = turns.into_iter().map(|turn| self.finish(granted, turn)).collect();
        let mut begins = Vec::new();
        let lately: Vec<Begin> = self.begins.iter().rev().take(4).cloned().collect();
        if finishes.is_empty() && !lately.is_empty() && self.one_in(3) {
            let begin = self.of(&lately);
            if self.one_in(2) {
                // A further delivery.
                let again = self.begin(begin.event, begin.session.map(|acquire| acquire.key));
                self.begins.push(again.clone());
                return Op::Turns(vec![again], finishes);
            }
            if self.one_in(2) {
                // As if its answer was lost.
                return Op::Turns(vec![begin], finishes);
            }
            // A retry, by another stream or by a call.
            let stream = self.stream();
            let session = begin.session.map(|acquire| Acquire { stream, ..acquire.anew(None) });
            return Op::Turns(vec![Begin { session, stream, ..begin }], finishes);
        }
        if finishes.is_empty() || self.one_in(4) {
            for event in self.deliveries(&mut names) {
                let name = self.of(&SESSIONS).to_owned();
                let key = SessionKey { team: event.key.team.clone(), session: name };
                let key = Some(key).filter(|_| !self.one_in(3));
                if key.as_ref().is_none_or(|key| taken.insert(key.clone())) {
                    begins.push(self.begin(event, key));
                }
            }
        }
        self.begins.extend(begins.iter().cloned());
        Op::Turns(begins, finishes)
    }

    fn finish(&mut self, granted: &Granted<'_>, (grant, mut turn): (Grant, TurnId)) -> Of<Finish> {
        if self.one_in(12) {
            turn.attempt += 1;
        }
        let detail = self.of(&["", "timeout", "no such channel"]).to_owned();
        let detail = Detail::optional("detail", detail).expect("a detail");
        let ending = match self.random.random_range(0..8) {
            0..3 => {
                let (bytes, name) = self.of(&[(vec![], ""), (vec![1, 2], ""), (vec![3], "text")]);
                let result = TurnResult::parse(bytes, name.to_owned()).expect("a result");
                FinishAs::Succeeded(Arc::new(result), self.event_ttl())
            }
            3 => FinishAs::Rejected(detail, self.event_ttl()),
            4..6 => FinishAs::Failed(detail),
            6 => FinishAs::Broken,
            _ => {
                let times: Vec<Timestamp> = granted.claim_times.values().copied().collect();
                let own = granted.claim_times[&grant];
                FinishAs::Abandoned(if self.one_in(4) { self.of(&times) } else { own })
            }
        };
        let unless_resumed = self.stream().filter(|_| self.one_in(2));
        Of(grant, Finish::new(turn, ending, unless_resumed))
    }

    pub(super) fn prolong(&mut self, granted: &Granted<'_>) -> Op {
        let count = self.of(&[1, 1, 2]);
        let mut asked = Vec::new();
        for (grant, turn) in self.some_turns(granted, count) {
            let (claim_ttl, lease_ttl) = (self.claim_ttl(), self.lease_ttl());
            let stream = self.stream();
            let why = self.of(&[None, Some(Interruption::Broken), Some(Interruption::Drained)]);
            let interruption = why.filter(|_| stream.is_some());
            asked.push(Of(grant, RenewTurn { turn, claim_ttl, lease_ttl, stream, interruption }));
        }
        Op::RenewTurn(asked, self.max_hold())
    }
}
