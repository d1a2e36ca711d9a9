//! What a turn and a lease have in common: whether it is held, until when, and how it was lost. The
//! holder uses it, and the keeper, a task that runs beside the body.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::Duration,
};

use tokio::{sync::oneshot, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    EndOutcome, Error, LossReason,
    clock::{Moment, now, ring_at},
    errors::Cause,
    failure::Problem,
    gate::GateInner,
    locked,
    options::Config,
    pb::{SessionWaiting, TurnEnd},
    stream::Stream,
};

/// What a turn and a lease do differently.
pub(crate) trait Flow: Send + Sync + Sized + 'static {
    /// A message of the stream.
    type News: Send + 'static;

    fn hold(&self) -> &Arc<Hold>;
    /// Makes the stream, and sends the request.
    fn open(
        &self,
        wait: Duration,
    ) -> impl Future<Output = Result<Stream<Self::News>, Problem>> + Send;
    /// Reads a message of a stream that is not granted yet: whether it is the grant.
    fn answer(&self, news: Self::News) -> Result<bool, Problem>;
    /// Reads a message of a stream that is granted.
    fn news(&self, news: Self::News);
    /// Makes a grant one that is trusted.
    fn make_sure(
        &self,
        stream: &mut Option<Stream<Self::News>>,
    ) -> impl Future<Output = Result<(), Problem>> + Send;
    /// Extends it over the other connection.
    fn renew(&self, until: Moment) -> impl Future<Output = Result<(), Problem>> + Send;
    /// Ends it as its holder wants.
    fn end(
        &self,
        stream: Option<Stream<Self::News>>,
        end: TurnEnd,
        until: Moment,
    ) -> impl Future<Output = Result<(), Problem>> + Send;
    /// Ends it so that another run gets it at once. Its own failure does not count.
    fn give_back(
        &self,
        stream: Option<Stream<Self::News>>,
        detail: String,
    ) -> impl Future<Output = ()> + Send;
    /// Makes the next request an attempt of its own.
    fn start_over(&self);
    /// It is granted, and its body is about to run.
    fn begun(&self) {}
}

/// How the holder, or the gate, ends it. The keeper gets one.
pub(crate) enum Command {
    /// Its result counts.
    End { end: TurnEnd, until: Moment, answer: oneshot::Sender<Result<(), Problem>> },
    /// Another run is to get it.
    GiveBack { detail: String, answer: Option<oneshot::Sender<()>> },
    /// Another process carries it on.
    Leave,
}

pub(crate) struct Hold {
    pub(crate) gate: Arc<GateInner>,
    pub(crate) config: Config,
    pub(crate) is_lease: bool,
    state: Mutex<State>,
    commands: Mutex<Option<oneshot::Sender<Command>>>,
    /// For the keeper, once there is one.
    pub(crate) orders: Mutex<Option<oneshot::Receiver<Command>>>,
    /// It was refused before it was granted.
    pub(crate) refused: CancellationToken,
    /// It was lost.
    pub(crate) lost: CancellationToken,
    /// It is not held any more, and the server has been told as well as it could be.
    pub(crate) forgotten: CancellationToken,
}

#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each says a thing of its own")]
pub(crate) struct State {
    /// The body has got it.
    pub(crate) held: bool,
    /// Ended or lost. The first of the two counts.
    pub(crate) over: bool,
    pub(crate) loss: Option<LossReason>,
    /// What it was lost by.
    loss_source: Cause,
    /// How it ended, once that has been reported.
    pub(crate) ended: Option<EndOutcome>,
    /// Another process carries it on.
    pub(crate) detached: bool,
    pub(crate) sent: Moment,
    pub(crate) trusted_end: Moment,
    /// The trusted end of what no stream keeps: that of the server, without the grace.
    valid_end: Moment,
    probe_at: Moment,
    pub(crate) renewing: bool,
    pub(crate) fence: Option<i64>,
    pub(crate) waiters: u32,
    // Of a turn.
    pub(crate) id: String,
    pub(crate) team: String,
    pub(crate) attempt: u32,
    /// Why the handler refused the event, and whether that error is still kept.
    pub(crate) rejection: Option<(String, Weak<()>)>,
}

impl Hold {
    pub(crate) fn new(gate: Arc<GateInner>, config: Config, is_lease: bool) -> Arc<Self> {
        let (commands, orders) = oneshot::channel();
        Arc::new(Self {
            gate,
            config,
            is_lease,
            state: Mutex::default(),
            commands: Mutex::new(Some(commands)),
            orders: Mutex::new(Some(orders)),
            refused: CancellationToken::new(),
            lost: CancellationToken::new(),
            forgotten: CancellationToken::new(),
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Gives it to the body.
    pub(crate) fn admit(&self) -> Result<(), Error> {
        let mut state = self.state();
        if self.refused.is_cancelled() {
            return Err(Error::Closed);
        }
        state.held = true;
        Ok(())
    }

    /// Ends early if it is not wanted any more.
    pub(crate) async fn pause(&self, delay: Duration) -> Result<(), Problem> {
        tokio::select! {
            biased;
            () = self.refused.cancelled() => Err(Error::Closed.into()),
            () = sleep(delay) => Ok(()),
        }
    }

    /// The gate is closed. If it has not begun, its beginning returns [`Error::Closed`].
    ///
    /// The server grants nothing to a cancelled stream. A grant that is on its way lasts for its grace.
    pub(crate) fn refuse(&self) {
        let state = self.state();
        if !state.held {
            self.refused.cancel();
        }
    }

    /// Makes it over, with its loss if it is one. False if it was over before.
    pub(crate) fn finish(&self, loss: Option<(LossReason, Cause)>) -> bool {
        let mut state = self.state();
        if state.over {
            return false;
        }
        state.over = true;
        if let Some((reason, source)) = loss {
            (state.loss, state.loss_source) = (Some(reason), source);
        }
        true
    }

    /// It ended without its holder, unless it was over before.
    pub(crate) fn lose(&self, reason: LossReason, source: Cause) -> bool {
        let is_lost = self.finish(Some((reason, source)));
        if is_lost {
            self.report_loss(reason);
            self.has_ended(EndOutcome::Lost);
        }
        is_lost
    }

    /// It is not held any more, and the server has been told as well as it could be. The first outcome is
    /// reported: also to a holder that does not wait for its end.
    pub(crate) fn has_ended(&self, outcome: EndOutcome) {
        let is_first = {
            let mut state = self.state();
            let is_first = state.ended.is_none();
            state.ended.get_or_insert(outcome);
            is_first
        };
        if is_first && !self.is_lease {
            self.config.hooks.on_end(outcome);
        }
        self.gate.forget(self);
    }

    /// The gate ends it under its holder.
    pub(crate) fn close(&self) {
        let held = self.state().held;
        if held && self.finish(Some((LossReason::Closed, Cause::default()))) {
            self.report_loss(LossReason::Closed);
            let detail = "the gate was closed".to_owned();
            // Its keeper reports its end once the server knows.
            if !self.command(Command::GiveBack { detail, answer: None }) {
                self.has_ended(EndOutcome::Lost);
            }
        }
    }

    fn report_loss(&self, reason: LossReason) {
        self.lost.cancel();
        let what = if self.is_lease { "lease" } else { "turn" };
        let status = self.state().loss_source.text();
        tracing::warn!(%reason, status, "a {what} was lost");
        self.config.hooks.on_lost(reason);
    }

    /// Only the call that ended it may send commands to its keeper. False if there is none.
    pub(crate) fn command(&self, command: Command) -> bool {
        let keeper = locked(&self.commands).take();
        keeper.is_some_and(|keeper| keeper.send(command).is_ok())
    }

    pub(crate) fn lost_by(&self, reason: LossReason, source: Cause) -> Error {
        if self.is_lease {
            Error::LeaseLost { reason, source }
        } else {
            Error::TurnLost { reason, value: None, source }
        }
    }

    /// Why it is over.
    pub(crate) fn over_by(&self) -> Error {
        let state = self.state();
        let (reason, source) = (state.loss.unwrap_or(LossReason::Ended), state.loss_source.clone());
        drop(state);
        self.lost_by(reason, source)
    }

    /// Its errors have no source.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let state = self.state();
        let reason = if state.over {
            state.loss.unwrap_or(LossReason::Ended)
        } else if state.held && state.trusted_end.is_over() {
            LossReason::Expired
        } else {
            return Ok(());
        };
        Err(self.lost_by(reason, Cause::default()))
    }

    /// Moves the trusted end: the server said how long is left, and how long it took to say so.
    ///
    /// With a grace: the server may see a break of the stream that this side does not see, and keeps a
    /// turn of the stream for so long only.
    pub(crate) fn trust(
        &self,
        remaining: Duration,
        elapsed: Duration,
        sent: Moment,
        grace: Option<Duration>,
    ) {
        let lasts = grace.map_or(remaining, |grace| remaining.min(grace));
        let ttl = self.config.ttl;
        let mut state = self.state();
        state.trusted_end = sent + elapsed + lasts - self.config.margin();
        state.valid_end = state.trusted_end + remaining.saturating_sub(lasts);
        // A call renews after silence. Early, if it is needed anyway: the trusted end comes before the
        // server's next renewal.
        let left = state.trusted_end.left();
        let mut latest = left * 9 / 10;
        if latest <= ttl / 3 {
            latest = left / 2;
        }
        state.probe_at = now() + (ttl * 2 / 5).min(latest);
    }

    /// The server keeps its grants, although the stream has ended.
    pub(crate) fn trust_without_stream(&self) {
        let mut state = self.state();
        state.trusted_end = state.valid_end;
    }

    pub(crate) fn set_waiters(&self, waiting: SessionWaiting) {
        self.state().waiters = u32::try_from(waiting.waiters).unwrap_or_default();
    }

    pub(crate) fn probe_at(&self) -> Moment {
        self.state().probe_at
    }

    /// How long one renewal may take before it is repeated.
    pub(crate) fn renew_timeout(&self) -> Duration {
        (self.config.ttl / 20).max(Duration::from_millis(500))
    }

    /// Waits until the trusted end has passed without news. A renewal moves it.
    pub(crate) async fn expired(&self) {
        loop {
            ring_at(self.trusted_end()).await;
            if self.trusted_end().is_over() {
                return;
            }
        }
    }

    pub(crate) fn trusted_end(&self) -> Moment {
        self.state().trusted_end
    }
}
