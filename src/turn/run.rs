//! Turns that are kept for as long as somebody listens: renewed meanwhile, and failed
//! when they go away without a word.

use std::time::Duration;

use tokio::{
    sync::{
        mpsc::{self, Receiver, Sender},
        oneshot,
    },
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::{Turn, TurnOutcome, Turns};
use crate::{
    domain::{Begin, Ending, EventRow, Finish, Prolong, Ttl},
    lane::CallError,
    session::{LEAST_PAUSE, SessionError, UNREAD, tell},
    store::StoreError,
};

/// What somebody who runs a turn by listening is told.
pub enum Running {
    /// Their place in the session's queue, from 1.
    Queued(usize),
    /// The turn is theirs.
    Granted(Turn),
    /// It runs on.
    Renewed(Turn),
    /// There is no turn; the last that is told.
    Instead(TurnOutcome),
    /// It was ended as they said; the last that is told. The event's row, where it is
    /// handled.
    Finished(Option<EventRow>),
}

type Told = Result<Running, SessionError>;

impl Turns {
    /// Begins a turn, as [`Turns::begin`] does, within `limit` and the wait, and renews it
    /// for as long as the answer is kept, until it is told by `ending` how it ends. Once
    /// either is dropped before that, the turn has failed.
    ///
    /// The turn outlives this replica: when it drains, it tells
    /// [`SessionError::Draining`] and leaves the turn to its holder.
    #[must_use]
    pub fn run(
        &self,
        begin: Begin,
        wait: Duration,
        limit: Duration,
        ending: oneshot::Receiver<Ending>,
    ) -> Receiver<Told> {
        let (events, told) = mpsc::channel(UNREAD + 2);
        tokio::spawn(self.clone().keep(begin, wait, limit, ending, events));
        told
    }

    async fn keep(
        self,
        begin: Begin,
        wait: Duration,
        limit: Duration,
        ending: oneshot::Receiver<Ending>,
        events: Sender<Told>,
    ) {
        // There is room for the grant and the last word, whatever is unread.
        let (Ok(first_word), Ok(last_word)) =
            (events.clone().reserve_owned().await, events.clone().reserve_owned().await)
        else {
            return;
        };
        let Some(_running) = self.turning.sessions.count_in() else {
            last_word.send(Err(SessionError::QueueFull));
            return;
        };
        let lease_ttl = begin.session.as_ref().map_or(begin.claim_ttl, |acquire| acquire.ttl);
        let ttls = (begin.claim_ttl, lease_ttl);
        let announce = |place| tell(&events, Running::Queued(place));
        let asking = timeout(wait + limit, self.begin_telling(begin, wait, announce));
        let outcome = tokio::select! {
            // What was asked for, or granted, is given up as it is dropped.
            () = events.closed() => return,
            outcome = asking => outcome.unwrap_or_else(|_| {
                Err(CallError::from(StoreError::unavailable("no answer in time")).into())
            }),
        };
        let (asked, turn) = match outcome {
            Ok(TurnOutcome::Granted(grant)) => (grant.asked, grant.accept()),
            Ok(TurnOutcome::Busy(_)) if self.turning.sessions.is_stopping() => {
                last_word.send(Err(SessionError::Draining));
                return;
            }
            Ok(instead) => {
                last_word.send(Ok(Running::Instead(instead)));
                return;
            }
            Err(error) => {
                last_word.send(Err(error));
                return;
            }
        };
        first_word.send(Ok(Running::Granted(turn.clone())));
        if let Some(told) = self.attend(turn, asked, ttls, ending, &events).await {
            last_word.send(told);
        }
    }

    /// Renews `turn` until it is to end, and ends it. Answers the last word.
    async fn attend(
        &self,
        turn: Turn,
        asked: Instant,
        ttls: (Ttl, Ttl),
        mut ending: oneshot::Receiver<Ending>,
        events: &Sender<Told>,
    ) -> Option<Told> {
        let (id, mut sent, mut ends) = (turn.id.clone(), asked, asked + remaining(&turn));
        let how = loop {
            let pause = (ends.saturating_duration_since(sent) / 3).max(LEAST_PAUSE);
            tokio::select! {
                () = events.closed() => break Ending::Failed,
                how = &mut ending => break how.unwrap_or(Ending::Failed),
                () = self.turning.sessions.stopping() => return Some(Err(SessionError::Draining)),
                () = sleep_until((sent + pause).min(ends)) => {}
            }
            sent = Instant::now();
            let (claim_ttl, lease_ttl) = ttls;
            let renewal = self.renew(Prolong { turn: id.clone(), claim_ttl, lease_ttl });
            match timeout_at(ends, renewal).await {
                Ok(Ok(renewed)) => {
                    ends = sent + remaining(&renewed);
                    tell(events, Running::Renewed(renewed));
                }
                // It is tried again, when a third of what is left is over.
                Ok(Err(SessionError::Call(_))) if Instant::now() < ends => {}
                Ok(Err(SessionError::Call(_))) | Err(_) => {
                    return Some(Err(SessionError::ClaimLost));
                }
                Ok(Err(error)) => return Some(Err(error)),
            }
        };
        let finished = self.finish(Finish { turn: id, ending: how }).await;
        Some(finished.map(Running::Finished))
    }
}

/// How long a turn still runs: as long as both of its parts do.
fn remaining(turn: &Turn) -> Duration {
    let lease = turn.lease.as_ref().map_or(Duration::MAX, |lease| lease.remaining);
    turn.claim.remaining.min(lease)
}
