//! Leases.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::oneshot;

use crate::{
    Error, Gate, Session,
    begin::{self, confirm},
    clock::{Moment, now},
    failure::Problem,
    hold::{Command, Flow, Hold},
    link::{CALL_TIMEOUT, SHORTEST},
    locked,
    options::{Config, duration, new_request_id, span},
    pb::{
        self, HoldSessionLeaseRequest, ReleaseSessionLeaseRequest, RenewSessionLeaseRequest,
        SessionLease, TurnEnd, hold_session_lease_response::News,
        idempotency_service_client::IdempotencyServiceClient,
    },
    stream::Stream,
    turn_flow::busy,
    view::view,
};

/// For a release.
const RELEASE_EFFORT: Duration = Duration::from_secs(5);

/// A request for a lease; [`Gate::lease`](crate::Gate::lease) makes one.
#[must_use = "a request does nothing until `acquire`"]
pub struct LeaseRequest {
    pub(crate) gate: Gate,
    pub(crate) session: Session,
    pub(crate) config: Config,
}

/// A conversation, held. It is released when it is dropped, in the background: use
/// [`Lease::release`] to wait for that.
#[must_use = "a lease is released when it is dropped"]
pub struct Lease {
    flow: Arc<LeaseFlow>,
}

impl LeaseRequest {
    /// How long to queue while the conversation is busy. 0 to 10 min; default 0.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.config.wait = wait;
        self
    }

    /// How long the lease runs unless it is renewed; default: the gate's.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.config.ttl = ttl;
        self
    }

    /// How long to try while the server is unavailable or overloaded; default: the gate's.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.config.patience = patience;
        self
    }

    /// Binds the session to the work that it is for, such as an issue key.
    pub fn epic(mut self, id: impl Into<String>) -> Self {
        self.config.epic = id.into();
        self
    }

    /// Is shown with the lease. At most 8.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.labels.insert(name.into(), value.into());
        self
    }

    /// Waits for the lease. Dropping the future leaves the queue.
    ///
    /// # Errors
    ///
    /// [`Error::NotGranted`] with [`NotGranted::Busy`](crate::NotGranted::Busy) if another holder has
    /// the conversation, and the wait is over; otherwise as
    /// [`TurnRequest::begin`](crate::TurnRequest::begin).
    pub async fn acquire(self) -> Result<Lease, Error> {
        let hold = Hold::new(self.gate.inner.clone(), self.config, true);
        let request = hold.config.hold_request(&self.session);
        let flow =
            Arc::new(LeaseFlow { hold, request: Mutex::new(request), lease: Mutex::default() });
        let begun = Box::pin(begin::start(&flow, begin::begin(&flow))).await; // it is large
        begun.map_err(Problem::public)?;
        Ok(Lease { flow })
    }
}

impl Lease {
    view!(flow.hold);

    /// The tenant.
    #[must_use]
    pub fn team(&self) -> String {
        locked(&self.flow.lease).team_id.clone()
    }

    /// The session's canonical id.
    #[must_use]
    pub fn session(&self) -> String {
        locked(&self.flow.lease).session_id.clone()
    }

    /// The work that the session is bound to; empty: none.
    #[must_use]
    pub fn epic(&self) -> String {
        locked(&self.flow.lease).epic_id.clone()
    }

    /// Ends the lease, and waits for the server's answer; if there is none within 5 s, the session is
    /// free when the TTL ends. It does nothing if the lease has ended.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseLost`] if the lease was lost.
    pub async fn release(&self) -> Result<(), Error> {
        let hold = &self.flow.hold;
        if !hold.finish(None) {
            let is_lost = hold.state().loss.is_some();
            return if is_lost { Err(hold.over_by()) } else { Ok(()) };
        }
        let (answer, answered) = oneshot::channel();
        hold.command(Command::GiveBack { detail: String::new(), answer: Some(answer) });
        let _ = answered.await; // without an answer, its keeper has ended with its runtime
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.flow.hold.finish(None) {
            self.flow.hold.command(Command::GiveBack { detail: String::new(), answer: None });
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Lease");
        shown.field("session", &self.session()).field("held", &self.held());
        shown.field("fence", &self.fence()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for LeaseRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeaseRequest").field("session", &self.session).finish_non_exhaustive()
    }
}

struct LeaseFlow {
    hold: Arc<Hold>,
    request: Mutex<HoldSessionLeaseRequest>,
    lease: Mutex<SessionLease>,
}

impl LeaseFlow {
    fn read(&self, lease: Option<&SessionLease>, sent: Moment) {
        let remaining = span(lease.and_then(|lease| lease.remaining.as_ref()));
        let elapsed = span(lease.and_then(|lease| lease.elapsed.as_ref()));
        self.hold.trust(remaining, elapsed, sent, None);
    }

    fn session(&self) -> (Option<pb::SessionKey>, String) {
        (locked(&self.request).session.clone(), locked(&self.lease).lease_id.clone())
    }
}

impl Flow for LeaseFlow {
    type News = pb::HoldSessionLeaseResponse;

    fn hold(&self) -> &Arc<Hold> {
        &self.hold
    }

    async fn open(&self, wait: Duration) -> Result<Stream<Self::News>, Problem> {
        let request = {
            let mut request = locked(&self.request);
            request.wait = duration(wait);
            request.clone()
        };
        Stream::open(&self.hold.gate.link, None, move |transport| async move {
            IdempotencyServiceClient::new(transport).hold_session_lease(request).await
        })
        .await
    }

    fn answer(&self, answer: Self::News) -> Result<bool, Problem> {
        match answer.news {
            Some(News::Granted(granted)) => {
                let lease = granted.lease.unwrap_or_default();
                self.hold.state().fence = Some(lease.fencing_token);
                *locked(&self.lease) = lease;
                Ok(true)
            }
            Some(News::Queued(queued)) => {
                self.hold.config.queued(queued);
                Ok(false)
            }
            Some(News::Held(held)) => Err(Error::from(busy(held)).into()),
            _ => Ok(false),
        }
    }

    fn news(&self, news: Self::News) {
        match news.news {
            Some(News::Renewed(renewed)) => {
                let sent = self.hold.state().sent;
                self.read(renewed.lease.as_ref(), sent);
            }
            Some(News::Waiting(waiting)) => self.hold.set_waiters(waiting),
            _ => {}
        }
    }

    /// Renews once beside the stream: from then on the lease outlives the stream.
    async fn make_sure(&self, _: &mut Option<Stream<Self::News>>) -> Result<(), Problem> {
        let (lease, sent) = (locked(&self.lease).clone(), self.hold.state().sent);
        self.read(Some(&lease), sent);
        confirm(self).await
    }

    async fn renew(&self, until: Moment) -> Result<(), Problem> {
        let (session, lease_id) = self.session();
        let ttl = duration(self.hold.config.ttl);
        let request = RenewSessionLeaseRequest { session, lease_id, ttl };
        let link = &self.hold.gate.link;
        let time = self.hold.renew_timeout();
        let (response, sent) = link
            .call_until(until - SHORTEST, time, |transport| {
                let request = request.clone();
                async move {
                    IdempotencyServiceClient::new(transport).renew_session_lease(request).await
                }
            })
            .await?;
        self.read(response.lease.as_ref(), sent);
        Ok(())
    }

    async fn end(
        &self,
        stream: Option<Stream<Self::News>>,
        _: TurnEnd,
        until: Moment,
    ) -> Result<(), Problem> {
        let (session, lease_id) = self.session();
        let request = ReleaseSessionLeaseRequest { session, lease_id };
        let link = &self.hold.gate.link;
        let released = link
            .call_until(until, CALL_TIMEOUT, |transport| {
                let request = request.clone();
                async move {
                    IdempotencyServiceClient::new(transport).release_session_lease(request).await
                }
            })
            .await;
        drop(stream); // only now: its end would release the lease without an answer
        released.map(|_| ())
    }

    async fn give_back(&self, stream: Option<Stream<Self::News>>, _: String) {
        let until = now() + RELEASE_EFFORT;
        if let Err(problem) = self.end(stream, TurnEnd::default(), until).await {
            let error = problem.public();
            tracing::warn!(%error, "the release of a lease failed; it ends with its TTL");
        }
    }

    fn start_over(&self) {
        locked(&self.request).request_id = new_request_id();
    }
}
