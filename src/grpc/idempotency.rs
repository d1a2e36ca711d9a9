//! `IdempotencyService`: reads a request, asks the service it belongs to,
//! writes the answer.

use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _, stream::BoxStream};
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use tonic_types::StatusExt as _;

use super::{
    alive::with_signs_of_life,
    caller::Caller,
    convert,
    deadline::Deadline,
    pb::{self, idempotency_service_server::IdempotencyService},
    status::Problem,
};
use crate::{
    cleanup::{Cleaned, Cleanup},
    dedup::Dedup,
    domain::{EventKey, Invalid, Mark, MarkOutcome, limits::MAX_BATCH_ITEMS},
    lane::CallError,
    session::{AcquireOutcome, Sessions, StreamEvent},
    store::{Age, Scope, StoreError},
    telemetry::{
        self, AUDIT,
        call::{self, CallTrace},
    },
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
        let (caller, deadline) = (Caller::current()?, self.deadline(&request));
        let mark = caller.read(|teams| convert::mark(teams, request.into_inner()))?;
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
        let (caller, deadline) = (Caller::current()?, self.deadline(&request));
        let requests = request.into_inner().requests;
        if requests.is_empty() || requests.len() > MAX_BATCH_ITEMS {
            let problem = format!("must be 1 to {MAX_BATCH_ITEMS}, are {}", requests.len());
            return Err(Problem::from(Invalid::new("requests", problem)).into());
        }
        let team = only_team(&requests).filter(|team| caller.may_use(team));
        let is_full = |team: &&str| !self.dedup.may_have_room(team, requests.len());
        let full = team.filter(is_full).map(str::to_owned);
        let mark = |request| caller.read(|teams| convert::mark(teams, request));
        let items = requests.into_iter().map(mark);
        let items: Vec<Result<Mark, Problem>> = match full {
            None => items.collect(),
            Some(team) => self.dedup.read_known(&team, items).map_err(Problem::from)?,
        };
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
        let (caller, deadline) = (Caller::current()?, self.deadline(&request));
        let pb::IsProcessedRequest { event, include_result } = request.into_inner();
        let asked = caller.read(|teams| convert::delivered(teams, event, &[]))?;
        let key = asked.key.clone();
        call::team(&key.team);
        let looked = deadline.bound(self.dedup.look(asked, include_result)).await?;
        Ok(Response::new(convert::look_response(key, looked)))
    }

    async fn acquire_session_lease(
        &self,
        request: Request<pb::AcquireSessionLeaseRequest>,
    ) -> Result<Response<pb::AcquireSessionLeaseResponse>, Status> {
        let (caller, deadline) = (Caller::current()?, self.deadline(&request));
        let call = caller.read(|teams| convert::acquire(teams, request.into_inner()))?;
        let wait = deadline.wait(call.wait);
        call::team(&call.acquire.key.team);
        let acquiring = self.sessions.acquire(&call.acquire, wait);
        let acquiring = caller.while_allowed(&call.acquire.key.team, wait, acquiring);
        let outcome = deadline.after(wait).bound(acquiring).await?;
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
        let caller = Caller::current()?;
        let stream = request.extensions_mut().remove().unwrap_or_default();
        let call = caller.read(|teams| convert::hold(teams, request.into_inner()))?;
        let key = call.acquire.key.clone();
        call::team(&key.team);
        let mut waiting = caller.begin_wait(call.wait)?;
        let stream = caller.of_stream(&key.team, stream);
        let events = self.sessions.hold(call.acquire, call.wait, self.timeout, stream);
        let events = events.into_stream().map(move |event| {
            // It has the call's place in flight, if the call was begun by another principal.
            let _in_flight = &caller;
            if !matches!(event, Ok(StreamEvent::Queued(_))) {
                drop(waiting.take());
            }
            event
                .map(|event| convert::hold_event(&key, event, arrived))
                .map_err(|error| Problem::from(error).into())
        });
        let alive = || Ok(convert::hold_alive());
        Ok(Response::new(with_signs_of_life(events, alive).boxed()))
    }

    async fn renew_session_lease(
        &self,
        request: Request<pb::RenewSessionLeaseRequest>,
    ) -> Result<Response<pb::RenewSessionLeaseResponse>, Status> {
        let (caller, deadline) = (Caller::current()?, self.deadline(&request));
        let renew = caller.read(|teams| convert::renew(teams, request.into_inner()))?;
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
        let (caller, deadline) = (Caller::current()?, self.deadline(&request));
        let (key, lease) = caller.read(|teams| convert::release(teams, request.into_inner()))?;
        call::team(&key.team);
        let released = deadline.bound(self.sessions.release(key, lease)).await?;
        Ok(Response::new(pb::ReleaseSessionLeaseResponse { released }))
    }

    async fn check_session_lease(
        &self,
        request: Request<pb::CheckSessionLeaseRequest>,
    ) -> Result<Response<pb::CheckSessionLeaseResponse>, Status> {
        let (caller, deadline) = (Caller::current()?, self.deadline(&request));
        let (key, token) = caller.read(|teams| convert::check(teams, request.into_inner()))?;
        call::team(&key.team);
        let (current, highest) = deadline.bound(self.sessions.check(key, token)).await?;
        let fencing_token = highest.map_or(0, |token| token.0);
        Ok(Response::new(pb::CheckSessionLeaseResponse { current, fencing_token }))
    }

    async fn cleanup(
        &self,
        request: Request<pb::CleanupRequest>,
    ) -> Result<Response<pb::CleanupResponse>, Status> {
        let (caller, deadline) = (Caller::current()?, self.deadline(&request));
        let (scope, limit) = caller.read(|teams| convert::cleanup(teams, request.into_inner()))?;
        let cleaned =
            deadline.bound(self.cleanup.run(&scope, limit, Instant::now() + deadline.half())).await;
        audit(&caller, &scope, cleaned.as_ref().ok());
        let cleaned = cleaned?;
        Ok(Response::new(convert::cleanup_response(cleaned)))
    }
}

/// Notes in the audit log what a `Cleanup` deleted.
fn audit(caller: &Caller, scope: &Scope, cleaned: Option<&Cleaned>) {
    let (team, principal) = (scope.team.team().unwrap_or("*"), caller.principal());
    let older_than = match scope.age {
        Age::Expired => None,
        Age::AtLeast(age) => Some(humantime::format_duration(age).to_string()),
    };
    let Cleaned { events, sessions, .. } = cleaned.copied().unwrap_or_default();
    let (principal, dry_run) = (principal.as_deref(), scope.dry_run);
    let outcome = if cleaned.is_some() { "done" } else { "unknown" };
    let call = CallTrace::current();
    telemetry::call::log(call.as_ref(), || {
        tracing::info!(
            target: AUDIT, team, principal, older_than, dry_run, events, sessions, outcome,
            "clean up"
        );
    });
}

/// The team that all items of a batch name; none if a payload names it, or there are several.
fn only_team(requests: &[pb::MarkProcessedRequest]) -> Option<&str> {
    let mut teams =
        requests.iter().map(|request| request.event.as_ref().map(|event| &*event.team_id));
    let first = teams.next()??;
    (!first.is_empty() && teams.all(|team| team == Some(first))).then_some(first)
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
    key: Result<EventKey, Problem>,
    outcomes: &mut impl Iterator<Item = Result<MarkOutcome, CallError>>,
) -> pb::BatchMarkProcessedResult {
    let answer = key.and_then(|key| {
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
