//! How a turn is asked for, renewed and ended: its calls and its stream.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    Busy, Delivery, Duplicate, Error, EventOutcome, GaveUp, InProgress, NotGranted, Stored,
    begin::carry_on,
    clock::{Moment, now},
    failure::{Failure, Problem},
    hold::{Flow, Hold},
    link::{CALL_TIMEOUT, SHORTEST},
    locked,
    options::{duration, new_request_id, span},
    pb::{
        self, BeginTurnRequest, FinishTurnRequest, RenewTurnRequest, RunTurnRequest, TurnEnd,
        TurnOutcome, run_turn_request::Step, run_turn_response::News,
        turn_service_client::TurnServiceClient,
    },
    stream::Stream,
};

const MAX_DETAIL: usize = 2048;

/// How long the stream may take to answer an end before `FinishTurn` is called.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// For an end that the author does not wait for: that of a failed handler.
const FAIL_EFFORT: Duration = Duration::from_secs(2);

pub(crate) struct TurnFlow {
    pub(crate) hold: Arc<Hold>,
    pub(crate) delivery: Delivery,
    request: Mutex<BeginTurnRequest>,
}

impl TurnFlow {
    pub(crate) fn new(hold: Arc<Hold>, delivery: Delivery) -> Arc<Self> {
        let request = hold.config.begin_request(&delivery);
        hold.state().team.clone_from(&delivery.team);
        Arc::new(Self { hold, delivery, request: Mutex::new(request) })
    }

    /// Carries on a turn that another process began.
    pub(crate) async fn adopt(
        &self,
        id: String,
    ) -> Result<Option<Stream<pb::RunTurnResponse>>, Problem> {
        self.hold.state().id = id;
        carry_on(self, &mut None).await?;
        self.hold.admit()?;
        Ok(None)
    }

    /// Takes over what the server says of the turn.
    fn read(&self, turn: Option<pb::Turn>, sent: Moment, grace: Option<Duration>) {
        let turn = turn.unwrap_or_default();
        let mut remaining = span(turn.remaining.as_ref());
        let mut elapsed = span(turn.elapsed.as_ref());
        let mut state = self.hold.state();
        state.attempt = u32::try_from(turn.attempt).unwrap_or_default();
        if let Some(lease) = turn.lease {
            state.fence = Some(lease.fencing_token);
            remaining = remaining.min(span(lease.remaining.as_ref()));
            elapsed = elapsed.min(span(lease.elapsed.as_ref()));
            state.team = lease.team_id;
        }
        drop(state);
        self.hold.trust(remaining, elapsed, sent, grace);
    }

    /// It was granted for good: a large payload need not be kept twice.
    pub(crate) fn forget_request(&self) {
        *locked(&self.request) = BeginTurnRequest::default();
    }

    fn grace(&self) -> Duration {
        self.hold.config.grace()
    }

    /// Sends an end over the stream. False if it has not been answered.
    async fn end_stream(
        &self,
        mut stream: Stream<pb::RunTurnResponse>,
        end: TurnEnd,
        until: Moment,
    ) -> Result<bool, Problem> {
        let at = now() + ANSWER_TIME.min(until.left() / 2);
        if !stream.send(RunTurnRequest { step: Some(Step::End(end)) }) {
            return Ok(false);
        }
        loop {
            match stream.read(at).await {
                Ok(pb::RunTurnResponse { news: Some(News::Finished(_)) }) => return Ok(true),
                Ok(news) => self.news(news),
                Err(Problem::Failed(failure))
                    if failure.lost().is_some() || !failure.retryable() =>
                {
                    return Err(Problem::Failed(failure));
                }
                Err(_) => return Ok(false),
            }
        }
    }
}

impl Flow for TurnFlow {
    type News = pb::RunTurnResponse;

    fn hold(&self) -> &Arc<Hold> {
        &self.hold
    }

    async fn open(&self, wait: Duration) -> Result<Stream<Self::News>, Problem> {
        let begin = {
            let mut request = locked(&self.request);
            request.wait = duration(wait);
            request.clone()
        };
        let (requests, sent) = mpsc::channel(2);
        let first = RunTurnRequest { step: Some(Step::Begin(begin)) };
        if requests.try_send(first).is_err() {
            return Err(Failure::unavailable("the stream takes no message").into());
        }
        Stream::open(&self.hold.gate.link, Some(requests), move |transport| async move {
            TurnServiceClient::new(transport).run_turn(ReceiverStream::new(sent)).await
        })
        .await
    }

    fn answer(&self, answer: Self::News) -> Result<bool, Problem> {
        let refused = match answer.news {
            Some(News::Granted(granted)) => {
                let sent = {
                    let mut state = self.hold.state();
                    let id = granted.turn.as_ref().map(|turn| turn.turn_id.clone());
                    state.id = id.unwrap_or_default();
                    state.sent
                };
                self.read(granted.turn, sent, Some(self.grace()));
                return Ok(true);
            }
            Some(News::Queued(queued)) => {
                self.hold.config.queued(queued);
                return Ok(false);
            }
            Some(News::Duplicate(duplicate)) => {
                let event = duplicate.event.unwrap_or_default();
                NotGranted::Duplicate(Duplicate {
                    result: Stored::new(duplicate.result, duplicate.result_type),
                    undecodable: None,
                    outcome: EventOutcome::read(event.outcome()),
                    detail: event.detail,
                })
            }
            Some(News::GaveUp(gave_up)) => {
                let event = gave_up.event.unwrap_or_default();
                NotGranted::GaveUp(GaveUp {
                    attempts: u32::try_from(event.attempt).unwrap_or_default(),
                    detail: event.detail,
                })
            }
            Some(News::InProgress(other)) => NotGranted::InProgress(InProgress {
                retry_after: span(other.retry_after.as_ref()),
                attempt: u32::try_from(other.attempt).unwrap_or_default(),
                holder: other.holder,
            }),
            Some(News::Busy(held)) => busy(held),
            _ => return Ok(false),
        };
        Err(Error::from(refused).into())
    }

    fn news(&self, news: Self::News) {
        match news.news {
            Some(News::Renewed(renewed)) => {
                let sent = self.hold.state().sent;
                self.read(renewed.turn, sent, Some(self.grace()));
            }
            Some(News::Waiting(waiting)) => self.hold.set_waiters(waiting),
            _ => {}
        }
    }

    /// Renews a grant that was long on its way, before the body runs.
    async fn make_sure(&self, stream: &mut Option<Stream<Self::News>>) -> Result<(), Problem> {
        if !self.hold.trusted_end().is_over() {
            return Ok(());
        }
        carry_on(self, stream).await
    }

    async fn renew(&self, until: Moment) -> Result<(), Problem> {
        let ttl = duration(self.hold.config.ttl);
        let turn_id = self.hold.state().id.clone();
        let request = RenewTurnRequest { turn_id, claim_ttl: ttl, lease_ttl: ttl };
        let link = &self.hold.gate.link;
        let time = self.hold.renew_timeout();
        let (response, sent) = link
            .call_until(until - SHORTEST, time, |transport| {
                let request = request.clone();
                async move { TurnServiceClient::new(transport).renew_turn(request).await }
            })
            .await?;
        self.read(response.turn, sent, None);
        Ok(())
    }

    /// Sends an end over the stream; without an answer there, by `FinishTurn` until the time given.
    async fn end(
        &self,
        stream: Option<Stream<Self::News>>,
        end: TurnEnd,
        until: Moment,
    ) -> Result<(), Problem> {
        if let Some(stream) = stream
            && self.end_stream(stream, end.clone(), until).await?
        {
            return Ok(());
        }
        let request = FinishTurnRequest {
            turn_id: self.hold.state().id.clone(),
            outcome: end.outcome,
            result: end.result,
            result_type: end.result_type,
            detail: end.detail,
            ttl: end.ttl,
        };
        let link = &self.hold.gate.link;
        link.call_until(until, CALL_TIMEOUT, |transport| {
            let request = request.clone();
            async move { TurnServiceClient::new(transport).finish_turn(request).await }
        })
        .await
        .map(|_| ())
    }

    async fn give_back(&self, stream: Option<Stream<Self::News>>, detail: String) {
        let end = TurnEnd {
            outcome: TurnOutcome::Failed.into(),
            detail: short(detail),
            ..TurnEnd::default()
        };
        if let Err(problem) = self.end(stream, end, now() + FAIL_EFFORT).await {
            tracing::debug!(error = %problem.public(), "the end of a turn failed");
        }
    }

    fn start_over(&self) {
        locked(&self.request).request_id = new_request_id();
    }

    fn begun(&self) {
        self.hold.config.hooks.on_begin(&self.delivery);
    }
}

pub(crate) fn busy(held: pb::LeaseHeld) -> NotGranted {
    NotGranted::Busy(Busy {
        retry_after: span(held.retry_after.as_ref()),
        queue_length: u32::try_from(held.queue_length).unwrap_or_default(),
        holder: held.holder,
    })
}

/// A detail that the server takes.
pub(crate) fn short(mut detail: String) -> String {
    if detail.len() > MAX_DETAIL {
        let ends = (0..=MAX_DETAIL).rev();
        let end = ends.into_iter().find(|end| detail.is_char_boundary(*end));
        detail.truncate(end.unwrap_or_default());
    }
    detail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_is_cut_between_characters() {
        let detail = short(format!("x{}", "é".repeat(MAX_DETAIL)));
        assert_eq!(detail.len(), MAX_DETAIL - 1);
        assert!(detail.ends_with('é'));
        assert_eq!(short("short".to_owned()), "short");
    }
}
