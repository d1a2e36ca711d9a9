//! Turns, by calls.

use std::{sync::Arc, time::Duration};

use oncegate::{
    domain::{
        Acquire, Begin, Detail, EventRow, Finish, FinishAs, Labels, OwnLease, RenewTurn, RequestId,
        StoredEvent, Ttl, TurnResult,
    },
    turn::{Turn, TurnOutcome},
};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{
    super::checker::{Checker, GrantAnswer, GrantId},
    Bot, CALL_TIMEOUT, EVENTS, SESSIONS, delivered, event_name, is_fault,
    leases::{lease_answer, relies_until},
    outcome, session, session_name, ttl,
};

/// The least time that an event counts as handled, in milliseconds.
const LEAST_HANDLED: u64 = 5_000;

/// A turn that a bot was granted.
pub(super) struct Grant {
    /// The event and the session, and what of each was granted.
    pub(super) parts: Vec<(String, GrantId)>,
    /// When one of them is over at the latest: counted from the answer.
    over: Instant,
    claim_ttl: Ttl,
    lease_ttl: Ttl,
}

impl Grant {
    /// Whether neither an operator nor a step of the clock may have changed its end.
    fn ended_in_time(&self, checker: &Checker) -> bool {
        self.parts.iter().all(|(subject, id)| checker.ended_in_time(subject, *id))
    }
}

/// When a turn is over at the latest that was just answered.
fn over(turn: &Turn) -> Instant {
    let of_claim = turn.claim.value.remaining;
    let of_lease = turn.lease.as_ref().map_or(of_claim, |lease| lease.value.remaining);
    Instant::now() + of_claim.min(of_lease)
}

impl Bot {
    pub(super) fn begin(&mut self) -> (u64, Option<u64>, Begin) {
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
                lease: OwnLease::random(),
                ttl: ttl(lease_ttl),
                epic: None,
                labels: Labels::default(),
                stream: None,
                resumes: None,
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
            resumes: None,
            grace: self.chance.millis(0, 3_000),
        };
        (number, on, begin)
    }

    /// A turn was granted; `is_new` unless it was found by a repeated request.
    pub(super) fn granted(
        &self,
        number: u64,
        on: Option<u64>,
        begin: &Begin,
        turn: &Turn,
        sent: Instant,
        is_new: bool,
    ) -> Grant {
        let claim_ttl = begin.claim_ttl;
        let lease_ttl = begin.session.as_ref().map_or(claim_ttl, |acquire| acquire.ttl);
        let subject = event_name(number);
        let claim = &turn.claim.value;
        let answer = GrantAnswer {
            id: GrantId::Turn(turn.id.request, claim.attempt),
            number: claim.attempt.into(),
            sent,
            asked: turn.claim.asked,
            until: relies_until(turn.claim.asked, claim.remaining, claim_ttl),
        };
        self.note(|| format!("has {subject}: attempt {}", claim.attempt));
        self.check(|checker| {
            if is_new {
                checker.must_be_new(&subject, sent, claim.claim_time, "granted");
            }
            checker.granted(&subject, &answer);
        });
        let mut grant =
            Grant { parts: vec![(subject, answer.id)], over: over(turn), claim_ttl, lease_ttl };
        if let Some((on, lease)) = on.zip(turn.lease.as_ref()) {
            let (subject, answer) = (session_name(on), lease_answer(lease, sent, lease_ttl));
            self.check(|checker| {
                checker.granted(&subject, &answer);
                checker.writes(&subject, answer.id);
            });
            grant.parts.push((subject, answer.id));
        }
        grant
    }

    pub(super) fn renewed(&self, grant: &mut Grant, turn: &Turn) {
        self.world.count("renewed turn");
        grant.over = over(turn);
        let Turn { claim, lease, .. } = turn;
        let until = relies_until(claim.asked, claim.value.remaining, grant.claim_ttl);
        let claim = (claim.asked, until);
        let lease = lease.as_ref().map(|lease| {
            let until = relies_until(lease.asked, lease.value.remaining, grant.lease_ttl);
            (lease.asked, until)
        });
        self.check(|checker| {
            for (subject, id) in &grant.parts {
                let (asked, until) = match id {
                    GrantId::Turn(..) => claim,
                    GrantId::Lease(_) => lease.unwrap_or(claim),
                };
                checker.renewed(subject, *id, asked, until);
                if let GrantId::Lease(_) = id {
                    checker.writes(subject, *id);
                }
            }
        });
    }

    pub(super) fn gave_up(&self, grant: &Grant) {
        self.check(|checker| {
            grant.parts.iter().for_each(|(subject, id)| checker.ended(subject, *id));
        });
    }

    pub(super) async fn turn(&mut self) {
        let (number, on, begin) = self.begin();
        self.turn_of(number, on, begin, true).await;
    }

    /// A turn by calls that return, whose request is new or not.
    pub(super) async fn turn_of(
        &mut self,
        number: u64,
        on: Option<u64>,
        begin: Begin,
        is_new: bool,
    ) {
        let wait = self.wait();
        for _ in 0..3 {
            let (sent, replica) = self.sends();
            let call = replica.turns.begin(begin.clone(), wait);
            let answer = timeout(wait + CALL_TIMEOUT, call).await;
            match &answer {
                Ok(Ok(TurnOutcome::Granted(_))) => {}
                Ok(Ok(TurnOutcome::Duplicate(row, _))) => {
                    self.world.count("duplicate");
                    let record = (row.request, row.process_time);
                    return self.check(|checker| {
                        checker.found(&event_name(number), sent, record);
                    });
                }
                Ok(Ok(TurnOutcome::InProgress(_) | TurnOutcome::Busy(_))) => {
                    return self.world.count("busy event or session");
                }
                Ok(Err(error)) if !is_fault(error) => return,
                Ok(Err(_)) | Err(_) => {
                    self.failed(sent, "begin", &outcome(&answer));
                    sleep(self.chance.millis(10, 1_000)).await;
                    continue;
                }
            }
            let Ok(Ok(TurnOutcome::Granted(grant))) = answer else { unreachable!() };
            let turn = grant.accept();
            self.world.count("turn");
            let mut grant = self.granted(number, on, &begin, &turn, sent, is_new);
            if self.chance.one_in(4) {
                self.repeat_begin(number, on, &begin, &turn, &mut grant).await;
            }
            return self.keep_turn(number, &begin, turn, grant, is_new).await;
        }
    }

    /// Repeats the request of a turn that it has: the answer must be the same turn.
    async fn repeat_begin(
        &mut self,
        number: u64,
        on: Option<u64>,
        begin: &Begin,
        turn: &Turn,
        grant: &mut Grant,
    ) {
        let (sent, replica) = self.sends();
        let call = replica.turns.begin(begin.clone(), Duration::ZERO);
        let answer = timeout(CALL_TIMEOUT, call).await;
        self.note(|| format!("repeats its request for event {number}: {}", outcome(&answer)));
        match answer {
            Ok(Ok(TurnOutcome::Granted(again))) => {
                let again = again.accept();
                self.world.count("repeated turn");
                if again.id == turn.id {
                    *grant = self.granted(number, on, begin, &again, sent, false);
                } else {
                    self.refused(&grant.parts, "the repeated request was granted another turn");
                    let other = self.granted(number, on, begin, &again, sent, false);
                    self.gave_up(&other);
                }
            }
            Ok(Ok(_)) => self.refused(&grant.parts, "the repeated request was granted no turn"),
            Ok(Err(error)) if !is_fault(&error) => self.refused(&grant.parts, &error.to_string()),
            Ok(Err(error)) => self.failed(sent, "begin", &error.to_string()),
            Err(_) => self.failed(sent, "begin", "no answer"),
        }
    }

    /// Renews a turn, and ends it. `is_end_known`: no stream that broke off may make it longer.
    async fn keep_turn(
        &mut self,
        number: u64,
        begin: &Begin,
        turn: Turn,
        mut grant: Grant,
        mut is_end_known: bool,
    ) {
        let subject = event_name(number);
        for _ in 0..self.chance.below(3) {
            sleep(self.work()).await;
            let prolong = RenewTurn {
                turn: turn.id.clone(),
                claim_ttl: begin.claim_ttl,
                lease_ttl: grant.lease_ttl,
                stream: None,
                interruption: None,
            };
            let (sent, replica) = self.sends();
            let answer = timeout(CALL_TIMEOUT, replica.turns.renew(prolong)).await;
            match &answer {
                Ok(Ok(renewed)) => self.renewed(&mut grant, renewed),
                Ok(Err(error)) if !is_fault(error) => {
                    self.note(|| format!("loses {subject}: {error}"));
                    self.refused(&grant.parts, &error.to_string());
                    return self.gave_up(&grant);
                }
                Ok(Err(_)) | Err(_) => {
                    // It may have made it longer.
                    is_end_known = false;
                    self.failed(sent, "renew", &outcome(&answer));
                }
            }
        }
        if self.chance.one_in(6) {
            // It ends just after its end, while the session may still be nobody else's.
            sleep_until(grant.over + self.chance.millis(1, 500)).await;
        }
        if self.chance.one_in(6) {
            // It crashes.
            return self.gave_up(&grant);
        }
        let finish = Finish::new(turn.id, self.ending(), None);
        self.gave_up(&grant);
        self.finish(&subject, &finish, &grant, is_end_known).await;
    }

    /// Ends a turn, with repetitions until there is an answer.
    async fn finish(&mut self, subject: &str, finish: &Finish, grant: &Grant, is_end_known: bool) {
        let is_failure = matches!(finish.ending, FinishAs::Failed(_));
        if !is_failure {
            self.check(|checker| checker.may_be_handled(subject));
        }
        let begun = Instant::now();
        for is_first in [true, false, false] {
            let (sent, replica) = self.sends();
            let answer = timeout(CALL_TIMEOUT, replica.turns.finish(finish.clone())).await;
            self.note(|| format!("ends {subject}: {}", outcome(&answer)));
            match &answer {
                Ok(Ok(row)) => {
                    self.world.count("finished turn");
                    self.check(|checker| {
                        if let Some(EventRow::Processed(row)) = row {
                            checker.handled(subject, sent, row.expire_time);
                        }
                        // A repetition is answered as the first was, later as well.
                        let is_late = is_first && is_end_known && sent > grant.over;
                        if is_late && grant.ended_in_time(checker) {
                            checker.violations.push(format!("{subject}: ended after its end"));
                        }
                    });
                    if let Some(EventRow::Processed(row)) = row
                        && self.chance.one_in(4)
                    {
                        self.repeat_finish(subject, finish, row).await;
                    }
                    return;
                }
                Ok(Err(error)) if !is_fault(error) => {
                    // An event that failed may have gone to another since.
                    if is_first
                        || (!is_failure && begun.elapsed() < Duration::from_millis(LEAST_HANDLED))
                    {
                        self.refused(&grant.parts, &error.to_string());
                    }
                    return;
                }
                Ok(Err(_)) | Err(_) => {
                    self.failed(sent, "finish", &outcome(&answer));
                    sleep(self.chance.millis(10, 1_000)).await;
                }
            }
        }
    }

    /// Repeats a finish that was answered `row`: the answer must be the same.
    async fn repeat_finish(&mut self, subject: &str, finish: &Finish, row: &StoredEvent) {
        let (sent, replica) = self.sends();
        let answer = timeout(CALL_TIMEOUT, replica.turns.finish(finish.clone())).await;
        let now = self.world.clock.now();
        let is_same = match &answer {
            Ok(Ok(Some(EventRow::Processed(again)))) => again == row,
            Ok(Err(error)) if is_fault(error) => {
                return self.failed(sent, "finish", &error.to_string());
            }
            Err(_) => return self.failed(sent, "finish", "no answer"),
            Ok(_) => false,
        };
        self.world.count("repeated finish");
        self.check(|checker| {
            if !is_same && checker.handled_until(subject, now) == Some(row.expire_time) {
                let text = format!("{subject}: a repeated finish had another answer than {row:?}");
                checker.violations.push(text);
            }
        });
    }

    pub(super) fn ending(&mut self) -> FinishAs {
        let span = ttl(self.chance.millis(LEAST_HANDLED, 60_000));
        match self.chance.below(4) {
            0 => FinishAs::Failed(Detail::optional("detail", "failed".into()).unwrap()),
            1 => FinishAs::Rejected(None, span),
            _ => FinishAs::Succeeded(Arc::new(TurnResult::default()), span),
        }
    }
}
