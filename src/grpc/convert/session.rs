//! Leases.

use std::time::Duration;

use tokio::time::Instant;

use super::{duration, ids, key::session_key, length, pb, timestamp};
use crate::{
    domain::{
        Acquire, FencingToken, Held, Id, Invalid, Labels, Lease, LeaseId, OwnLease, Renew,
        RequestId, SessionKey, TeamScope, Ttl, bounded, limits,
    },
    session::{HoldEvent, Measured, StreamEvent},
};

/// When a caller that found a session about to be handed on may ask again.
const RETRY_AFTER_HANDOVER: Duration = Duration::from_millis(100);

/// The longest `retry_after` of a caller that does not wait.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(1);

pub(in crate::grpc) fn lease_ttl(ttl: Option<prost_types::Duration>) -> Result<Ttl, Invalid> {
    Ttl::parse(duration("ttl", ttl)?, limits::DEFAULT_LEASE_TTL, &limits::LEASE_TTL)
}

/// A request for a lease, as the session service takes it.
pub(in crate::grpc) struct AcquireCall {
    pub(in crate::grpc) acquire: Acquire,
    pub(in crate::grpc) wait: Duration,
}

pub(in crate::grpc) fn acquire(
    teams: &TeamScope,
    mut request: pb::AcquireSessionLeaseRequest,
) -> Result<AcquireCall, Invalid> {
    let key = session_key(teams, request.session.take())?;
    acquire_of(key, request)
}

/// The same, of a session that is known.
pub(super) fn acquire_of(
    key: SessionKey,
    request: pb::AcquireSessionLeaseRequest,
) -> Result<AcquireCall, Invalid> {
    let holder = Id::parse("holder", request.holder)?.into_string();
    let request_id = Id::optional("request_id", request.request_id)?;
    let ttl = lease_ttl(request.ttl)?;
    let wait = duration("wait", request.wait)?.unwrap_or_default();
    let wait = bounded("wait", wait, &limits::WAIT)?;
    let epic = Id::optional("epic_id", request.epic_id)?.map(Id::into_string);
    let labels = Labels::parse(request.labels)?;
    let attempt = RequestId::for_session(&key, request_id.as_ref());
    let acquire = Acquire {
        key,
        holder,
        request: attempt,
        lease: OwnLease::random(),
        ttl,
        epic,
        labels,
        stream: None,
        resumes: None,
        digest: None,
    };
    Ok(AcquireCall { acquire, wait })
}

/// The same request, to be kept.
pub(in crate::grpc) fn hold(
    teams: &TeamScope,
    request: pb::HoldSessionLeaseRequest,
) -> Result<AcquireCall, Invalid> {
    let pb::HoldSessionLeaseRequest { session, holder, request_id, ttl, wait, epic_id, labels } =
        request;
    let request =
        pb::AcquireSessionLeaseRequest { session, holder, request_id, ttl, wait, epic_id, labels };
    acquire(teams, request)
}

pub(in crate::grpc) fn renew(
    teams: &TeamScope,
    request: pb::RenewSessionLeaseRequest,
) -> Result<Renew, Invalid> {
    let key = session_key(teams, request.session)?;
    let lease = LeaseId::parse(&request.lease_id)?;
    Ok(Renew { key, lease, ttl: lease_ttl(request.ttl)?, stream: None })
}

pub(in crate::grpc) fn release(
    teams: &TeamScope,
    request: pb::ReleaseSessionLeaseRequest,
) -> Result<(SessionKey, LeaseId), Invalid> {
    let key = session_key(teams, request.session)?;
    Ok((key, LeaseId::parse(&request.lease_id)?))
}

pub(in crate::grpc) fn check(
    teams: &TeamScope,
    request: pb::CheckSessionLeaseRequest,
) -> Result<(SessionKey, FencingToken), Invalid> {
    let key = session_key(teams, request.session)?;
    if request.fencing_token < 1 {
        return Err(Invalid::new("fencing_token", "must be 1 or more"));
    }
    Ok((key, FencingToken(request.fencing_token)))
}

/// A lease, as its holder is answered whose call arrived at `arrived`.
pub(in crate::grpc) fn session_lease(
    key: SessionKey,
    lease: Measured<Lease>,
    arrived: Instant,
) -> pb::SessionLease {
    let elapsed = length(lease.elapsed(arrived));
    let lease = lease.value;
    let (session_id, consumer) = ids(&key.session);
    pb::SessionLease {
        team_id: key.team.into_string(),
        session_id,
        consumer,
        lease_id: lease.id.as_uuid().to_string(),
        fencing_token: lease.token.0,
        holder: lease.holder,
        acquire_time: timestamp(lease.acquire_time),
        expire_time: timestamp(lease.expire_time),
        remaining: length(lease.remaining),
        epic_id: lease.epic.unwrap_or_default(),
        labels: lease.labels.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        elapsed,
    }
}

pub(in crate::grpc) fn hold_event(
    key: &SessionKey,
    event: HoldEvent,
    arrived: Instant,
) -> pb::HoldSessionLeaseResponse {
    use pb::hold_session_lease_response::News;
    let lease = |lease| Some(session_lease(key.clone(), lease, arrived));
    let news = match event {
        StreamEvent::Queued(position) => News::Queued(queued(position)),
        StreamEvent::Granted(granted) => News::Granted(pb::LeaseGranted { lease: lease(granted) }),
        StreamEvent::Renewed(renewed) => News::Renewed(pb::LeaseRenewed { lease: lease(renewed) }),
        StreamEvent::Waiting(waiters) => News::Waiting(waiting(waiters)),
        StreamEvent::Last(held) => News::Held(lease_held(held, arrived)),
    };
    pb::HoldSessionLeaseResponse { news: Some(news) }
}

pub(in crate::grpc) fn hold_alive() -> pb::HoldSessionLeaseResponse {
    let alive = pb::hold_session_lease_response::News::Alive(pb::StreamAlive {});
    pb::HoldSessionLeaseResponse { news: Some(alive) }
}

pub(super) fn waiting(waiters: usize) -> pb::SessionWaiting {
    pb::SessionWaiting { waiters: i32::try_from(waiters).unwrap_or(i32::MAX) }
}

pub(super) fn queued(position: usize) -> pb::LeaseQueued {
    pb::LeaseQueued { position: i32::try_from(position).unwrap_or(i32::MAX) }
}

/// When a caller that does not wait may ask again for what is held for `remaining`.
pub(super) fn retry_after(remaining: Duration) -> Duration {
    remaining.clamp(RETRY_AFTER_HANDOVER, MAX_RETRY_AFTER)
}

pub(in crate::grpc) fn lease_held(held: Measured<Held>, arrived: Instant) -> pb::LeaseHeld {
    let elapsed = length(held.elapsed(arrived));
    let held = held.value;
    let retry_after = retry_after(held.remaining);
    pb::LeaseHeld {
        holder: held.holder,
        expire_time: held.expire_time.and_then(timestamp),
        remaining: length(held.remaining),
        queue_length: i32::try_from(held.queue_length).unwrap_or(i32::MAX),
        retry_after: length(retry_after),
        elapsed,
    }
}
