//! A lease that is renewed while the command runs, and what is left of it.

use std::time::Duration;

use oncegate_client::Connection;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::{
    super::{
        ClientArgs,
        client::{duration, explain},
        lease::left_after_sending,
        report,
    },
    moment::BootInstant,
};
use crate::grpc::pb::{
    ReleaseSessionLeaseRequest, RenewSessionLeaseRequest, SessionKey, SessionLease,
    idempotency_service_client::IdempotencyServiceClient,
};

/// The command is over by so much before its lease ends: two clocks differ, and a process
/// that was killed takes a moment to end.
const MARGIN: Duration = Duration::from_millis(250);
/// How long a command has to end whose lease is gone already: another may hold the session.
const GONE_GRACE: Duration = Duration::from_secs(1);
/// How soon one renewal may follow another.
const MIN_RENEW_INTERVAL: Duration = Duration::from_millis(50);
/// How long to wait for the answer to a release. If none comes, the lease ends with its TTL.
pub(super) const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a lease is kept no longer, and what is left to the command.
pub(super) struct Lost {
    pub(super) reason: String,
    /// By then it must have ended.
    pub(super) by: BootInstant,
    /// Whether the session is still held, so that giving it back helps others.
    pub(super) is_held: bool,
}

/// What it takes to keep a lease.
pub(super) struct Keeper {
    pub(super) client: IdempotencyServiceClient<Connection>,
    pub(super) args: ClientArgs,
    pub(super) key: SessionKey,
    pub(super) lease: SessionLease,
    pub(super) ttl: Duration,
    /// How long the command has to end.
    pub(super) kill_after: Duration,
    /// When the last request was sent that the lease was granted or renewed for.
    pub(super) sent: BootInstant,
}

impl Keeper {
    /// The shortest TTL that leaves a third of itself, the time between two renewals, once
    /// the command's time to end is taken off.
    pub(super) fn least_ttl(kill_after: Duration) -> Duration {
        kill_after.saturating_add(MARGIN).saturating_mul(3) / 2
    }

    /// When the lease ends, at the earliest.
    fn ends(&self) -> BootInstant {
        self.sent + left_after_sending(&self.lease)
    }

    /// By then the command must have ended.
    fn kill_at(&self) -> BootInstant {
        self.ends().before(MARGIN)
    }

    /// From then on the command has just the time to end that it was given.
    fn stop_at(&self) -> BootInstant {
        self.kill_at().before(self.kill_after)
    }

    /// Whether so much is left that a renewal can come in time.
    fn is_fresh(&self) -> bool {
        self.stop_at().left() >= self.ttl / 6
    }

    /// Makes sure that a command can start: counted from when it was asked for, a lease that
    /// was waited for may be over.
    ///
    /// # Errors
    /// When the lease cannot be renewed, or the answer comes too late.
    pub(super) async fn prepare(&mut self) -> Result<(), Status> {
        if self.is_fresh() {
            return Ok(());
        }
        self.renew().await?;
        if self.stop_at().left().is_zero() {
            return Err(Status::unavailable("the lease was renewed too late to start the command"));
        }
        Ok(())
    }

    /// Renews the lease for as long as that can be done.
    pub(super) async fn keep(&mut self) -> Lost {
        let mut tried = self.sent;
        // Why the last renewal failed, if it did.
        let mut failure = Some("no renewal was sent".to_owned());
        loop {
            // A third of what is left: two more can fail.
            let pause = (self.stop_at().since(tried) / 3).max(MIN_RENEW_INTERVAL);
            (tried + pause).min(self.stop_at()).reached().await;
            if self.stop_at().left().is_zero() {
                let is_held = failure.is_none() && !self.ends().left().is_zero();
                let why = failure.as_deref();
                let why = why.unwrap_or("the server no longer extends the lease (max_hold)");
                let reason = format!("not renewed in time: {why}");
                return Lost { reason, by: self.kill_at(), is_held };
            }
            tried = BootInstant::now();
            let bound = (self.stop_at().left() / 2).max(MIN_RENEW_INTERVAL);
            match timeout(bound, self.renew()).await {
                Ok(Ok(())) => {
                    failure = None;
                    continue;
                }
                Ok(Err(status)) if status.code() == Code::FailedPrecondition => {
                    // Another may hold the session already.
                    let grace = BootInstant::now() + self.kill_after.min(GONE_GRACE);
                    let reason = status.message().to_owned();
                    return Lost { reason, by: grace.min(self.kill_at()), is_held: false };
                }
                Ok(Err(status)) => failure = Some(explain(&status.into())),
                Err(_) => failure = Some("the server does not answer".to_owned()),
            }
            // That connection may never answer again; another one may.
            if let Ok(Ok(client)) = timeout(self.stop_at().left() / 2, self.args.connect()).await {
                self.client = client;
            }
        }
    }

    /// Renews the lease once.
    async fn renew(&mut self) -> Result<(), Status> {
        let message = RenewSessionLeaseRequest {
            session: Some(self.key.clone()),
            lease_id: self.lease.lease_id.clone(),
            ttl: Some(duration(self.ttl)),
        };
        let sent = BootInstant::now();
        let request = self.args.request(message, Duration::ZERO);
        let answer = self.client.renew_session_lease(request).await?.into_inner();
        self.lease = answer.lease.ok_or_else(|| Status::internal("the response has no lease"))?;
        self.sent = sent;
        Ok(())
    }

    /// Gives the lease back. If that fails, it ends with its TTL.
    pub(super) async fn release(mut self) {
        let session = Some(self.key.clone());
        let message = ReleaseSessionLeaseRequest { session, lease_id: self.lease.lease_id.clone() };
        let request = self.args.request(message, Duration::ZERO);
        let problem =
            match timeout(RELEASE_TIMEOUT, self.client.release_session_lease(request)).await {
                Ok(Ok(_)) => return,
                Ok(Err(status)) => status.message().to_owned(),
                Err(_) => "the server does not answer".to_owned(),
            };
        report(format_args!("cannot release the lease, it expires with its TTL: {problem}"));
    }
}
