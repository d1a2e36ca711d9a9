//! Marks and events.

use super::{duration, ids, key::delivered, pb, small, timestamp};
use crate::{
    domain::{
        By, Claim, EventKey, EventRow, Id, Invalid, Mark, MarkOutcome, RequestId, Ttl, limits,
    },
    session::SessionError,
};

pub(in crate::grpc) fn mark(request: pb::MarkProcessedRequest) -> Result<Mark, Invalid> {
    let event = delivered(request.event, &request.payload_digest)?;
    let ttl = event_ttl(request.ttl)?;
    let request_id = Id::optional("request_id", request.request_id)?;
    let request = RequestId::for_event(&event.key, request_id.as_ref());
    Ok(Mark { event, ttl, request })
}

pub(in crate::grpc) fn event_ttl(ttl: Option<prost_types::Duration>) -> Result<Ttl, Invalid> {
    Ttl::parse(duration("ttl", ttl)?, limits::DEFAULT_EVENT_TTL, &limits::EVENT_TTL)
}

fn named(key: EventKey) -> pb::ProcessedEvent {
    let (event_id, consumer) = ids(&key.event);
    pb::ProcessedEvent { team_id: key.team, event_id, consumer, ..Default::default() }
}

pub(in crate::grpc) fn event(key: EventKey, row: EventRow) -> pb::ProcessedEvent {
    let named = named(key);
    match row {
        EventRow::Processed(event) => {
            let (outcome, attempt) = match event.by {
                By::Mark => (pb::TurnOutcome::Unspecified, 1),
                By::Turn(attempt) => (pb::TurnOutcome::Succeeded, attempt),
                By::Nobody(attempts) => (pb::TurnOutcome::GaveUp, attempts),
            };
            pb::ProcessedEvent {
                state: pb::EventState::Processed.into(),
                process_time: timestamp(event.process_time),
                expire_time: timestamp(event.expire_time),
                attempt: small(attempt),
                outcome: outcome.into(),
                ..named
            }
        }
        EventRow::Claimed(claim) => pb::ProcessedEvent {
            state: claim_state(&claim).into(),
            process_time: timestamp(claim.claim_time),
            expire_time: timestamp(claim.lapse_time),
            holder: claim.holder,
            attempt: small(claim.attempt),
            ..named
        },
    }
}

/// Only a list tells of claims that have ended.
pub(in crate::grpc) fn claim_state(claim: &Claim) -> pb::EventState {
    if claim.remaining.is_zero() { pb::EventState::NotSeen } else { pb::EventState::InProgress }
}

pub(in crate::grpc) fn mark_response(
    key: EventKey,
    outcome: MarkOutcome,
) -> Result<pb::MarkProcessedResponse, SessionError> {
    let (first, row) = match outcome {
        MarkOutcome::First(event) => (true, EventRow::Processed(event)),
        MarkOutcome::Duplicate(event) => (false, EventRow::Processed(event)),
        MarkOutcome::Claimed(claim) => (false, EventRow::Claimed(claim)),
        MarkOutcome::Mismatch => return Err(SessionError::PayloadMismatch),
    };
    Ok(pb::MarkProcessedResponse { first, event: Some(event(key, row)) })
}

pub(in crate::grpc) fn look_response(
    key: EventKey,
    row: Option<EventRow>,
) -> pb::IsProcessedResponse {
    let event = match row {
        Some(row) => event(key, row),
        None => pb::ProcessedEvent { state: pb::EventState::NotSeen.into(), ..named(key) },
    };
    let processed = event.state() == pb::EventState::Processed;
    pb::IsProcessedResponse {
        state: event.state,
        processed,
        event: Some(event),
        ..Default::default()
    }
}
