//! `IdempotencyService`: reads a request, asks the service it belongs to,
//! writes the answer.

use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _, stream::BoxStream};
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use tonic_types::StatusExt as _;

use super::{
    alive::with_signs_of_life,
    convert,
    deadline::Deadline,
    pb::{self, idempotency_service_server::IdempotencyService},
    status::Problem,
};
use crate::{
    cleanup::Cleanup,
    dedup::Dedup,
    domain::{EventKey, Invalid, MarkOutcome, limits::MAX_BATCH_ITEMS},
    lane::CallError,
    session::{AcquireOutcome, Sessions},
    store::StoreError,
    telemetry::call,
};

/// The service, as the server runs it.
pub struct Idempotency {
    /// Events.
    pub dedup: Dedup,
    /// Sessions.
    pub sessions: Sessions,
    /// Rows no longer needed.
    pub cleanup: Cleanup,
    /// How long one call may take, a wait not counted.
    pub timeout: Duration,
}

impl Idempotency {
    fn deadline<T>(&self, request: &Request<T>) -> Deadline {
        Deadline::of(request.metadata(), self.timeout)
    }
}

#[tonic::async_trait]
impl IdempotencyService for Idempotency {
    async fn mark_processed(
        &self,
        request: Request<pb::MarkProcessedRequest>,
    ) -> Result<Response<pb::MarkProcessedResponse>, Status> {
        let deadline = self.deadline(&request);
        let mark = convert::mark(request.into_inner()).map_err(Problem::from)?;
        let key = mark.event.key.clone();
        call::team(&key.team);
        let outcome = deadline.bound(self.dedup.mark(mark)).await?;
        let response = convert::mark_response(key, outcome).map_err(Problem::from)?;
        Ok(Response::new(response))
    }

    async fn batch_mark_processed(
        &self,
        request: Request<pb::BatchMarkProcessedRequest>,
    ) -> Result<Response<pb::BatchMarkProcessedResponse>, Status> {
        let deadline = self.deadline(&request);
        let requests = request.into_inner().requests;
        if requests.is_empty() || requests.len() > MAX_BATCH_ITEMS {
            let problem = format!("must be 1 to {MAX_BATCH_ITEMS}, are {}", requests.len());
            return Err(Problem::from(Invalid::new("requests", problem)).into());
        }

        let items: Vec<_> = requests.into_iter().map(convert::mark).collect();
        let keys: Vec<_> = items
            .iter()
            .map(|item| item.as_ref().map(|mark| mark.event.key.clone()).map_err(Clone::clone))
            .collect();
        let marks = items.into_iter().flatten().collect();
        let outcomes = deadline.bound(self.dedup.mark_all(marks).map(Ok::<_, Problem>)).await?;
        if let Some(error) = all_failed(&outcomes) {
            return Err(Problem::from(error).into());
        }

        let mut outcomes = outcomes.into_iter();
        let results = keys
            .into_iter()
            .enumerate()
            .map(|(index, key)| batch_result(index, key, &mut outcomes))
            .collect();
        Ok(Response::new(pb::BatchMarkProcessedResponse { results }))
    }

    async fn is_processed(
        &self,
        request: Request<pb::IsProcessedRequest>,
    ) -> Result<Response<pb::IsProcessedResponse>, Status> {
        let deadline = self.deadline(&request);
        let pb::IsProcessedRequest { event, include_result } = request.into_inner();
        let asked = convert::delivered(event, &[]).map_err(Problem::from)?;
        let key = asked.key.clone();
        call::team(&key.team);
        let looked = deadline.bound(self.dedup.look(asked, include_result)).await?;
        Ok(Response::new(convert::look_response(key, looked)))
    }

    async fn acquire_session_lease(
        &self,
        request: Request<pb::AcquireSessionLeaseRequest>,
    ) -> Result<Response<pb::AcquireSessionLeaseResponse>, Status> {
        let deadline = self.deadline(&request);
        let call = convert::acquire(request.into_inner()).map_err(Problem::from)?;
        let wait = deadline.wait(call.wait);
        call::team(&call.acquire.key.team);
        let outcome =
            deadline.after(wait).bound(self.sessions.acquire(&call.acquire, wait)).await?;
        let outcome = match outcome {
            AcquireOutcome::Granted(grant) => {
                let lease =
                    convert::session_lease(call.acquire.key, grant.accept(), deadline.arrived());
                pb::acquire_session_lease_response::Outcome::Lease(lease)
            }
            AcquireOutcome::Held(held) => {
                let held = convert::lease_held(held, deadline.arrived());
                pb::acquire_session_lease_response::Outcome::Held(held)
            }
        };
        Ok(Response::new(pb::AcquireSessionLeaseResponse { outcome: Some(outcome) }))
    }

    type HoldSessionLeaseStream = BoxStream<'static, Result<pb::HoldSessionLeaseResponse, Status>>;

    async fn hold_session_lease(
        &self,
        mut request: Request<pb::HoldSessionLeaseRequest>,
    ) -> Result<Response<Self::HoldSessionLeaseStream>, Status> {
        let arrived = Instant::now();
        let caller = request.extensions_mut().remove().unwrap_or_default();
        let call = convert::hold(request.into_inner()).map_err(Problem::from)?;
        let key = call.acquire.key.clone();
        call::team(&key.team);
        let events = self.sessions.hold(call.acquire, call.wait, self.timeout, caller);
        let events = events.into_stream().map(move |event| match event {
            Ok(event) => Ok(convert::hold_event(&key, event, arrived)),
            Err(error) => Err(Problem::from(error).into()),
        });
        let alive = || Ok(convert::hold_alive());
        Ok(Response::new(with_signs_of_life(events, alive).boxed()))
    }

    async fn renew_session_lease(
        &self,
        request: Request<pb::RenewSessionLeaseRequest>,
    ) -> Result<Response<pb::RenewSessionLeaseResponse>, Status> {
        let deadline = self.deadline(&request);
        let renew = convert::renew(request.into_inner()).map_err(Problem::from)?;
        let key = renew.key.clone();
        call::team(&key.team);
        let lease = deadline.bound(self.sessions.renew(renew)).await?;
        let lease = Some(convert::session_lease(key, lease, deadline.arrived()));
        Ok(Response::new(pb::RenewSessionLeaseResponse { lease }))
    }

    async fn release_session_lease(
        &self,
        request: Request<pb::ReleaseSessionLeaseRequest>,
    ) -> Result<Response<pb::ReleaseSessionLeaseResponse>, Status> {
        let deadline = self.deadline(&request);
        let (key, lease) = convert::release(request.into_inner()).map_err(Problem::from)?;
        call::team(&key.team);
        let released = deadline.bound(self.sessions.release(key, lease)).await?;
        Ok(Response::new(pb::ReleaseSessionLeaseResponse { released }))
    }

    async fn check_session_lease(
        &self,
        request: Request<pb::CheckSessionLeaseRequest>,
    ) -> Result<Response<pb::CheckSessionLeaseResponse>, Status> {
        let deadline = self.deadline(&request);
        let (key, token) = convert::check(request.into_inner()).map_err(Problem::from)?;
        call::team(&key.team);
        let (current, highest) = deadline.bound(self.sessions.check(key, token)).await?;
        let fencing_token = highest.map_or(0, |token| token.0);
        Ok(Response::new(pb::CheckSessionLeaseResponse { current, fencing_token }))
    }

    async fn cleanup(
        &self,
        request: Request<pb::CleanupRequest>,
    ) -> Result<Response<pb::CleanupResponse>, Status> {
        let deadline = self.deadline(&request);
        let (scope, limit) = convert::cleanup(request.into_inner()).map_err(Problem::from)?;
        let cleaned = deadline
            .bound(self.cleanup.run(&scope, limit, Instant::now() + deadline.half()))
            .await?;
        Ok(Response::new(convert::cleanup_response(cleaned)))
    }
}

/// The error that left a batch without any answer: then the call itself fails,
/// so that a caller's own retries see it.
fn all_failed(outcomes: &[Result<MarkOutcome, CallError>]) -> Option<CallError> {
    let systemic = |outcome: &Result<MarkOutcome, CallError>| match outcome {
        Err(CallError::Store(StoreError::InvalidData(_) | StoreError::Rejected(_))) | Ok(_) => None,
        Err(error) => Some(error.clone()),
    };
    let errors: Vec<CallError> = outcomes.iter().map(systemic).collect::<Option<_>>()?;
    // If one of them may have been marked, the call must not report that nothing was.
    let is_unknown =
        |error: &&CallError| matches!(error, CallError::Store(StoreError::OutcomeUnknown(_)));
    errors.iter().find(is_unknown).or(errors.first()).cloned()
}

/// The answer for the item at `index`: what is wrong with it, or else the next
/// of `outcomes`.
fn batch_result(
    index: usize,
    key: Result<EventKey, Invalid>,
    outcomes: &mut impl Iterator<Item = Result<MarkOutcome, CallError>>,
) -> pb::BatchMarkProcessedResult {
    let answer = key.map_err(Problem::from).and_then(|key| {
        let missing = || Err(StoreError::internal("an item without an outcome").into());
        let outcome = outcomes.next().unwrap_or_else(missing)?;
        Ok(convert::mark_response(key, outcome)?)
    });
    let result = match answer {
        Ok(response) => pb::batch_mark_processed_result::Result::Response(response),
        Err(problem) => {
            let field = match problem.field() {
                "" => String::new(),
                field => format!("requests[{index}].{field}"),
            };
            let status = Status::from(problem);
            pb::batch_mark_processed_result::Result::Error(pb::BatchItemError {
                code: status.code().into(),
                message: status.message().to_owned(),
                field,
                reason: status.get_details_error_info().map(|info| info.reason).unwrap_or_default(),
            })
        }
    };
    pb::BatchMarkProcessedResult { result: Some(result) }
}
