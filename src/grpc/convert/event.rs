//! Marks and events.

use super::{duration, ids, key::delivered, pb, small, timestamp};
use crate::{
    domain::{
        Claim, Detail, EventKey, EventRow, Id, Invalid, Mark, MarkOutcome, ProcessedBy, RequestId,
        TeamScope, Ttl, TurnResult, limits,
    },
    session::SessionError,
    store::Looked,
};

pub(in crate::grpc) fn mark(
    teams: &TeamScope,
    request: pb::MarkProcessedRequest,
) -> Result<Mark, Invalid> {
    let event = delivered(teams, request.event, &request.payload_digest)?;
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
    pb::ProcessedEvent { team_id: key.team.into_string(), event_id, consumer, ..Default::default() }
}

pub(in crate::grpc) fn event(key: EventKey, row: EventRow) -> pb::ProcessedEvent {
    let named = named(key);
    match row {
        EventRow::Processed(event) => {
            let (outcome, attempt) = match event.by {
                ProcessedBy::Mark => (pb::TurnOutcome::Unspecified, 1),
                ProcessedBy::Turn(attempt) => (pb::TurnOutcome::Succeeded, attempt),
                ProcessedBy::Rejected(attempt) => (pb::TurnOutcome::Rejected, attempt),
                ProcessedBy::GaveUp(attempts) => (pb::TurnOutcome::GaveUp, attempts),
            };
            pb::ProcessedEvent {
                state: pb::EventState::Processed.into(),
                process_time: timestamp(event.process_time),
                expire_time: timestamp(event.expire_time),
                attempt: small(attempt),
                outcome: outcome.into(),
                detail: text(event.detail),
                ..named
            }
        }
        EventRow::Claimed(claim) => pb::ProcessedEvent {
            state: claim_state(&claim).into(),
            process_time: timestamp(claim.claim_time),
            expire_time: timestamp(claim.lapse_time),
            holder: claim.holder,
            attempt: small(claim.attempt),
            detail: text(claim.detail),
            ..named
        },
    }
}

fn text(detail: Option<Detail>) -> String {
    detail.map(|detail| detail.as_str().to_owned()).unwrap_or_default()
}

/// Only a list contains claims that have ended.
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

/// The event of a row, or of none: then it was not seen.
pub(super) fn any_event(key: EventKey, row: Option<EventRow>) -> pb::ProcessedEvent {
    match row {
        Some(row) => event(key, row),
        None => pb::ProcessedEvent { state: pb::EventState::NotSeen.into(), ..named(key) },
    }
}

/// What a turn left, and its type.
pub(super) fn result_and_type(result: Option<TurnResult>) -> (Vec<u8>, String) {
    let TurnResult { bytes, type_name } = result.unwrap_or_default();
    (bytes, type_name.unwrap_or_default())
}

pub(in crate::grpc) fn look_response(
    key: EventKey,
    looked: Option<Looked>,
) -> pb::IsProcessedResponse {
    let (row, result) = looked.unzip();
    let event = any_event(key, row);
    let (result, result_type) = result_and_type(result.flatten());
    pb::IsProcessedResponse {
        state: event.state,
        processed: event.state() == pb::EventState::Processed,
        event: Some(event),
        result,
        result_type,
    }
}

pub(in crate::grpc) fn finish_response(
    key: EventKey,
    row: Option<EventRow>,
) -> pb::FinishTurnResponse {
    pb::FinishTurnResponse { event: Some(any_event(key, row)) }
}
