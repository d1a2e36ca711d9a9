//! Turns.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    duration,
    event::{any_event, event, event_ttl, result_and_type},
    key::{delivery, turn_session},
    length, pb,
    pb::begin_turn_response::Outcome,
    session::{acquire_of, lease_held, queued, retry_after, session_lease, waiting},
    small, timestamp,
    turn_id::{parse_id, write_id},
};
use crate::{
    domain::{
        Acquire, Begin, Claim, Detail, EventKey, EventRow, Finish, FinishAs, Id, Invalid,
        ProcessedBy, RenewTurn, RequestId, TeamScope, Ttl, TurnResult, bounded, limits,
    },
    session::{Measured, StreamEvent},
    telemetry::call,
    turn::{RunEnd, RunEvent, Turn, TurnOutcome},
};

pub(in crate::grpc) fn begin(
    teams: &TeamScope,
    request: pb::BeginTurnRequest,
) -> Result<(Begin, Duration), Invalid> {
    let (event, conversations) = delivery(teams, request.event, &request.payload_digest)?;
    let session = request
        .session
        .map(|key| turn_session(teams, key, &event.key, conversations.as_ref()))
        .transpose()?
        .flatten();
    let id = Id::optional("request_id", request.request_id)?;
    let attempt = RequestId::for_event(&event.key, id.as_ref());
    // What is about a session is ignored without one.
    let lease_ttl = request.lease_ttl.filter(|_| session.is_some());
    let (claim_ttl, lease_ttl) = ttls(request.claim_ttl, lease_ttl)?;
    let max_attempts = match u32::try_from(request.max_attempts) {
        Ok(0) => limits::DEFAULT_ATTEMPTS,
        Ok(attempts) if attempts <= limits::MAX_ATTEMPTS => attempts,
        _ => {
            let problem = format!("must be 1 to {}", limits::MAX_ATTEMPTS);
            return Err(Invalid::new("max_attempts", problem));
        }
    };
    let grace = match duration("grace", request.grace)? {
        Some(grace) => bounded("grace", grace, &(Duration::ZERO..=claim_ttl.span()))?,
        None => limits::DEFAULT_GRACE.min(claim_ttl.span()),
    };
    let (holder, session, wait) = match session {
        None => (Id::parse("holder", request.holder)?.into_string(), None, Duration::ZERO),
        Some(key) => {
            let attempt = RequestId::for_turn(&key, &event.key, id.as_ref());
            let call = acquire_of(
                key,
                pb::AcquireSessionLeaseRequest {
                    holder: request.holder,
                    wait: request.wait,
                    epic_id: request.epic_id,
                    labels: request.labels,
                    ..Default::default()
                },
            )?;
            let digest = event.digest;
            let acquire = Acquire { ttl: lease_ttl, request: attempt, digest, ..call.acquire };
            (acquire.holder.clone(), Some(acquire), call.wait)
        }
    };
    let (request, stream) = (attempt, None);
    let begin = Begin {
        event,
        request,
        holder,
        claim_ttl,
        max_attempts,
        session,
        stream,
        resumes: None,
        grace,
    };
    Ok((begin, wait))
}

/// How long claim and lease run.
pub(in crate::grpc) fn ttls(
    claim: Option<prost_types::Duration>,
    lease: Option<prost_types::Duration>,
) -> Result<(Ttl, Ttl), Invalid> {
    let claim = duration("claim_ttl", claim)?;
    let lease = duration("lease_ttl", lease)?;
    let named =
        |field: &'static str| move |invalid: Invalid| Invalid { field: field.into(), ..invalid };
    let claim = Ttl::parse(claim, limits::DEFAULT_CLAIM_TTL, &limits::CLAIM_TTL)
        .map_err(named("claim_ttl"))?;
    let longest = claim.span().min(*limits::LEASE_TTL.end());
    let lease = Ttl::parse(lease, longest, &limits::LEASE_TTL).map_err(named("lease_ttl"))?;
    Ok((claim, lease))
}

pub(in crate::grpc) fn renew_turn(
    teams: &TeamScope,
    request: &pb::RenewTurnRequest,
) -> Result<RenewTurn, Invalid> {
    let (claim_ttl, lease_ttl) = ttls(request.claim_ttl, request.lease_ttl)?;
    let turn = parse_id(teams, &request.turn_id)?;
    Ok(RenewTurn { turn, claim_ttl, lease_ttl, stream: None, interruption: None })
}

pub(in crate::grpc) fn finish(
    teams: &TeamScope,
    request: pb::FinishTurnRequest,
) -> Result<Finish, Invalid> {
    let turn = parse_id(teams, &request.turn_id)?;
    let pb::FinishTurnRequest { outcome, result, ttl, detail, result_type, .. } = request;
    let ending = ending_of(pb::TurnEnd { outcome, result, ttl, detail, result_type })?;
    Ok(Finish::new(turn, ending, None))
}

pub(in crate::grpc) fn ending_of(end: pb::TurnEnd) -> Result<FinishAs, Invalid> {
    use pb::TurnOutcome::{Failed, Rejected, Succeeded};
    let outcome = end.outcome();
    if !matches!(outcome, Succeeded | Failed | Rejected) {
        return Err(Invalid::new("outcome", "must be SUCCEEDED, FAILED or REJECTED"));
    }
    for (field, is_set, may_be_set, with) in [
        ("result", !end.result.is_empty(), outcome == Succeeded, "SUCCEEDED"),
        ("result_type", !end.result_type.is_empty(), outcome == Succeeded, "SUCCEEDED"),
        ("ttl", end.ttl.is_some(), outcome != Failed, "SUCCEEDED or REJECTED"),
        ("detail", !end.detail.is_empty(), outcome != Succeeded, "FAILED or REJECTED"),
    ] {
        if is_set && !may_be_set {
            return Err(Invalid::new(field, format!("must be unset unless outcome is {with}")));
        }
    }
    let ttl = event_ttl(end.ttl)?;
    let detail = Detail::optional("detail", end.detail)?;
    Ok(match outcome {
        Succeeded => {
            let result = TurnResult::parse(end.result, end.result_type)?;
            FinishAs::Succeeded(result.into(), ttl)
        }
        Rejected => FinishAs::Rejected(detail, ttl),
        _ => FinishAs::Failed(detail),
    })
}

pub(in crate::grpc) fn turn(turn: Turn, arrived: Instant) -> pb::Turn {
    let elapsed = length(turn.claim.elapsed(arrived));
    let claim = turn.claim.value;
    call::attempt(small(claim.attempt));
    let lease = turn.id.lease.as_ref().map(|(key, _)| key.clone()).zip(turn.lease);
    pb::Turn {
        turn_id: write_id(&turn.id),
        attempt: small(claim.attempt),
        lease: lease.map(|(key, lease)| session_lease(key, lease, arrived)),
        expire_time: timestamp(claim.lapse_time),
        remaining: length(claim.remaining),
        elapsed,
    }
}

/// The answer to a request for a turn.
pub(in crate::grpc) fn begun(key: EventKey, outcome: TurnOutcome, arrived: Instant) -> Outcome {
    match outcome {
        TurnOutcome::Granted(grant) => {
            Outcome::Granted(pb::TurnGranted { turn: Some(turn(grant.accept(), arrived)) })
        }
        TurnOutcome::Duplicate(row, result) => {
            let by = row.by;
            let event = Some(event(key, EventRow::Processed(row)));
            match by {
                ProcessedBy::GaveUp(_) => Outcome::GaveUp(pb::TurnGaveUp { event }),
                ProcessedBy::Mark | ProcessedBy::Turn(_) | ProcessedBy::Rejected(_) => {
                    let (result, result_type) = result_and_type(Some(result));
                    Outcome::Duplicate(pb::TurnDuplicate { event, result, result_type })
                }
            }
        }
        TurnOutcome::InProgress(claim) => Outcome::InProgress(in_progress(claim, arrived)),
        TurnOutcome::Busy(held) => Outcome::Busy(lease_held(held, arrived)),
    }
}

fn in_progress(claim: Measured<Claim>, arrived: Instant) -> pb::TurnInProgress {
    let elapsed = length(claim.elapsed(arrived));
    let claim = claim.value;
    pb::TurnInProgress {
        holder: claim.holder,
        remaining: length(claim.remaining),
        attempt: small(claim.attempt),
        retry_after: length(retry_after(claim.remaining)),
        elapsed,
    }
}

pub(in crate::grpc) fn run_event(
    key: &EventKey,
    event: RunEvent,
    arrived: Instant,
) -> pb::RunTurnResponse {
    use pb::run_turn_response::News;
    let news = match event {
        StreamEvent::Queued(position) => News::Queued(queued(position)),
        StreamEvent::Granted(granted) => {
            News::Granted(pb::TurnGranted { turn: Some(turn(granted, arrived)) })
        }
        StreamEvent::Renewed(renewed) => {
            News::Renewed(pb::TurnRenewed { turn: Some(turn(renewed, arrived)) })
        }
        StreamEvent::Waiting(waiters) => News::Waiting(waiting(waiters)),
        StreamEvent::Last(RunEnd::Instead(outcome)) => match begun(key.clone(), outcome, arrived) {
            Outcome::Granted(granted) => News::Granted(granted),
            Outcome::Duplicate(duplicate) => News::Duplicate(duplicate),
            Outcome::InProgress(in_progress) => News::InProgress(in_progress),
            Outcome::Busy(held) => News::Busy(held),
            Outcome::GaveUp(gave_up) => News::GaveUp(gave_up),
        },
        StreamEvent::Last(RunEnd::Finished(row)) => {
            News::Finished(pb::TurnFinished { event: Some(any_event(key.clone(), row)) })
        }
    };
    pb::RunTurnResponse { news: Some(news) }
}

pub(in crate::grpc) fn run_alive() -> pb::RunTurnResponse {
    let alive = pb::run_turn_response::News::Alive(pb::StreamAlive {});
    pb::RunTurnResponse { news: Some(alive) }
}
