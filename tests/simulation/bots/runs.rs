//! Turns, by streams.

use std::pin::pin;

use futures_util::StreamExt as _;
use oncegate::{
    domain::{EventRow, FinishAs},
    session::{StreamCaller, StreamEvent},
    turn::{Closed, RunEnd},
};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::{Bot, CALL_TIMEOUT, event_name, turns::Grant};

impl Bot {
    pub(super) async fn run_turn(&mut self) {
        let (number, on, begin) = self.begin();
        let subject = event_name(number);
        let wait = self.chance.millis(0, 15_000);
        let mut is_first = true;
        while self.chance.one_in(3) {
            // The connection breaks, and it asks again.
            is_first = false;
            let (_, replica) = self.sends();
            let ((_close, closed), caller) = (oneshot::channel(), StreamCaller::default());
            let events = replica.turns.run(begin.clone(), wait, CALL_TIMEOUT, closed, caller);
            self.breaks_off(events.into_stream()).await;
            if self.chance.one_in(3) {
                // By a call that returns.
                return self.turn_of(number, on, begin, false).await;
            }
        }
        let (close, closed) = oneshot::channel();
        let (sent, replica) = self.sends();
        let events =
            replica.turns.run(begin.clone(), wait, CALL_TIMEOUT, closed, StreamCaller::default());
        let mut events = pin!(events.into_stream());
        let mut over = Instant::now() + wait + CALL_TIMEOUT;
        let (mut close, mut grant, mut has_waited) = (Some(close), None::<Grant>, false);
        loop {
            match timeout_at(over, events.next()).await {
                Ok(Some(Ok(StreamEvent::Queued(_)))) => has_waited = true,
                Ok(Some(Ok(StreamEvent::Granted(turn)))) => {
                    self.world.count(if has_waited { "hand-over of a turn" } else { "turn" });
                    grant = Some(self.granted(number, on, &begin, &turn, sent, is_first));
                    over = Instant::now() + self.work();
                }
                Ok(Some(Ok(StreamEvent::Renewed(turn)))) => {
                    if let Some(grant) = &mut grant {
                        self.renewed(grant, &turn);
                    }
                }
                Ok(Some(Ok(StreamEvent::Last(RunEnd::Finished(row))))) => {
                    self.note(|| format!("ends {subject}"));
                    self.world.count("finished turn");
                    if let Some(EventRow::Processed(row)) = row {
                        self.check(|checker| checker.handled(&subject, sent, row.expire_time));
                    }
                    break;
                }
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(error))) => {
                    self.note(|| format!("runs {subject} no longer: {error}"));
                    let parts = grant.as_ref().map(|grant| grant.parts.as_slice());
                    self.stream_ended(sent, parts.unwrap_or_default(), &error);
                    break;
                }
                Ok(None) => break,
                Err(_) => {
                    let (Some(grant), Some(close)) = (&grant, close.take()) else {
                        self.failed(sent, "run", "no answer");
                        break;
                    };
                    if self.chance.one_in(3) {
                        // It breaks off.
                        break;
                    }
                    let ending = self.ending();
                    if !matches!(ending, FinishAs::Failed(_)) {
                        self.check(|checker| checker.may_be_handled(&subject));
                    }
                    self.gave_up(grant);
                    let _ = close.send(Closed::With(ending));
                    over = Instant::now() + CALL_TIMEOUT;
                }
            }
        }
        if let Some(grant) = &grant {
            self.gave_up(grant);
        }
    }
}
