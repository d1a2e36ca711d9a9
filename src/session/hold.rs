//! Leases that a stream keeps for their holders: renewed while the stream lives, and released
//! when it ends.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    AcquireOutcome, Measured, SessionError, Sessions, StreamCaller,
    events::{EventSender, Events, StreamEvent},
    keeper::{Keeper, Renewable},
    lane_ops::SessionCall,
    streams::Concern,
};
use crate::{
    domain::{Acquire, Held, Lease, Release, Renew, StreamId},
    telemetry::call::inherit,
};

/// An event of a stream that waits for a lease and keeps it. The last one is that another has
/// the session, and the wait is over.
pub type HoldEvent = StreamEvent<Measured<Lease>, Measured<Held>>;

impl Renewable for Measured<Lease> {
    fn ends(&self) -> Instant {
        self.asked + self.value.remaining
    }

    fn lost(&self, max_hold: Duration) -> SessionError {
        if self.value.held_for() >= max_hold {
            SessionError::HeldTooLong(max_hold)
        } else {
            SessionError::LeaseLost
        }
    }
}

impl Sessions {
    /// Acquires the lease of a session, as [`Sessions::acquire`] does, within `limit` and the
    /// wait; and renews it until the returned events are dropped. Then it gives up the place in
    /// the queue or releases the lease, unless its holder has carried that on by another call.
    ///
    /// The lease outlives this replica and the caller's connection: when the server ends
    /// either, the last event is [`SessionError::Draining`] and the lease stays its holder's.
    /// So it does, after [`SessionError::Denied`], when the caller may no longer use the stream.
    #[must_use]
    pub fn hold(
        &self,
        acquire: Acquire,
        wait: Duration,
        limit: Duration,
        caller: StreamCaller,
    ) -> Events<Measured<Lease>, Measured<Held>> {
        let (events, receiver) = EventSender::channel();
        let acquire = Acquire { stream: Some(StreamId::random()), ..acquire };
        let holding = self.clone().run_hold(acquire, wait, limit, caller, events);
        tokio::spawn(inherit(holding));
        receiver
    }

    async fn run_hold(
        self,
        acquire: Acquire,
        wait: Duration,
        limit: Duration,
        caller: StreamCaller,
        events: EventSender<Measured<Lease>, Measured<Held>>,
    ) {
        let _holding = match self.queues.hold(&acquire.key.team) {
            Ok(holding) => holding,
            Err(refusal) => return events.end(Err(refusal)),
        };
        // Before the request, so that no change after it is missed.
        let mut here = self.streams.attend();
        here.watch(&acquire.key);
        let announce = |position| events.queued(position);
        let request = self.acquire_announcing(&acquire, wait, caller.leaving(), announce);
        let grant = match events.answer(&caller, wait + limit, request).await {
            None => return,
            Some(Ok(AcquireOutcome::Granted(grant))) => grant,
            Some(Ok(AcquireOutcome::Held(_)))
                if self.stop.is_cancelled() || caller.leaving().is_cancelled() =>
            {
                return events.end(Err(caller.why_left()));
            }
            Some(Ok(AcquireOutcome::Held(held))) => return events.end(Ok(held)),
            Some(Err(error)) => return events.end(Err(error)),
        };
        if !grant.is_fresh() {
            // Others may have queued before this stream began.
            here.expect_change();
        }
        let lease = grant.accept();
        events.granted(lease.clone());
        let id = lease.value.id;
        here.keep(Concern::Lease(id));
        let keeper = Keeper {
            kept: lease,
            events: &events,
            here,
            sessions: &self,
            session: Some((&acquire.key, id)),
        };
        let ending = async {
            tokio::select! {
                biased;
                // First: then the server breaks the stream.
                why = caller.left() => Err(why),
                () = events.closed() => Ok(()),
            }
        };
        let ended = keeper
            .keep(ending, || {
                let Acquire { key, ttl, stream, .. } = &acquire;
                self.renew(Renew { key: key.clone(), lease: id, ttl: *ttl, stream: *stream })
            })
            .await;
        let outlives_us = matches!(ended, Err(SessionError::Draining | SessionError::Denied));
        if let Err(error) = ended {
            events.end(Err(error));
        }
        if !outlives_us {
            // If it is lost, a renewal may still be committed.
            let release = Release::new(acquire.key, id, acquire.stream);
            SessionCall::post_release(&self.lanes, release);
        }
    }
}
