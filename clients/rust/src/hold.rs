//! What a turn and a lease have in common: how each is granted, kept, carried on and lost. The
//! holder uses it, and the keeper, a task that runs beside the body.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{sync::oneshot, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, LossReason,
    clock::{Moment, Pauses, now},
    failure::{Failure, Problem},
    gate::GateInner,
    keep::keep,
    locked,
    options::Config,
    pb::TurnEnd,
    stream::Stream,
};

/// In a queue the server says something every 20 s.
const QUEUE_SILENCE: Duration = Duration::from_secs(30);

/// What a turn and a lease do differently.
pub(crate) trait Flow: Send + Sync + Sized + 'static {
    /// A message of the stream.
    type News: Send + 'static;

    fn hold(&self) -> &Arc<Hold>;
    /// Makes the stream, and sends the request.
    fn open(&self, wait: Duration) -> Result<Stream<Self::News>, Problem>;
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
    orders: Mutex<Option<oneshot::Receiver<Command>>>,
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
    pub(crate) rejection: Option<String>,
}

/// Begins a turn or lease, and keeps it from its grant on.
pub(crate) async fn start<F, B>(flow: &Arc<F>, begin: B) -> Result<(), Problem>
where
    F: Flow,
    B: Future<Output = Result<Option<Stream<F::News>>, Problem>>,
{
    let hold = flow.hold();
    // What is dropped, or not granted, is not held any more.
    let entry = hold.gate.enter(hold)?;
    let stream = begin.await?;
    entry.keep();
    if let Some(orders) = locked(&hold.orders).take() {
        hold.gate.tasks.spawn(keep(flow.clone(), stream, orders));
    }
    Ok(())
}

/// Waits until it is granted, and asks for another one if it is lost before it is trusted.
pub(crate) async fn begin<F: Flow>(flow: &Arc<F>) -> Result<Option<Stream<F::News>>, Problem> {
    let hold = flow.hold();
    let wait_until = now() + hold.config.wait;
    let mut pauses = Pauses::default();
    loop {
        let mut unadmitted = Unadmitted { flow, stream: Some(ask(flow, wait_until).await?) };
        match flow.make_sure(&mut unadmitted.stream).await {
            Ok(()) => {
                hold.admit()?;
                return Ok(unadmitted.release());
            }
            Err(Problem::Final(error)) if error.is_lost() => drop(unadmitted.release()),
            Err(problem) => return Err(problem),
        }
        if now() >= wait_until + hold.config.patience {
            return Err(Failure::unavailable("grants are lost on their way").into());
        }
        flow.start_over();
        hold.pause(pauses.next()).await?;
    }
}

/// A grant that the body has not got yet. If it does not get it after all, it goes back to the server.
struct Unadmitted<'a, F: Flow> {
    flow: &'a Arc<F>,
    stream: Option<Stream<F::News>>,
}

impl<F: Flow> Unadmitted<'_, F> {
    fn release(mut self) -> Option<Stream<F::News>> {
        let stream = self.stream.take();
        std::mem::forget(self);
        stream
    }
}

impl<F: Flow> Drop for Unadmitted<'_, F> {
    fn drop(&mut self) {
        let (flow, stream) = (self.flow.clone(), self.stream.take());
        let gate = self.flow.hold().gate.clone();
        gate.spawn(async move {
            flow.give_back(stream, "its holder did not begin".to_owned()).await;
        });
    }
}

/// Waits for the grant. A broken request is repeated with its request id.
async fn ask<F: Flow>(flow: &Arc<F>, wait_until: Moment) -> Result<Stream<F::News>, Problem> {
    let hold = flow.hold();
    let patience = hold.config.patience;
    let mut pauses = Pauses::default();
    let mut outage: Option<Moment> = None; // since when the server is not heard of
    let mut is_renewed = false;
    loop {
        let sent = now();
        let mut heard = false;
        let silent_at = (outage.unwrap_or(sent) + patience).max(sent + Duration::from_millis(500));
        hold.state().sent = sent;
        let asked = tokio::select! {
            biased;
            () = hold.refused.cancelled() => return Err(Error::Closed.into()),
            asked = ask_once(flow, wait_until - sent, silent_at, &mut heard) => asked,
        };
        let failure = match asked {
            Ok(stream) => return Ok(stream),
            Err(Problem::Failed(failure)) => failure,
            Err(problem) => return Err(problem),
        };
        if failure.outdated && !is_renewed {
            is_renewed = true;
            continue;
        }
        if heard {
            outage = Some(now());
        }
        let until = *outage.get_or_insert(sent) + patience;
        let left = until.left();
        // The last attempt is at the end of the patience, unless the server asks for more.
        let delay = failure.retry_after.unwrap_or_else(|| pauses.next().min(left));
        if !failure.retryable() || left.is_zero() || delay > left {
            return Err(Problem::Failed(failure));
        }
        hold.pause(delay).await?;
    }
}

/// Sends the request, and reads the answers.
async fn ask_once<F: Flow>(
    flow: &Arc<F>,
    wait: Duration,
    mut silent_at: Moment,
    heard: &mut bool,
) -> Result<Stream<F::News>, Problem> {
    let mut stream = flow.open(wait)?;
    loop {
        let news = stream.read(silent_at).await?;
        if flow.answer(news)? {
            return Ok(stream);
        }
        *heard = true;
        silent_at = now() + QUEUE_SILENCE;
    }
}

/// Renews from now on, instead of the stream.
pub(crate) async fn carry_on<F: Flow>(
    flow: &F,
    stream: &mut Option<Stream<F::News>>,
) -> Result<(), Problem> {
    *stream = None;
    confirm(flow).await?;
    flow.hold().state().renewing = true;
    Ok(())
}

/// Renews before the body runs, within the patience, until the trusted end lies ahead.
pub(crate) async fn confirm<F: Flow>(flow: &F) -> Result<(), Problem> {
    let hold = flow.hold();
    let until = now() + hold.config.ttl.min(hold.config.patience).max(Duration::from_secs(1));
    let mut pauses = Pauses::default();
    loop {
        let renewed = tokio::select! {
            biased;
            () = hold.refused.cancelled() => return Err(Error::Closed.into()),
            renewed = flow.renew(until) => renewed,
        };
        match renewed {
            Err(Problem::Failed(failure)) => {
                return Err(match failure.lost() {
                    Some(reason) => hold.lost_by(reason, failure.source).into(),
                    None => Problem::Failed(failure),
                });
            }
            Err(problem) => return Err(problem),
            Ok(()) => {}
        }
        if !hold.state().trusted_end.is_over() {
            return Ok(());
        }
        if until.is_over() {
            let message = "renewals are answered after their trusted end";
            return Err(Failure::unavailable(message).into());
        }
        hold.pause(pauses.next()).await?;
    }
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
    async fn pause(&self, delay: Duration) -> Result<(), Problem> {
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

    /// Makes it over, with the reason of its loss if it is one. False if it was over before.
    pub(crate) fn finish(&self, loss: Option<LossReason>) -> bool {
        let mut state = self.state();
        if state.over {
            return false;
        }
        (state.over, state.loss) = (true, loss);
        true
    }

    /// It ended without its holder, unless it was over before.
    pub(crate) fn lose(&self, reason: LossReason) -> bool {
        let is_lost = self.finish(Some(reason));
        if is_lost {
            self.report_loss(reason);
        }
        is_lost
    }

    /// The gate ends it under its holder.
    pub(crate) fn close(&self) {
        let held = self.state().held;
        if held && self.finish(Some(LossReason::Closed)) {
            self.report_loss(LossReason::Closed);
            self.command(Command::GiveBack {
                detail: "the gate was closed".to_owned(),
                answer: None,
            });
        }
    }

    fn report_loss(&self, reason: LossReason) {
        self.lost.cancel();
        let what = if self.is_lease { "lease" } else { "turn" };
        tracing::warn!(%reason, "a {what} was lost");
        self.config.hooks.on_lost(reason);
        if !self.is_lease {
            self.config.hooks.on_end("LOST");
        }
        self.gate.forget(self);
    }

    /// Only the call that ended it may send commands to its keeper. False if there is none.
    pub(crate) fn command(&self, command: Command) -> bool {
        let keeper = locked(&self.commands).take();
        keeper.is_some_and(|keeper| keeper.send(command).is_ok())
    }

    pub(crate) fn lost_by(&self, reason: LossReason, source: Option<tonic::Status>) -> Error {
        if self.is_lease {
            Error::LeaseLost { reason, source }
        } else {
            Error::TurnLost { reason, value: None, source }
        }
    }

    /// Why it is over.
    pub(crate) fn over_by(&self) -> Error {
        let reason = self.state().loss.unwrap_or(LossReason::Ended);
        self.lost_by(reason, None)
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let state = self.state();
        if state.over {
            drop(state);
            return Err(self.over_by());
        }
        if state.held && state.trusted_end.is_over() {
            return Err(self.lost_by(LossReason::Expired, None));
        }
        Ok(())
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

    pub(crate) fn probe_at(&self) -> Moment {
        self.state().probe_at
    }

    /// How long one renewal may take before it is repeated.
    pub(crate) fn renew_timeout(&self) -> Duration {
        (self.config.ttl / 20).max(Duration::from_millis(500))
    }

    pub(crate) fn trusted_end(&self) -> Moment {
        self.state().trusted_end
    }
}
