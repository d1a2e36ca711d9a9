//! Leases of sessions, by calls and by streams.

use std::{pin::pin, time::Duration};

use futures_util::{Stream, StreamExt as _};
use oncegate::{
    domain::{Acquire, Labels, Lease, OwnLease, Renew, RequestId, Ttl},
    session::{AcquireOutcome, Measured, SessionError, StreamCaller, StreamEvent},
};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    super::checker::{GrantAnswer, GrantId},
    Bot, CALL_TIMEOUT, SESSIONS, is_fault, outcome, session, session_name, ttl,
};

/// Until when a holder relies on what is left of its grant: no longer than its TTL. After a step
/// of the clock back more is left than that, until a renewal, which may have no answer.
pub(super) fn relies_until(asked: Instant, remaining: Duration, ttl: Ttl) -> Instant {
    asked + remaining.min(ttl.span())
}

/// What a caller that called at `sent` is answered of a lease.
pub(super) fn lease_answer(lease: &Measured<Lease>, sent: Instant, ttl: Ttl) -> GrantAnswer {
    GrantAnswer {
        id: GrantId::Lease(lease.value.id),
        number: lease.value.token.0,
        sent,
        asked: lease.asked,
        until: relies_until(lease.asked, lease.value.remaining, ttl),
    }
}

impl Bot {
    fn acquire(&mut self) -> (String, Acquire) {
        let number = self.chance.below(SESSIONS);
        let key = session(number);
        let given = self.request();
        let epic = self.chance.one_in(20).then(|| "epic".to_owned());
        let acquire = Acquire {
            request: RequestId::for_session(&key, Some(&given)),
            key,
            holder: self.name.clone(),
            lease: OwnLease::random(),
            ttl: ttl(self.chance.millis(3_000, 15_000)),
            epic,
            labels: Labels::default(),
            stream: None,
            resumes: None,
            digest: None,
        };
        (session_name(number), acquire)
    }

    pub(super) async fn lease(&mut self) {
        let (subject, acquire) = self.acquire();
        self.lease_of(subject, acquire).await;
    }

    async fn lease_of(&mut self, subject: String, acquire: Acquire) {
        let wait = self.wait();
        for _ in 0..3 {
            let (sent, replica) = self.sends();
            let call = replica.sessions.acquire(&acquire, wait);
            let answer = timeout(wait + CALL_TIMEOUT, call).await;
            match &answer {
                Ok(Ok(AcquireOutcome::Held(_))) => return self.world.count("busy session"),
                Ok(Err(error)) if !is_fault(error) => {
                    return self.note(|| format!("is refused {subject}: {error}"));
                }
                Ok(Err(_)) | Err(_) => {
                    self.note(|| format!("has no answer about {subject}: {}", outcome(&answer)));
                    self.failed(sent, "acquire", &outcome(&answer));
                    sleep(self.chance.millis(10, 1_000)).await;
                    continue;
                }
                Ok(Ok(AcquireOutcome::Granted(_))) => {}
            }
            let Ok(Ok(AcquireOutcome::Granted(grant))) = answer else { unreachable!() };
            let lease = grant.accept();
            self.world.count("lease");
            self.note(|| format!("has {subject}: token {}", lease.value.token.0));
            self.check(|checker| {
                checker.granted(&subject, &lease_answer(&lease, sent, acquire.ttl));
            });
            return self.keep_lease(&subject, &acquire, &lease.value).await;
        }
    }

    /// Works under a lease, renews it at times, and releases it, or crashes.
    async fn keep_lease(&mut self, subject: &str, acquire: &Acquire, lease: &Lease) {
        let (id, key) = (GrantId::Lease(lease.id), acquire.key.clone());
        let grants = [(subject.to_owned(), id)];
        if self.chance.one_in(4) {
            self.repeat_acquire(subject, acquire, lease).await;
        }
        for _ in 0..self.chance.below(4) {
            sleep(self.work()).await;
            self.check(|checker| checker.writes(subject, id));
            let (sent, replica) = self.sends();
            let renew = Renew { key: key.clone(), lease: lease.id, ttl: acquire.ttl, stream: None };
            let answer = timeout(CALL_TIMEOUT, replica.sessions.renew(renew)).await;
            match &answer {
                Ok(Ok(renewed)) => {
                    self.world.count("renewed lease");
                    self.note(|| format!("renews {subject}"));
                    let until = relies_until(renewed.asked, renewed.value.remaining, acquire.ttl);
                    self.check(|checker| checker.renewed(subject, id, renewed.asked, until));
                }
                Ok(Err(error)) if !is_fault(error) => {
                    self.note(|| format!("loses {subject}: {error}"));
                    self.refused(&grants, &error.to_string());
                    return self.check(|checker| checker.ended(subject, id));
                }
                Ok(Err(_)) | Err(_) => self.failed(sent, "renew", &outcome(&answer)),
            }
        }
        self.check(|checker| checker.writes(subject, id));
        self.check(|checker| checker.ended(subject, id));
        if self.chance.one_in(5) {
            // It crashes.
            return;
        }
        for is_first in [true, false, false] {
            let (sent, replica) = self.sends();
            let release = replica.sessions.release(key.clone(), lease.id);
            let answer = timeout(CALL_TIMEOUT, release).await;
            if let Ok(Ok(is_released)) = answer {
                self.world.count("released lease");
                if is_first && !is_released {
                    self.refused(&grants, "not released");
                }
                return self.note(|| format!("releases {subject}: {is_released}"));
            }
            self.failed(sent, "release", &outcome(&answer));
            sleep(self.chance.millis(10, 1_000)).await;
        }
    }

    /// Repeats the request of a lease that it has: the answer must be the same lease.
    async fn repeat_acquire(&mut self, subject: &str, acquire: &Acquire, lease: &Lease) {
        let grants = [(subject.to_owned(), GrantId::Lease(lease.id))];
        let (sent, replica) = self.sends();
        let call = replica.sessions.acquire(acquire, Duration::ZERO);
        let answer = timeout(CALL_TIMEOUT, call).await;
        self.note(|| format!("repeats its request for {subject}: {}", outcome(&answer)));
        match answer {
            Ok(Ok(AcquireOutcome::Granted(grant))) => {
                let again = grant.accept();
                self.world.count("repeated lease");
                if again.value.id != lease.id {
                    self.refused(&grants, "the repeated request was granted another lease");
                }
                self.check(|checker| {
                    checker.granted(subject, &lease_answer(&again, sent, acquire.ttl));
                });
                if again.value.id != lease.id {
                    let other = GrantId::Lease(again.value.id);
                    self.check(|checker| checker.ended(subject, other));
                }
            }
            Ok(Ok(AcquireOutcome::Held(_))) => {
                self.refused(&grants, "the repeated request found the session held");
            }
            Ok(Err(error)) if !is_fault(&error) => self.refused(&grants, &error.to_string()),
            Ok(Err(error)) => self.failed(sent, "acquire", &error.to_string()),
            Err(_) => self.failed(sent, "acquire", "no answer"),
        }
    }

    pub(super) async fn hold(&mut self) {
        let (subject, acquire) = self.acquire();
        let (wait, ttl) = (self.chance.millis(0, 20_000), acquire.ttl);
        while self.chance.one_in(3) {
            // The connection breaks, and it asks again.
            let (_, replica) = self.sends();
            let caller = StreamCaller::default();
            let events = replica.sessions.hold(acquire.clone(), wait, CALL_TIMEOUT, caller);
            self.breaks_off(events.into_stream()).await;
            if self.chance.one_in(3) {
                // By a call that returns.
                return self.lease_of(subject, acquire).await;
            }
        }
        let (sent, replica) = self.sends();
        let events = replica.sessions.hold(acquire, wait, CALL_TIMEOUT, StreamCaller::default());
        let mut events = pin!(events.into_stream());
        let mut over = Instant::now() + wait + CALL_TIMEOUT;
        let (mut id, mut has_waited) = (None, false);
        loop {
            match timeout_at(over, events.next()).await {
                Ok(Some(Ok(StreamEvent::Granted(lease)))) => {
                    let answer = lease_answer(&lease, sent, ttl);
                    id = Some(answer.id);
                    self.world.count(if has_waited { "hand-over of a lease" } else { "lease" });
                    self.note(|| format!("holds {subject}: token {}", answer.number));
                    self.check(|checker| {
                        checker.granted(&subject, &answer);
                        checker.writes(&subject, answer.id);
                    });
                    over = Instant::now() + self.work();
                }
                Ok(Some(Ok(StreamEvent::Renewed(lease)))) => {
                    let GrantAnswer { id, asked, until, .. } = lease_answer(&lease, sent, ttl);
                    self.world.count("renewed lease");
                    self.check(|checker| {
                        checker.renewed(&subject, id, asked, until);
                        checker.writes(&subject, id);
                    });
                }
                Ok(Some(Ok(StreamEvent::Queued(position)))) => {
                    has_waited = true;
                    self.note(|| format!("is number {position} for {subject}"));
                }
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(error))) => {
                    self.note(|| format!("holds {subject} no longer: {error}"));
                    self.stream_ended(sent, id.map(|id| (subject.clone(), id)).as_slice(), &error);
                    break;
                }
                Ok(None) => break,
                Err(_) => {
                    if id.is_none() {
                        self.failed(sent, "hold", "no answer");
                    }
                    break;
                }
            }
        }
        if let Some(id) = id {
            self.check(|checker| checker.ended(&subject, id));
        }
    }

    /// Follows a stream for a moment, and goes away.
    pub(super) async fn breaks_off(&mut self, events: impl Stream) {
        let moment = self.chance.millis(0, 300);
        let _ = timeout(moment, events.for_each(async |_| ())).await;
    }

    /// An error ended the stream that kept these grants.
    pub(super) fn stream_ended(
        &self,
        sent: Instant,
        grants: &[(String, GrantId)],
        error: &SessionError,
    ) {
        if is_fault(error) {
            self.failed(sent, "stream", &error.to_string());
        } else {
            self.refused(grants, &error.to_string());
        }
    }
}
