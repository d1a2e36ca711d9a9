//! Turns that a stream keeps: renewed while it lives, and failed when it has broken without an
//! end, unless their holder has carried them on.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use super::{Turn, TurnOutcome, Turns};
use crate::{
    domain::{Begin, EventRow, Finish, FinishAs, Interruption, RenewTurn, StreamId},
    session::{
        Concern, EventSender, Events, Keeper, Renewable, SessionError, StreamCaller, StreamEvent,
    },
    telemetry::call::inherit,
};

/// An event of a stream that waits for a turn and keeps it.
pub type RunEvent = StreamEvent<Turn, RunEnd>;

/// How a stream that runs a turn ends.
pub enum RunEnd {
    /// There is no turn.
    Instead(TurnOutcome),
    /// The turn was ended as the caller said. The event's row, if it is handled.
    Finished(Option<EventRow>),
}

/// How a caller closes its side of the stream that keeps its turn.
pub enum Closed {
    /// It says how the turn ends.
    With(FinishAs),
    /// It does not: the turn has failed, unless its holder has carried it on.
    Without,
    /// It was broken off: the event is free again, unless its holder has carried it on.
    Broken,
}

/// How long the last renewal of a turn may take whose stream the server ends: less than it
/// keeps the connection for the last event.
const LAST_RENEWAL: Duration = Duration::from_millis(400);

impl Renewable for Turn {
    /// A turn ends as soon as one of its parts does.
    fn ends(&self) -> Instant {
        let claim = self.claim.asked + self.claim.value.remaining;
        self.lease.as_ref().map_or(claim, |lease| claim.min(lease.ends()))
    }

    fn lost(&self, max_hold: Duration) -> SessionError {
        match &self.lease {
            Some(lease) if lease.ends() == self.ends() => lease.lost(max_hold),
            _ => SessionError::ClaimLost,
        }
    }
}

impl Turns {
    /// Begins a turn, as [`Turns::begin`] does, within `limit` and the wait, and renews it until
    /// `closed` says that the caller has closed its side. If the returned events or `closed` are
    /// dropped before that, the stream has broken: the turn is renewed for its grace, and then
    /// ends, uncounted, unless its holder has carried it on.
    ///
    /// The turn outlives this replica and the caller's connection: when the server ends either,
    /// the last event is [`SessionError::Draining`] and the turn stays its holder's. So it does,
    /// after [`SessionError::Denied`], when the caller may no longer use the stream.
    #[must_use]
    pub fn run(
        &self,
        begin: Begin,
        wait: Duration,
        limit: Duration,
        closed: oneshot::Receiver<Closed>,
        caller: StreamCaller,
    ) -> Events<Turn, RunEnd> {
        let (events, receiver) = EventSender::channel();
        let running = self.clone().run_turn(begin, wait, limit, closed, caller, events);
        tokio::spawn(inherit(running));
        receiver
    }

    async fn run_turn(
        self,
        begin: Begin,
        wait: Duration,
        limit: Duration,
        closed: oneshot::Receiver<Closed>,
        caller: StreamCaller,
        events: EventSender<Turn, RunEnd>,
    ) {
        let sessions = &self.lanes.sessions;
        let _running = match sessions.count_in(&begin.event.key.team) {
            Ok(running) => running,
            Err(refusal) => return events.end(Err(refusal)),
        };
        let stream = StreamId::random();
        let (claim_ttl, grace) = (begin.claim_ttl, begin.grace);
        let lease_ttl = begin.session.as_ref().map_or(claim_ttl, |acquire| acquire.ttl);
        // Before the request, so that no change after it is missed.
        let mut here = sessions.streams().attend();
        if let Some(acquire) = &begin.session {
            here.watch(&acquire.key);
        }
        let announce = |position| events.queued(position);
        let leaving = caller.leaving().clone();
        let request = self.begin_announcing(begin.kept_by(stream), wait, &leaving, announce);
        let turn = match events.answer(&caller, wait + limit, request).await {
            None => return,
            Some(Ok(TurnOutcome::Granted(grant))) => {
                if !grant.is_fresh() {
                    // Others may have queued before this stream began.
                    here.expect_change();
                }
                grant.accept()
            }
            Some(Ok(TurnOutcome::Busy(_))) if sessions.is_stopping() || leaving.is_cancelled() => {
                return events.end(Err(caller.why_left()));
            }
            Some(Ok(instead)) => return events.end(Ok(RunEnd::Instead(instead))),
            Some(Err(error)) => return events.end(Err(error)),
        };
        events.granted(turn.clone());
        let id = turn.id.clone();
        here.keep(Concern::Turn(id.request));
        let keeper = Keeper {
            kept: turn,
            events: &events,
            here,
            sessions,
            session: id.lease.as_ref().map(|(key, lease)| (key, *lease)),
        };
        let has_broken = AtomicBool::new(false);
        let is_broken = || has_broken.load(Ordering::Relaxed).then_some(Interruption::Broken);
        let renew = |interruption| {
            let turn = id.clone();
            let stream = Some(stream);
            self.renew(RenewTurn { turn, claim_ttl, lease_ttl, stream, interruption })
        };
        let ending = how_it_ends(caller, closed, &events, grace, &has_broken);
        let finish = match keeper.keep(ending, || renew(is_broken())).await {
            Err(why @ (SessionError::Draining | SessionError::Denied)) => {
                // The turn stays its holder's. If the store does not answer at once, an
                // attempt that lapses counts.
                let last = renew(is_broken().or(Some(Interruption::Drained)));
                let error = match timeout(LAST_RENEWAL, last).await {
                    Ok(Err(error)) if !matches!(error, SessionError::Call(_)) => error,
                    _ => why,
                };
                return events.end(Err(error));
            }
            Err(error) => return events.end(Err(error)),
            Ok(Closed::With(ending)) => Finish::new(id, ending, None),
            Ok(Closed::Without) => Finish::new(id, FinishAs::Failed(None), Some(stream)),
            Ok(Closed::Broken) => Finish::new(id, FinishAs::Broken, Some(stream)),
        };
        let finished = self.finish(finish.clone()).await;
        if let (Err(SessionError::Call(_)), Some(_)) = (&finished, finish.unless_resumed) {
            // Nobody may ask again: it is done once the store is back.
            self.lanes.post(finish);
        }
        events.end(finished.map(RunEnd::Finished));
    }
}

/// How a stream ends: as its caller says, or once its grace is over after it `has_broken`.
///
/// # Errors
/// [`SessionError::Draining`] if the server ends the connection, [`SessionError::Denied`] if the
/// caller may no longer use the stream.
async fn how_it_ends(
    mut caller: StreamCaller,
    closed: oneshot::Receiver<Closed>,
    events: &EventSender<Turn, RunEnd>,
    grace: Duration,
    has_broken: &AtomicBool,
) -> Result<Closed, SessionError> {
    tokio::select! {
        biased;
        // First: then the server breaks the stream.
        why = caller.left() => return Err(why),
        how = closed => if let Ok(how) = how {
            return Ok(how);
        },
        () = events.closed() => {}
    }
    has_broken.store(true, Ordering::Relaxed);
    caller.place = None;
    sleep(grace).await;
    Ok(Closed::Broken)
}
