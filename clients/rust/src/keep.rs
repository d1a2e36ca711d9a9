//! The keeper of a turn or lease: a task that runs beside the body, until it has ended.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::{
    EndOutcome, Error, LossReason,
    clock::{now, sleep_until},
    errors::Cause,
    failure::Problem,
    hold::{Command, Flow, Hold},
    pb::TurnOutcome,
    stream::Stream,
};

/// Keeps it until it is lost, or its holder has ended it.
pub(crate) async fn keep<F: Flow>(
    flow: Arc<F>,
    stream: Option<Stream<F::News>>,
    mut commands: oneshot::Receiver<Command>,
) {
    let _kept = Kept(flow.hold().clone());
    let Some((stream, command)) = keep_until_ended(&*flow, stream, &mut commands).await else {
        return; // it was lost
    };
    let hold = flow.hold();
    match command {
        Command::End { end, until, answer } => {
            let wanted = end.outcome();
            let ended = flow.end(stream, end, until).await;
            if let Err(Problem::Failed(failure)) = &ended
                && failure.lost().is_none()
                && !failure.retryable()
            {
                // The server refuses the end itself, such as a result that is too large.
                flow.give_back(None, failure.message.clone()).await;
            }
            hold.has_ended(came_of(wanted, &ended)); // before what waits for the end goes on
            let _ = answer.send(ended);
        }
        Command::GiveBack { detail, answer } => {
            flow.give_back(stream, detail).await;
            let is_lost = hold.state().loss.is_some();
            hold.has_ended(if is_lost { EndOutcome::Lost } else { EndOutcome::Failed });
            if let Some(answer) = answer {
                let _ = answer.send(());
            }
        }
        Command::Leave => drop(stream),
    }
}

/// It is not held any more when its keeper has ended, however that was: also with its runtime.
struct Kept(Arc<Hold>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.lose(LossReason::Closed, Cause::default());
        if self.0.state().detached {
            self.0.gate.forget(&self.0);
        } else {
            self.0.has_ended(EndOutcome::Unknown); // unless its end was reported
        }
    }
}

fn came_of(wanted: TurnOutcome, ended: &Result<(), Problem>) -> EndOutcome {
    match ended {
        Ok(()) if wanted == TurnOutcome::Rejected => EndOutcome::Rejected,
        Ok(()) => EndOutcome::Succeeded,
        Err(Problem::Failed(failure)) if failure.lost().is_some() => EndOutcome::Lost,
        Err(Problem::Failed(failure)) if !failure.retryable() => EndOutcome::Failed,
        Err(_) => EndOutcome::Unknown,
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
            () = hold.expired() => {
                return lost(flow, LossReason::Expired, Cause::default(), commands).await;
            }
        };
        match read {
            Ok(news) => flow.news(news),
            Err(problem) => {
                stream = None;
                if let Problem::Failed(failure) = problem {
                    if let Some(reason) = failure.loss() {
                        return lost(flow, reason, failure.source, commands).await;
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
            () = hold.expired() => {
                return lost(flow, LossReason::Expired, Cause::default(), commands).await;
            }
        };
        let left = hold.trusted_end().left();
        let loss = match renewed {
            Err(Problem::Final(Error::Closed)) => Some((LossReason::Closed, Cause::default())),
            Err(Problem::Failed(failure)) => {
                Some((failure.loss().unwrap_or(LossReason::Expired), failure.source))
            }
            Err(Problem::Final(error)) => {
                tracing::warn!(%error, "renewals are not possible");
                Some((LossReason::Expired, Cause::default()))
            }
            // Before max_hold, the server grants less than the margin.
            Ok(()) => left.is_zero().then(|| (LossReason::Expired, Cause::default())),
        };
        if let Some((reason, source)) = loss {
            return lost(flow, reason, source, commands).await;
        }
        // A turn that is longer than its lease has less of the TTL left.
        tokio::select! {
            biased;
            command = &mut *commands => return Some((None, command.ok()?)),
            () = sleep_until(now() + (hold.config.ttl / 3).min(left / 2)) => {}
            () = hold.gate.link.closed.cancelled() => {}
        }
    }
}

/// It is lost, unless its holder has ended it just now, and says how.
async fn lost<F: Flow>(
    flow: &F,
    reason: LossReason,
    source: Cause,
    commands: &mut oneshot::Receiver<Command>,
) -> Option<Ending<F>> {
    if flow.hold().lose(reason, source) {
        return None;
    }
    commands.await.ok().map(|command| (None, command))
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use tokio::time::timeout;

    use super::*;
    use crate::{
        Gate,
        clock::{Moment, tests::SUSPENDED},
        locked,
        pb::TurnEnd,
    };

    /// No renewal of it is answered.
    struct Unanswered(Arc<Hold>);

    impl Flow for Unanswered {
        type News = ();

        fn hold(&self) -> &Arc<Hold> {
            &self.0
        }

        async fn open(&self, _: Duration) -> Result<Stream<()>, Problem> {
            pending().await
        }

        fn answer(&self, (): ()) -> Result<bool, Problem> {
            Ok(false)
        }

        fn news(&self, (): ()) {}

        async fn make_sure(&self, _: &mut Option<Stream<()>>) -> Result<(), Problem> {
            Ok(())
        }

        async fn renew(&self, _: Moment) -> Result<(), Problem> {
            pending().await
        }

        async fn end(&self, _: Option<Stream<()>>, _: TurnEnd, _: Moment) -> Result<(), Problem> {
            Ok(())
        }

        async fn give_back(&self, _: Option<Stream<()>>, _: String) {}

        fn start_over(&self) {}
    }

    fn held(gate: &Gate) -> (Arc<Hold>, impl Future<Output = ()> + Send + 'static) {
        let hold = Hold::new(gate.inner.clone(), gate.inner.config.clone(), false);
        hold.trust(Duration::from_secs(45), Duration::ZERO, now(), None);
        hold.admit().expect("it is not refused");
        let orders = locked(&hold.orders).take().expect("they are not taken");
        let keeper = keep(Arc::new(Unanswered(hold.clone())), None, orders);
        (hold, keeper)
    }

    #[tokio::test]
    async fn it_ends_while_the_machine_is_suspended() {
        let gate = Gate::builder().server("127.0.0.1:1").build().expect("a gate");
        let (hold, keeper) = held(&gate);
        let keeper = tokio::spawn(keeper);
        tokio::task::yield_now().await;
        assert!(!hold.lost.is_cancelled());
        SUSPENDED.set(Duration::from_secs(600));
        timeout(Duration::from_secs(5), hold.lost.cancelled()).await.expect("it is lost");
        assert_eq!(hold.state().loss, Some(LossReason::Expired));
        keeper.await.expect("no panic");
        assert!(hold.forgotten.is_cancelled());
    }

    #[tokio::test]
    async fn it_is_not_held_without_its_keeper() {
        let gate = Gate::builder().server("127.0.0.1:1").build().expect("a gate");
        let (hold, keeper) = held(&gate);
        let keeper = tokio::spawn(keeper);
        tokio::task::yield_now().await;
        keeper.abort();
        hold.forgotten.cancelled().await;
        assert_eq!(hold.state().loss, Some(LossReason::Closed));
        assert_eq!(hold.state().ended, Some(EndOutcome::Lost));
    }

    #[tokio::test]
    async fn an_end_whose_keeper_vanishes_is_unknown() {
        let gate = Gate::builder().server("127.0.0.1:1").build().expect("a gate");
        let (hold, keeper) = held(&gate);
        let keeper = tokio::spawn(keeper);
        tokio::task::yield_now().await;
        assert!(hold.finish(None));
        keeper.abort();
        hold.forgotten.cancelled().await;
        assert_eq!(hold.state().ended, Some(EndOutcome::Unknown));
        assert_eq!(hold.state().loss, None);
    }
}
