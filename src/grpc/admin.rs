//! `AdminService`: reads a request, asks, writes the answer.

use std::time::Duration;

use tonic::{Request, Response, Status};

use super::{
    caller::Caller,
    convert,
    deadline::Deadline,
    pb::{self, admin_service_server::AdminService},
    status::Problem,
};
use crate::{admin::Admin, domain::SessionKey, lane::CallError, telemetry::call};

/// The service, as the server runs it.
pub struct Administration {
    /// What it asks.
    pub admin: Admin,
    /// How long one call may take.
    pub timeout: Duration,
}

impl Administration {
    fn deadline<T>(&self, request: &Request<T>) -> Deadline {
        Deadline::of(request.metadata(), self.timeout)
    }

    async fn session(&self, key: SessionKey) -> Result<Option<pb::Session>, CallError> {
        let row = self.admin.session(key.clone()).await?;
        Ok(row.map(|row| convert::session(key, row)))
    }
}

#[tonic::async_trait]
impl AdminService for Administration {
    async fn get_session(
        &self,
        request: Request<pb::GetSessionRequest>,
    ) -> Result<Response<pb::GetSessionResponse>, Status> {
        let (caller, deadline) = (Caller::current()?, self.deadline(&request));
        let key = caller.read(|teams| convert::session_key(teams, request.into_inner().session))?;
        call::team(&key.team);
        let session = deadline.bound(self.session(key)).await?;
        let session = Some(session.ok_or(Problem::NotFound("session"))?);
        Ok(Response::new(pb::GetSessionResponse { session }))
    }

    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Result<Response<pb::ListSessionsResponse>, Status> {
        let (caller, deadline) = (Caller::current()?, self.deadline(&request));
        let (page, held) = caller.read(|teams| convert::sessions(teams, request.into_inner()))?;
        let (listed, more) = deadline.bound(self.admin.sessions(page, held)).await?;
        let last = listed.last().filter(|_| more).map(|(key, _)| (&*key.team, &*key.session));
        let next_page_token = last.map(convert::page_token).unwrap_or_default();
        let sessions = listed.into_iter().map(|(key, row)| convert::session(key, row)).collect();
        Ok(Response::new(pb::ListSessionsResponse { sessions, next_page_token }))
    }

    async fn list_events(
        &self,
        request: Request<pb::ListEventsRequest>,
    ) -> Result<Response<pb::ListEventsResponse>, Status> {
        let (caller, deadline) = (Caller::current()?, self.deadline(&request));
        let (page, filter) = caller.read(|teams| convert::events(teams, request.into_inner()))?;
        let (listed, more) = deadline.bound(self.admin.events(page, filter)).await?;
        let last = listed.rows.last().filter(|_| more).map(|(key, _)| (&*key.team, &*key.event));
        let next_page_token = last.map(convert::page_token).unwrap_or_default();
        let read_time = convert::timestamp(listed.at);
        let events = listed.rows.into_iter().map(|(key, row)| convert::event(key, row)).collect();
        Ok(Response::new(pb::ListEventsResponse { events, next_page_token, read_time }))
    }

    async fn bind_epic(
        &self,
        request: Request<pb::BindEpicRequest>,
    ) -> Result<Response<pb::BindEpicResponse>, Status> {
        let (caller, deadline) = (Caller::current()?, self.deadline(&request));
        let (key, epic, claimed) =
            caller.read(|teams| convert::bind(teams, request.into_inner()))?;
        call::team(&key.team);
        let bind_and_look = async {
            self.admin.bind_epic(key.clone(), epic, claimed.by(caller.principal())).await?;
            self.session(key).await.map_err(CallError::after_change)
        };
        let session = deadline.bound(bind_and_look).await?;
        Ok(Response::new(pb::BindEpicResponse { session }))
    }

    async fn force_release_session_lease(
        &self,
        request: Request<pb::ForceReleaseSessionLeaseRequest>,
    ) -> Result<Response<pb::ForceReleaseSessionLeaseResponse>, Status> {
        let (caller, deadline) = (Caller::current()?, self.deadline(&request));
        let (key, claimed) =
            caller.read(|teams| convert::force_release(teams, request.into_inner()))?;
        call::team(&key.team);
        let release_and_look = async {
            let released =
                self.admin.force_release(key.clone(), claimed.by(caller.principal())).await?;
            let session = self.session(key).await.map_err(CallError::after_change)?;
            Ok::<_, CallError>((released, session))
        };
        let (released, session) = deadline.bound(release_and_look).await?;
        Ok(Response::new(pb::ForceReleaseSessionLeaseResponse { released, session }))
    }

    async fn close_session(
        &self,
        request: Request<pb::CloseSessionRequest>,
    ) -> Result<Response<pb::CloseSessionResponse>, Status> {
        let (caller, deadline) = (Caller::current()?, self.deadline(&request));
        let (key, claimed) = caller.read(|teams| convert::close(teams, request.into_inner()))?;
        call::team(&key.team);
        let closed = deadline.bound(self.admin.close(key, claimed.by(caller.principal()))).await?;
        Ok(Response::new(pb::CloseSessionResponse { closed }))
    }

    async fn forget_event(
        &self,
        request: Request<pb::ForgetEventRequest>,
    ) -> Result<Response<pb::ForgetEventResponse>, Status> {
        let (caller, deadline) = (Caller::current()?, self.deadline(&request));
        let (key, claimed) = caller.read(|teams| convert::forget(teams, request.into_inner()))?;
        call::team(&key.team);
        let forgotten =
            deadline.bound(self.admin.forget(key.clone(), claimed.by(caller.principal()))).await?;
        let event = convert::event(key, forgotten.ok_or(Problem::NotFound("event"))?);
        Ok(Response::new(pb::ForgetEventResponse { event: Some(event) }))
    }

    async fn get_stats(
        &self,
        request: Request<pb::GetStatsRequest>,
    ) -> Result<Response<pb::GetStatsResponse>, Status> {
        let (caller, deadline) = (Caller::current()?, self.deadline(&request));
        let team = caller.read(|teams| convert::team(teams, request.into_inner().team_id))?;
        let counts = deadline.bound(self.admin.count(team)).await?;
        Ok(Response::new(convert::stats(counts)))
    }
}
