//! Turns.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    Delivery, Duplicate, Error, GaveUp, InProgress, NotGranted, Stored,
    clock::{Moment, now},
    errors::Busy,
    failure::{Failure, Problem},
    hold::{Command, Flow, Hold, carry_on},
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
/// The least effort for an end whose result counts.
const FINISH_EFFORT: Duration = Duration::from_secs(5);

/// How a turn or lease is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptBy {
    /// The server renews it over a stream.
    Stream,
    /// This library renews it by calls.
    Renew,
}

/// One event, claimed, in its conversation's turn. A clone is the same turn.
///
/// Handlers that [`TurnRequest::run`](crate::TurnRequest::run) calls only look at it. A turn of
/// [`TurnRequest::begin`](crate::TurnRequest::begin) is ended by its [`TurnScope`](crate::TurnScope).
#[derive(Clone)]
pub struct Turn {
    pub(crate) flow: Arc<TurnFlow>,
}

/// What turns and leases have in common.
macro_rules! view {
    ($($hold:tt)+) => {
        /// Whether it is held. False if the handler runs unguarded, and after its end.
        #[must_use]
        pub fn held(&self) -> bool {
            let state = self.$($hold)+.state();
            state.held && !state.over
        }

        /// Waits until it is lost, and says how. It waits for ever if it is not.
        pub async fn lost(&self) -> $crate::Error {
            self.$($hold)+.lost.cancelled().await;
            self.$($hold)+.over_by()
        }

        /// Why it was lost; `None` if it was not.
        #[must_use]
        pub fn lost_reason(&self) -> Option<$crate::LossReason> {
            self.$($hold)+.state().loss
        }

        /// Waits until it has ended, also in the background: after what held it was dropped.
        pub async fn ended(&self) {
            self.$($hold)+.forgotten.cancelled().await;
        }

        /// Is cancelled as soon as it is lost, for what takes a token.
        #[must_use]
        pub fn lost_token(&self) -> tokio_util::sync::CancellationToken {
            self.$($hold)+.lost.child_token()
        }

        /// The fencing token, to be sent with each write; `None` without a session.
        #[must_use]
        pub fn fence(&self) -> Option<i64> {
            self.$($hold)+.state().fence
        }

        /// How it is kept.
        #[must_use]
        pub fn kept_by(&self) -> $crate::KeptBy {
            if self.$($hold)+.state().renewing { $crate::KeptBy::Renew } else { $crate::KeptBy::Stream }
        }

        /// How many callers wait for the session.
        #[must_use]
        pub fn waiters(&self) -> u32 {
            self.$($hold)+.state().waiters
        }

        /// The time to the trusted end, which moves with each renewal; zero once it has passed. `None`
        /// if the handler runs unguarded.
        #[must_use]
        pub fn left(&self) -> Option<std::time::Duration> {
            let state = self.$($hold)+.state();
            state.held.then(|| state.trusted_end.left())
        }

        /// How long ago the trusted end has passed; zero before.
        #[must_use]
        pub fn overdue(&self) -> std::time::Duration {
            let state = self.$($hold)+.state();
            if state.held { $crate::clock::now() - state.trusted_end } else { std::time::Duration::ZERO }
        }

        /// Call it before an outside write.
        ///
        /// # Errors
        ///
        /// That it is lost or has ended, or that its trusted end has passed.
        pub fn check(&self) -> Result<(), $crate::Error> {
            self.$($hold)+.check()
        }
    };
}
pub(crate) use view;

impl Turn {
    view!(flow.hold);

    /// Names the turn for [`Gate::adopt`](crate::Gate::adopt) in another process. Keep it secret.
    #[must_use]
    pub fn id(&self) -> String {
        self.flow.hold.state().id.clone()
    }

    /// The tenant, if the delivery or its session names it.
    #[must_use]
    pub fn team(&self) -> String {
        self.flow.hold.state().team.clone()
    }

    /// How many times the event has been claimed, this claim included. 0 if unguarded.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.flow.hold.state().attempt
    }

    /// The delivery; an empty one if the turn was adopted.
    #[must_use]
    pub fn delivery(&self) -> &Delivery {
        &self.flow.delivery
    }

    /// Refuses the event for good, because no retry can succeed: a handler returns this as its error,
    /// and its turn ends REJECTED.
    ///
    /// ```
    /// # use oncegate_client::{Error, Turn};
    /// # fn handler(turn: Turn) -> Result<(), Error> {
    /// return Err(turn.reject("the payload has no command"));
    /// # }
    /// ```
    #[must_use = "return it as the handler's error"]
    pub fn reject(&self, detail: impl Into<String>) -> Error {
        let detail = detail.into();
        self.flow.hold.state().rejection = Some(detail.clone());
        Error::Rejected { detail }
    }

    /// Ends the turn for good. The result is what the handler returned.
    pub(crate) async fn settle(&self, mut end: TurnEnd, result: &Stored) -> Result<(), Error> {
        let hold = &self.flow.hold;
        if !self.is_guarded() {
            return Ok(()); // nobody ends it, or another process does
        }
        if !hold.finish(None) {
            return Err(hold.over_by().with_value(result));
        }
        end.ttl = hold.config.event_ttl.or(self.flow.delivery.ttl).and_then(duration);
        let outcome = outcome_name(end.outcome()).unwrap_or_default();
        let until = hold.trusted_end().max(now() + FINISH_EFFORT);
        let (answer, answered) = oneshot::channel();
        hold.command(Command::End { end, until, answer });
        // Without an answer, its keeper has ended with its runtime.
        let ended = answered.await.unwrap_or_else(|_| Err(Error::Closed.into()));
        let (outcome, ended) = match ended {
            Ok(()) => (outcome, Ok(())),
            Err(problem) => self.unsettled(problem, result),
        };
        hold.config.hooks.on_end(&outcome);
        ended
    }

    /// Says what it means that an end has failed.
    fn unsettled(&self, problem: Problem, result: &Stored) -> (String, Result<(), Error>) {
        let source = match problem {
            Problem::Failed(failure) => {
                if let Some(reason) = failure.lost() {
                    let lost = self.flow.hold.lost_by(reason, failure.source).with_value(result);
                    return ("LOST".to_owned(), Err(lost));
                }
                if !failure.retryable() {
                    return ("FAILED".to_owned(), Err(failure.public()));
                }
                failure.source
            }
            Problem::Final(_) => None, // the gate was closed
        };
        let unknown = Error::OutcomeUnknown { turn_id: self.id(), value: result.clone(), source };
        ("UNKNOWN".to_owned(), Err(unknown))
    }

    /// Ends the turn FAILED. Returns what is to be awaited, if somebody waits; the keeper does it anyway.
    pub(crate) fn fail(&self, detail: impl Into<String>) -> Option<oneshot::Receiver<()>> {
        let hold = &self.flow.hold;
        if !self.is_guarded() || !hold.finish(None) {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        hold.command(Command::GiveBack { detail: detail.into(), answer: Some(answer) });
        hold.config.hooks.on_end("FAILED");
        Some(answered)
    }

    /// Leaves the turn to another process, which has the TTL to [`Gate::adopt`](crate::Gate::adopt) the
    /// returned id; it is empty if the turn is not held. The turn is over here, and what its handler
    /// returns does not end it.
    ///
    /// # Errors
    ///
    /// [`Error::TurnLost`]; or [`Error::Unavailable`] and the like, and the turn stays here.
    pub async fn detach(&self) -> Result<String, Error> {
        self.check()?;
        if !self.held() {
            return Ok(String::new());
        }
        let hold = &self.flow.hold;
        let until = hold.trusted_end().min(now() + hold.config.patience);
        if let Err(problem) = self.flow.renew(until).await {
            return Err(match problem {
                Problem::Failed(failure) => match failure.lost() {
                    Some(reason) => hold.lost_by(reason, failure.source),
                    None => failure.public(),
                },
                Problem::Final(error) => error,
            });
        }
        if !hold.finish(None) {
            return Err(hold.over_by());
        }
        hold.state().detached = true;
        hold.command(Command::Leave);
        Ok(self.id())
    }

    fn is_guarded(&self) -> bool {
        let state = self.flow.hold.state();
        state.held && !state.detached
    }

    pub(crate) fn rejection(&self) -> Option<String> {
        self.flow.hold.state().rejection.clone()
    }
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Turn");
        shown.field("attempt", &self.attempt()).field("held", &self.held());
        shown.field("fence", &self.fence()).finish_non_exhaustive()
    }
}

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

    fn open(&self, wait: Duration) -> Result<Stream<Self::News>, Problem> {
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
                    result: Stored { data: duplicate.result, result_type: duplicate.result_type },
                    outcome: outcome_name(event.outcome()),
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
}

pub(crate) fn busy(held: pb::LeaseHeld) -> NotGranted {
    NotGranted::Busy(Busy {
        retry_after: span(held.retry_after.as_ref()),
        queue_length: u32::try_from(held.queue_length).unwrap_or_default(),
        holder: held.holder,
    })
}

/// The name without its prefix; `None` for a mark.
pub(crate) fn outcome_name(outcome: TurnOutcome) -> Option<String> {
    let name = outcome.as_str_name().trim_start_matches("TURN_OUTCOME_");
    (outcome != TurnOutcome::Unspecified).then(|| name.to_owned())
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

impl Hold {
    pub(crate) fn set_waiters(&self, waiting: pb::SessionWaiting) {
        self.state().waiters = u32::try_from(waiting.waiters).unwrap_or_default();
    }
}

impl crate::options::Config {
    pub(crate) fn queued(&self, queued: pb::LeaseQueued) {
        self.hooks.on_queued(u32::try_from(queued.position).unwrap_or_default());
    }
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
