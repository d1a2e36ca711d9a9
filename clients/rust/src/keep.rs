//! The keeper of a turn or lease: a task that runs beside the body, until it has ended.

use std::sync::Arc;

use tokio::{sync::oneshot, time::sleep};

use crate::{
    Error, LossReason,
    failure::Problem,
    hold::{Command, Flow},
    stream::Stream,
};

/// Keeps it until it is lost, or its holder has ended it.
pub(crate) async fn keep<F: Flow>(
    flow: Arc<F>,
    stream: Option<Stream<F::News>>,
    mut commands: oneshot::Receiver<Command>,
) {
    let Some((stream, command)) = keep_until_ended(&*flow, stream, &mut commands).await else {
        return; // it was lost
    };
    let hold = flow.hold();
    match command {
        Command::End { end, until, answer } => {
            let mut ended = flow.end(stream, end, until).await;
            if let Err(Problem::Failed(failure)) = &mut ended
                && failure.lost().is_none()
                && !failure.retryable()
            {
                // The server refuses the end itself, such as a result that is too large.
                flow.give_back(None, failure.message.clone()).await;
            }
            hold.gate.forget(hold);
            let _ = answer.send(ended);
        }
        Command::GiveBack { detail, answer } => {
            flow.give_back(stream, detail).await;
            hold.gate.forget(hold);
            if let Some(answer) = answer {
                let _ = answer.send(());
            }
        }
        Command::Leave => {
            drop(stream);
            hold.gate.forget(hold);
        }
    }
}

type Ending<F> = (Option<Stream<<F as Flow>::News>>, Command);

/// Returns how to end it, with the stream if it is still open; `None` if it is lost.
async fn keep_until_ended<F: Flow>(
    flow: &F,
    mut stream: Option<Stream<F::News>>,
    commands: &mut oneshot::Receiver<Command>,
) -> Option<Ending<F>> {
    let hold = flow.hold();
    while let Some(open) = &mut stream {
        let read = tokio::select! {
            biased;
            command = &mut *commands => return Some((stream, command.ok()?)),
            read = open.read(hold.probe_at()) => read,
        };
        match read {
            Ok(news) => flow.news(news),
            Err(problem) => {
                stream = None;
                if let Problem::Failed(failure) = &problem {
                    if let Some(reason) = failure.loss() {
                        return lost(flow, reason, commands).await;
                    }
                    if failure.reason == "DRAINING" {
                        hold.trust_without_stream();
                    }
                }
                hold.state().renewing = true;
            }
        }
    }
    loop {
        let renewed = tokio::select! {
            biased;
            command = &mut *commands => return Some((None, command.ok()?)),
            renewed = flow.renew(hold.trusted_end()) => renewed,
        };
        let left = hold.trusted_end().left();
        let loss = match renewed {
            Err(Problem::Final(Error::Closed)) => Some(LossReason::Closed),
            Err(Problem::Failed(failure)) => Some(failure.loss().unwrap_or(LossReason::Expired)),
            Err(Problem::Final(_)) => Some(LossReason::Expired),
            // Before max_hold, the server grants less than the margin.
            Ok(()) => left.is_zero().then_some(LossReason::Expired),
        };
        if let Some(reason) = loss {
            return lost(flow, reason, commands).await;
        }
        // A turn that is longer than its lease has less of the TTL left.
        tokio::select! {
            biased;
            command = &mut *commands => return Some((None, command.ok()?)),
            () = sleep((hold.config.ttl / 3).min(left / 2)) => {}
        }
    }
}

/// It is lost, unless its holder has ended it just now, and says how.
async fn lost<F: Flow>(
    flow: &F,
    reason: LossReason,
    commands: &mut oneshot::Receiver<Command>,
) -> Option<Ending<F>> {
    if flow.hold().lose(reason) {
        return None;
    }
    commands.await.ok().map(|command| (None, command))
}
