//! `TurnService`: reads a request, asks, writes the answer.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::{StreamExt as _, stream, stream::BoxStream};
use prost::Message as _;
use tokio::sync::oneshot;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::{
    convert,
    deadline::Deadline,
    pb::{self, turn_service_server::TurnService},
    status::{self, Problem},
};
use crate::{
    domain::{
        Begin, Claim, Ending, EventKey, EventRow, Finish, Id, Invalid, LeaseId, Prolong, RequestId,
        SessionKey, StoredEvent, Ttl, TurnId, bounded, limits,
    },
    turn::{Closed, Running, Turn, TurnOutcome, Turns},
};

/// The service, as the server runs it.
pub struct Turning {
    /// What it asks.
    pub turns: Turns,
    /// How long one call may take, a wait not counted.
    pub timeout: Duration,
}

#[tonic::async_trait]
impl TurnService for Turning {
    async fn begin_turn(
        &self,
        request: Request<pb::BeginTurnRequest>,
    ) -> Result<Response<pb::BeginTurnResponse>, Status> {
        use pb::begin_turn_response::Outcome;
        let deadline = Deadline::of(request.metadata(), self.timeout);
        let (begin, wait) = begin(request.into_inner()).map_err(Problem::from)?;
        let (wait, event) = (deadline.wait(wait), begin.event.key.clone());
        let outcome = deadline.after(wait).bound(self.turns.begin(begin, wait)).await?;
        let outcome = match outcome {
            TurnOutcome::Granted(grant) => {
                Outcome::Granted(pb::TurnGranted { turn: Some(turn(grant.accept())) })
            }
            TurnOutcome::Duplicate(row, result) => {
                Outcome::Duplicate(duplicate(event, row, result))
            }
            TurnOutcome::InProgress(claim) => Outcome::InProgress(in_progress(claim)),
            TurnOutcome::Busy(held) => Outcome::Busy(convert::lease_held(held)),
        };
        Ok(Response::new(pb::BeginTurnResponse { outcome: Some(outcome) }))
    }

    async fn renew_turn(
        &self,
        request: Request<pb::RenewTurnRequest>,
    ) -> Result<Response<pb::RenewTurnResponse>, Status> {
        let deadline = Deadline::of(request.metadata(), self.timeout);
        let prolong = prolong(&request.into_inner()).map_err(Problem::from)?;
        let turn = turn(deadline.bound(self.turns.renew(prolong)).await?);
        Ok(Response::new(pb::RenewTurnResponse { turn: Some(turn) }))
    }

    async fn finish_turn(
        &self,
        request: Request<pb::FinishTurnRequest>,
    ) -> Result<Response<pb::FinishTurnResponse>, Status> {
        let deadline = Deadline::of(request.metadata(), self.timeout);
        let finish = finish(request.into_inner()).map_err(Problem::from)?;
        let key = finish.turn.event.clone();
        let row = deadline.bound(self.turns.finish(finish)).await?;
        let event = convert::look_response(key, row).event;
        Ok(Response::new(pb::FinishTurnResponse { event }))
    }

    type RunTurnStream = BoxStream<'static, Result<pb::RunTurnResponse, Status>>;

    async fn run_turn(
        &self,
        mut request: Request<Streaming<pb::RunTurnRequest>>,
    ) -> Result<Response<Self::RunTurnStream>, Status> {
        use pb::run_turn_request::Step;
        let caller = request.extensions_mut().remove().unwrap_or_default();
        let mut steps = request.into_inner();
        let first = steps.message().await.map_err(status::of_request)?;
        let Some(Step::Begin(first)) = first.and_then(|first| first.step) else {
            return Err(Problem::from(Invalid::new("begin", "must come first")).into());
        };
        let (begin, wait) =
            begin(first).map_err(|invalid| Problem::from(invalid.within("begin")))?;
        let key = begin.event.key.clone();
        let (close, closed) = oneshot::channel();
        let told = self.turns.run(begin, wait, self.timeout, closed, caller);
        let events = ReceiverStream::new(told).map(move |told| match told {
            Ok(event) => Ok(running(&key, event)),
            Err(error) => Err(Problem::from(error).into()),
        });
        // The caller's steps are read beside the events that it is sent. If one is wrong, the call ends with that,
        // and the turn as if nothing had been said. If the call breaks, or is cancelled, this
        // is dropped: tonic answers a cancelled call as a half-closed one, but hyper looks
        // for a reset before it polls an answer, and so this.
        let reading = async move {
            let step = steps.message().await.map_err(status::of_request)?;
            let step = step.and_then(|request| request.step);
            let ending = match step {
                Some(Step::End(last)) => ending_of(last.outcome(), last.result, last.ttl)
                    .map(Closed::With)
                    .map_err(|invalid| invalid.within("end")),
                Some(Step::Begin(_)) => Err(Invalid::new("begin", "must come once")),
                None => Ok(Closed::Without),
            };
            let (how, wrong) = match ending {
                Ok(how) => (how, Ok(())),
                Err(invalid) => (Closed::Without, Err(Problem::from(invalid).into())),
            };
            let _ = close.send(how);
            wrong
        };
        let complaint = stream::once(reading)
            .filter_map(|read: Result<(), Status>| async { read.err().map(Err) });
        let all = stream::select(events.map(Some).chain(stream::iter([None])), complaint.map(Some));
        // The last word is the last.
        let all = all.take_while(|told| std::future::ready(told.is_some()));
        Ok(Response::new(all.filter_map(std::future::ready).boxed()))
    }
}

fn duplicate(key: EventKey, row: StoredEvent, result: Vec<u8>) -> pb::TurnDuplicate {
    let event = Some(convert::event(key, EventRow::Processed(row)));
    pb::TurnDuplicate { event, result }
}

fn in_progress(claim: Claim) -> pb::TurnInProgress {
    pb::TurnInProgress {
        holder: claim.holder,
        remaining: convert::length(claim.remaining),
        attempt: convert::small(claim.attempt),
    }
}

fn running(key: &EventKey, told: Running) -> pb::RunTurnResponse {
    use pb::run_turn_response::Event;
    let event = match told {
        Running::Queued(place) => {
            let position = i32::try_from(place).unwrap_or(i32::MAX);
            Event::Queued(pb::LeaseQueued { position })
        }
        Running::Granted(granted) => Event::Granted(pb::TurnGranted { turn: Some(turn(granted)) }),
        Running::Renewed(renewed) => Event::Renewed(pb::TurnRenewed { turn: Some(turn(renewed)) }),
        Running::Instead(TurnOutcome::Granted(grant)) => {
            Event::Granted(pb::TurnGranted { turn: Some(turn(grant.accept())) })
        }
        Running::Instead(TurnOutcome::Duplicate(row, result)) => {
            Event::Duplicate(duplicate(key.clone(), row, result))
        }
        Running::Instead(TurnOutcome::InProgress(claim)) => Event::InProgress(in_progress(claim)),
        Running::Instead(TurnOutcome::Busy(held)) => Event::Busy(convert::lease_held(held)),
        Running::Finished(row) => {
            let event = convert::look_response(key.clone(), row).event;
            Event::Finished(pb::TurnFinished { event })
        }
    };
    pb::RunTurnResponse { event: Some(event) }
}

fn begin(request: pb::BeginTurnRequest) -> Result<(Begin, Duration), Invalid> {
    let event = convert::delivered(request.event, &request.payload_digest)?;
    let id = Id::optional("request_id", request.request_id.clone())?;
    let attempt = RequestId::for_event(&event.key, id.as_ref());
    let (claim_ttl, lease_ttl) = ttls(request.claim_ttl, request.lease_ttl)?;
    let max_attempts = match u32::try_from(request.max_attempts) {
        Ok(0) => limits::DEFAULT_ATTEMPTS,
        Ok(attempts) if attempts <= limits::MAX_ATTEMPTS => attempts,
        _ => {
            let problem = format!("must be 1 to {}", limits::MAX_ATTEMPTS);
            return Err(Invalid::new("max_attempts", problem));
        }
    };
    let grace = match convert::duration("grace", request.grace)? {
        Some(grace) => bounded("grace", grace, &(Duration::ZERO..=claim_ttl.span()))?,
        None => limits::DEFAULT_GRACE.min(claim_ttl.span()),
    };
    let (holder, session, wait) = match request.session {
        None => {
            let idle = [
                ("lease_ttl", request.lease_ttl.is_some()),
                ("wait", request.wait.is_some()),
                ("epic_id", !request.epic_id.is_empty()),
                ("labels", !request.labels.is_empty()),
            ];
            if let Some((field, _)) = idle.into_iter().find(|(_, is_given)| *is_given) {
                return Err(Invalid::new(field, "must be unset where there is no session"));
            }
            (Id::parse("holder", request.holder)?.into_string(), None, Duration::ZERO)
        }
        Some(session) => {
            let mut call = convert::acquire(pb::AcquireSessionLeaseRequest {
                session: Some(session),
                holder: request.holder,
                request_id: request.request_id,
                ttl: None,
                wait: request.wait,
                epic_id: request.epic_id,
                labels: request.labels,
            })?;
            if call.acquire.key.team != event.key.team {
                return Err(Invalid::new("session.team_id", "must be the event's team_id"));
            }
            call.acquire.ttl = lease_ttl;
            call.acquire.request = RequestId::for_turn(&call.acquire.key, &event.key, id.as_ref());
            (call.acquire.holder.clone(), Some(call.acquire), call.wait)
        }
    };
    let (request, stream) = (attempt, None);
    let begin = Begin { event, request, holder, claim_ttl, max_attempts, session, stream, grace };
    Ok((begin, wait))
}

/// How long claim and lease run.
fn ttls(
    claim: Option<prost_types::Duration>,
    lease: Option<prost_types::Duration>,
) -> Result<(Ttl, Ttl), Invalid> {
    let claim = convert::duration("claim_ttl", claim)?;
    let lease = convert::duration("lease_ttl", lease)?;
    let named =
        |field: &'static str| move |invalid: Invalid| Invalid { field: field.into(), ..invalid };
    let claim = Ttl::parse(claim, limits::DEFAULT_CLAIM_TTL, &limits::CLAIM_TTL)
        .map_err(named("claim_ttl"))?;
    let longest = claim.span().min(*limits::LEASE_TTL.end());
    let lease = Ttl::parse(lease, longest, &limits::LEASE_TTL).map_err(named("lease_ttl"))?;
    Ok((claim, lease))
}

fn prolong(request: &pb::RenewTurnRequest) -> Result<Prolong, Invalid> {
    let (claim_ttl, lease_ttl) = ttls(request.claim_ttl, request.lease_ttl)?;
    Ok(Prolong { turn: parse_id(&request.turn_id)?, claim_ttl, lease_ttl, stream: None })
}

fn finish(request: pb::FinishTurnRequest) -> Result<Finish, Invalid> {
    let turn = parse_id(&request.turn_id)?;
    let ending = ending_of(request.outcome(), request.result, request.ttl)?;
    Ok(Finish { turn, ending, unless_resumed: None })
}

fn ending_of(
    outcome: pb::TurnOutcome,
    result: Vec<u8>,
    ttl: Option<prost_types::Duration>,
) -> Result<Ending, Invalid> {
    if outcome == pb::TurnOutcome::Failed && ttl.is_some() {
        return Err(Invalid::new("ttl", "must be unset unless outcome is SUCCEEDED"));
    }
    let ttl = convert::event_ttl(ttl)?;
    match outcome {
        pb::TurnOutcome::Succeeded if result.len() > limits::MAX_RESULT_BYTES => {
            let (most, is) = (limits::MAX_RESULT_BYTES, result.len());
            Err(Invalid::new("result", format!("must be at most {most} bytes, is {is}")))
        }
        pb::TurnOutcome::Succeeded => Ok(Ending::Succeeded(result, ttl)),
        pb::TurnOutcome::Failed if !result.is_empty() => {
            Err(Invalid::new("result", "must be empty unless outcome is SUCCEEDED"))
        }
        pb::TurnOutcome::Failed => Ok(Ending::Failed),
        pb::TurnOutcome::Unspecified | pb::TurnOutcome::GaveUp => {
            Err(Invalid::new("outcome", "must be SUCCEEDED or FAILED"))
        }
    }
}

fn turn(turn: Turn) -> pb::Turn {
    let lease = turn.id.lease.as_ref().map(|(key, _)| key.clone()).zip(turn.lease);
    pb::Turn {
        turn_id: write_id(&turn.id),
        attempt: convert::small(turn.claim.attempt),
        lease: lease.map(|(key, lease)| convert::session_lease(key, lease)),
        expire_time: convert::timestamp(turn.claim.lapse_time),
        remaining: convert::length(turn.claim.remaining),
    }
}

/// The longest id that is derived of others: of three, with two colons.
const MAX_DERIVED_BYTES: usize = 3 * limits::MAX_ID_BYTES + 2;

/// What a turn id holds, so that any replica can finish any turn without looking it
/// up. The lease id in it is known to the holder only.
#[derive(Clone, PartialEq, prost::Message)]
struct Token {
    #[prost(string, tag = "1")]
    team: String,
    #[prost(string, tag = "2")]
    event: String,
    #[prost(bytes = "vec", tag = "3")]
    request: Vec<u8>,
    #[prost(string, tag = "4")]
    session: String,
    #[prost(bytes = "vec", tag = "5")]
    lease: Vec<u8>,
    #[prost(uint32, tag = "6")]
    max_attempts: u32,
    #[prost(uint32, tag = "7")]
    attempt: u32,
}

fn write_id(id: &TurnId) -> String {
    let lease = id.lease.as_ref();
    let token = Token {
        team: id.event.team.clone(),
        event: id.event.event.clone(),
        request: id.request.as_uuid().as_bytes().to_vec(),
        session: lease.map(|(key, _)| key.session.clone()).unwrap_or_default(),
        lease: lease.map(|(_, lease)| lease.as_uuid().as_bytes().to_vec()).unwrap_or_default(),
        max_attempts: id.max_attempts,
        attempt: id.attempt,
    };
    URL_SAFE_NO_PAD.encode(token.encode_to_vec())
}

fn parse_id(id: &str) -> Result<TurnId, Invalid> {
    let read = || {
        let token = Token::decode(&*URL_SAFE_NO_PAD.decode(id).ok()?).ok()?;
        let request = RequestId::from_uuid(Uuid::from_slice(&token.request).ok()?);
        let Token { team, event, session, max_attempts, attempt, .. } = token;
        let is_sound = |id: &String| {
            (1..=MAX_DERIVED_BYTES).contains(&id.len()) && !id.contains(char::is_control)
        };
        if ![&team, &event].into_iter().all(is_sound) {
            return None;
        }
        let lease = if session.is_empty() {
            None
        } else {
            let session = Some(session).filter(is_sound)?;
            let lease = LeaseId::from_uuid(Uuid::from_slice(&token.lease).ok()?);
            Some((SessionKey { team: team.clone(), session }, lease))
        };
        Some(TurnId { event: EventKey { team, event }, request, attempt, lease, max_attempts })
    };
    read().ok_or_else(|| Invalid::new("turn_id", "must be a turn_id that BeginTurn returned"))
}
