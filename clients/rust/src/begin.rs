//! How a turn or lease begins: it is asked for until it is granted, or refused for good.

use std::{future::Future, sync::Arc, time::Duration};

use crate::{
    Error,
    clock::{Moment, Pauses, now},
    failure::{Failure, Problem},
    hold::Flow,
    keep::keep,
    locked,
    stream::Stream,
};

/// In a queue the server says something every 20 s.
const QUEUE_SILENCE: Duration = Duration::from_secs(30);

/// Begins a turn or lease, and keeps it from its grant on.
pub(crate) async fn start<F, B>(flow: &Arc<F>, begin: B) -> Result<(), Problem>
where
    F: Flow,
    B: Future<Output = Result<Option<Stream<F::News>>, Problem>>,
{
    let hold = flow.hold();
    // What is dropped, or not granted, is not held any more.
    let entry = hold.gate.enter(hold)?;
    let _awaited = hold.gate.calls.token(); // until its keeper runs
    let stream = begin.await?;
    entry.keep();
    flow.begun(); // before its keeper can report its end
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
    let mut stream = flow.open(wait).await?;
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
