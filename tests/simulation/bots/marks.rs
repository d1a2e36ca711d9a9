//! Marks of events.

use oncegate::domain::{Mark, MarkOutcome, RequestId};
use tokio::time::{sleep, timeout};

use super::{
    super::checker::FirstMark, Bot, CALL_TIMEOUT, EVENTS, delivered, event, event_name, outcome,
    ttl,
};

impl Bot {
    pub(super) async fn mark(&mut self) {
        let number = self.chance.below(EVENTS);
        let subject = event_name(number);
        let event = delivered(number, &mut self.chance);
        let given = self.request();
        // Of the event, whichever of its names comes first.
        let request = RequestId::for_event(&event.key, Some(&given));
        let mark = Mark { event, ttl: ttl(self.chance.millis(5_000, 90_000)), request };
        self.check(|checker| checker.may_be_handled(&subject));
        for _ in 0..3 {
            let (sent, replica) = self.sends();
            let answer = timeout(CALL_TIMEOUT, replica.dedup.mark(mark.clone())).await;
            self.note(|| format!("marks {subject}: {}", outcome(&answer)));
            let now = self.world.clock.now();
            match &answer {
                Ok(Ok(MarkOutcome::First(row))) => {
                    self.world.count("first mark");
                    let (from, until) = (row.process_time, row.expire_time);
                    self.check(|checker| {
                        if checker.first(&subject, FirstMark { request, sent, from, until }, now) {
                            // It may be decided without a look, and then written later: what
                            // has expired by then may have been swept.
                            checker.must_be_new(&subject, sent, now, "first");
                        }
                        checker.handled(&subject, sent, until);
                        checker.found(&subject, sent, (row.request, from));
                    });
                    // Sometimes it repeats the request.
                    if !self.chance.one_in(3) {
                        return;
                    }
                }
                Ok(Ok(other)) => {
                    self.check(|checker| checker.not_first(&subject, request, now));
                    if let MarkOutcome::Duplicate(row) = other {
                        self.world.count("duplicate");
                        let record = (row.request, row.process_time);
                        self.check(|checker| checker.found(&subject, sent, record));
                    }
                    return;
                }
                Ok(Err(_)) | Err(_) => {
                    self.failed(sent, "mark", &outcome(&answer));
                    sleep(self.chance.millis(10, 2_000)).await;
                }
            }
        }
    }

    pub(super) async fn look(&mut self) {
        let number = self.chance.below(EVENTS);
        let (sent, replica) = self.sends();
        let row = timeout(CALL_TIMEOUT, replica.dedup.look(event(number), false)).await;
        self.note(|| format!("looks at event {number}: {}", outcome(&row)));
        if !matches!(row, Ok(Ok(_))) {
            self.failed(sent, "look", &outcome(&row));
        }
    }
}
