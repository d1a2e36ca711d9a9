//! Turns that are kept by a stream: renewed for as long as it lives, and failed once it has
//! broken without a word, unless their holder has carried them on.

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
    domain::{Begin, Ending, EventRow, Finish, Prolong, StreamId, Ttl},
    lane::CallError,
    session::{Caller, LEAST_PAUSE, SessionError, UNREAD, renewed_by, tell},
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

/// How a caller closes its side of the stream that keeps its turn.
pub enum Closed {
    /// It says how the turn ends.
    With(Ending),
    /// It does not: the turn has failed, unless its holder has carried it on.
    Without,
}

/// A stream that keeps a turn.
struct Stream {
    id: StreamId,
    claim_ttl: Ttl,
    lease_ttl: Ttl,
    /// How long the turn stays its holder's once the stream has broken.
    grace: Duration,
}

impl Turns {
    /// Begins a turn, as [`Turns::begin`] does, within `limit` and the wait, and renews it
    /// for as long as the answer is kept, until it is told by `closed` that the caller has
    /// closed its side. If either is dropped before that, the stream has broken: the turn
    /// is renewed for its grace, and has failed then unless its holder has carried it on.
    ///
    /// The turn outlives this replica and the caller's connection: when either is ended by
    /// the server, the last event is [`SessionError::Draining`] and the turn stays its
    /// holder's.
    #[must_use]
    pub fn run(
        &self,
        begin: Begin,
        wait: Duration,
        limit: Duration,
        closed: oneshot::Receiver<Closed>,
        caller: Caller,
    ) -> Receiver<Told> {
        let (events, told) = mpsc::channel(UNREAD + 2);
        tokio::spawn(self.clone().keep(begin, wait, limit, closed, caller, events));
        told
    }

    async fn keep(
        self,
        begin: Begin,
        wait: Duration,
        limit: Duration,
        closed: oneshot::Receiver<Closed>,
        caller: Caller,
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
        let stream = Stream {
            id: StreamId::random(),
            claim_ttl: begin.claim_ttl,
            lease_ttl: begin.session.as_ref().map_or(begin.claim_ttl, |acquire| acquire.ttl),
            grace: begin.grace,
        };
        let begin = begin.kept_by(stream.id);
        let announce = |place| tell(&events, Running::Queued(place));
        let asking = timeout(wait + limit, self.begin_telling(begin, wait, announce));
        let outcome = tokio::select! {
            // What was asked for, or granted, is given up as it is dropped.
            () = events.closed() => return,
            () = caller.leaving.cancelled() => Err(SessionError::Draining),
            outcome = asking => outcome.unwrap_or_else(|_| {
                Err(CallError::from(StoreError::unavailable("timed out waiting for the answer")).into())
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
        if let Some(told) = self.attend(turn, asked, &stream, closed, caller, &events).await {
            last_word.send(told);
        }
    }

    /// Renews `turn` until it is to end, and ends it. Answers the last word.
    async fn attend(
        &self,
        turn: Turn,
        asked: Instant,
        stream: &Stream,
        mut closed: oneshot::Receiver<Closed>,
        mut caller: Caller,
        events: &Sender<Told>,
    ) -> Option<Told> {
        let (id, mut sent, mut ends) = (turn.id.clone(), asked, asked + remaining(&turn));
        let here = self.streams.attend((id.request, id.attempt));
        // Set once the stream has broken: the turn stays its holder's until then.
        let mut grace_ends = None;
        let how = loop {
            let pause = (ends.saturating_duration_since(sent) / 3).max(LEAST_PAUSE);
            tokio::select! {
                biased;
                // First: then it is the server that breaks the stream.
                () = caller.leaving.cancelled(), if grace_ends.is_none() => {
                    return Some(Err(SessionError::Draining));
                }
                how = &mut closed, if grace_ends.is_none() => {
                    let Ok(how) = how else {
                        caller.place = None;
                        grace_ends = Some(Instant::now() + stream.grace);
                        continue;
                    };
                    break how;
                }
                () = events.closed(), if grace_ends.is_none() => {
                    caller.place = None;
                    grace_ends = Some(Instant::now() + stream.grace);
                    continue;
                }
                () = self.turning.sessions.stopping() => return Some(Err(SessionError::Draining)),
                () = sleep_until(grace_ends.unwrap_or(ends)), if grace_ends.is_some() => {
                    break Closed::Without;
                }
                // The row says by whom, if at all.
                () = here.replaced() => {}
                () = sleep_until((sent + pause).min(ends)) => {}
            }
            sent = Instant::now();
            let Stream { claim_ttl, lease_ttl, .. } = *stream;
            let turn = id.clone();
            let renewal =
                self.renew(Prolong { turn, claim_ttl, lease_ttl, stream: Some(stream.id) });
            match timeout_at(renewed_by(sent, ends), renewal).await {
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
        let finish = match how {
            Closed::With(ending) => Finish { turn: id, ending, unless_resumed: None },
            Closed::Without => {
                Finish { turn: id, ending: Ending::Failed, unless_resumed: Some(stream.id) }
            }
        };
        let finished = self.finish(finish.clone()).await;
        if let (Err(SessionError::Call(_)), Some(_)) = (&finished, finish.unless_resumed) {
            // Nobody may ask again: it is done once the store is back.
            self.turning.post(finish);
        }
        Some(finished.map(Running::Finished))
    }
}

/// How long a turn still runs: as long as both of its parts do.
fn remaining(turn: &Turn) -> Duration {
    let lease = turn.lease.as_ref().map_or(Duration::MAX, |lease| lease.remaining);
    turn.claim.remaining.min(lease)
}
