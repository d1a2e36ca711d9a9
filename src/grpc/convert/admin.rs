//! The operator API and cleanup.

use std::{sync::Arc, time::Duration};

use super::{
    duration, ids,
    key::{event_key, session_key},
    length, pb, timestamp,
};
use crate::{
    admin::Author,
    cleanup::Cleaned,
    domain::{
        EventKey, Id, Invalid, SessionKey, SessionRow, TeamFilter, TeamScope, bounded,
        is_stored_id, limits,
    },
    store::{Age, Counts, EventFilter, EventStatus, Page, Scope},
};

/// Stands between team and stored id in a page token; neither has it.
pub(in crate::grpc) const TOKEN_SEPARATOR: char = '\u{1f}';

/// One team, or all.
pub(in crate::grpc) fn team(teams: &TeamScope, given: String) -> Result<TeamFilter, Invalid> {
    teams.filter("team_id", given)
}

/// Which part of a list to read. The token is a position, and permits nothing: one of another team's
/// list is where to begin in the caller's.
fn page(teams: &TeamScope, team_id: String, size: i32, token: &str) -> Result<Page, Invalid> {
    let limit = match u32::try_from(size) {
        Ok(0) => limits::DEFAULT_PAGE_SIZE,
        Ok(size) if size <= limits::MAX_PAGE_SIZE => size,
        _ => {
            let problem = format!("must be 1 to {}", limits::MAX_PAGE_SIZE);
            return Err(Invalid::new("page_size", problem));
        }
    };
    let after = match token.split_once(TOKEN_SEPARATOR) {
        Some((team, id)) if is_stored_id(id) && !team.contains(char::is_control) => {
            (team.to_owned(), id.to_owned())
        }
        None if token.is_empty() => Default::default(),
        _ => return Err(Invalid::new("page_token", "must be the next_page_token of a page")),
    };
    Ok(Page { team: team(teams, team_id)?, after, limit })
}

/// Where the page after the one that ends with this team and id begins.
pub(in crate::grpc) fn page_token((team, id): (&str, &str)) -> String {
    format!("{team}{TOKEN_SEPARATOR}{id}")
}

/// Which sessions to list: those that are held, or those that are not, or all.
pub(in crate::grpc) fn sessions(
    teams: &TeamScope,
    request: pb::ListSessionsRequest,
) -> Result<(Page, Option<bool>), Invalid> {
    let held = match request.state() {
        _ if pb::SessionState::try_from(request.state).is_err() => {
            return Err(Invalid::new("state", "must be a SessionState"));
        }
        pb::SessionState::Unspecified => None,
        pb::SessionState::Held => Some(true),
        pb::SessionState::Free => Some(false),
    };
    Ok((page(teams, request.team_id, request.page_size, &request.page_token)?, held))
}

/// Which events to list.
pub(in crate::grpc) fn events(
    teams: &TeamScope,
    request: pb::ListEventsRequest,
) -> Result<(Page, EventFilter), Invalid> {
    let filter = EventFilter {
        standing: standing(request.state, request.outcome)?,
        newer_than: age("newer_than", request.newer_than)?,
        older_than: age("older_than", request.older_than)?,
    };
    Ok((page(teams, request.team_id, request.page_size, &request.page_token)?, filter))
}

pub(in crate::grpc) fn standing(state: i32, outcome: i32) -> Result<Option<EventStatus>, Invalid> {
    let state = match pb::EventState::try_from(state) {
        Ok(pb::EventState::Unspecified) => None,
        Ok(pb::EventState::NotSeen) => Some(EventStatus::Free),
        Ok(pb::EventState::InProgress) => Some(EventStatus::Claimed),
        Ok(pb::EventState::Processed) => Some(EventStatus::Processed),
        Err(_) => return Err(Invalid::new("state", "must be an EventState")),
    };
    let outcome = match pb::TurnOutcome::try_from(outcome) {
        Ok(pb::TurnOutcome::Unspecified) => return Ok(state),
        Ok(pb::TurnOutcome::Succeeded) => EventStatus::Succeeded,
        Ok(pb::TurnOutcome::Rejected) => EventStatus::Rejected,
        Ok(pb::TurnOutcome::GaveUp) => EventStatus::GaveUp,
        Ok(pb::TurnOutcome::Failed) | Err(_) => {
            return Err(Invalid::new("outcome", "must be SUCCEEDED, REJECTED or GAVE_UP"));
        }
    };
    match state {
        None | Some(EventStatus::Processed) => Ok(Some(outcome)),
        Some(_) => Err(Invalid::new("outcome", "must be unset unless state is PROCESSED")),
    }
}

pub(in crate::grpc) fn age(
    field: &'static str,
    value: Option<prost_types::Duration>,
) -> Result<Option<Duration>, Invalid> {
    let age = duration(field, value)?;
    age.map(|age| bounded(field, age, &limits::CLEANUP_AGE)).transpose()
}

/// Who a caller says that it acts for, and why.
pub(in crate::grpc) struct Claimed {
    actor: String,
    reason: String,
}

impl Claimed {
    /// The same, beside the `principal` that was authenticated.
    pub(in crate::grpc) fn by(self, principal: Option<Arc<str>>) -> Author {
        let Self { actor, reason } = self;
        Author { principal, actor, reason }
    }
}

fn claimed(actor: String, reason: String) -> Result<Claimed, Invalid> {
    let reason = Id::optional("reason", reason)?.map(Id::into_string).unwrap_or_default();
    Ok(Claimed { actor: Id::parse("actor", actor)?.into_string(), reason })
}

pub(in crate::grpc) fn bind(
    teams: &TeamScope,
    request: pb::BindEpicRequest,
) -> Result<(SessionKey, Option<String>, Claimed), Invalid> {
    let key = session_key(teams, request.session)?;
    let epic = Id::optional("epic_id", request.epic_id)?.map(Id::into_string);
    Ok((key, epic, claimed(request.actor, request.reason)?))
}

pub(in crate::grpc) fn force_release(
    teams: &TeamScope,
    request: pb::ForceReleaseSessionLeaseRequest,
) -> Result<(SessionKey, Claimed), Invalid> {
    let key = session_key(teams, request.session)?;
    let reason = Id::parse("reason", request.reason)?.into_string();
    Ok((key, claimed(request.actor, reason)?))
}

pub(in crate::grpc) fn close(
    teams: &TeamScope,
    request: pb::CloseSessionRequest,
) -> Result<(SessionKey, Claimed), Invalid> {
    Ok((session_key(teams, request.session)?, claimed(request.actor, request.reason)?))
}

pub(in crate::grpc) fn forget(
    teams: &TeamScope,
    request: pb::ForgetEventRequest,
) -> Result<(EventKey, Claimed), Invalid> {
    Ok((event_key(teams, request.event)?, claimed(request.actor, request.reason)?))
}

/// What to delete, and the most rows of it.
pub(in crate::grpc) fn cleanup(
    teams: &TeamScope,
    request: pb::CleanupRequest,
) -> Result<(Scope, u32), Invalid> {
    let team = team(teams, request.team_id)?;
    let age = age("older_than", request.older_than)?.map_or(Age::Expired, Age::AtLeast);
    // The stores count in microseconds: less than one is none.
    if matches!(age, Age::AtLeast(age) if age.as_micros() == 0) && team.team().is_none() {
        return Err(Invalid::new("team_id", "is required where older_than is zero"));
    }
    let limit = match u32::try_from(request.max_rows) {
        Ok(0) => limits::DEFAULT_CLEANUP_ROWS,
        Ok(rows) if rows <= limits::MAX_CLEANUP_ROWS => rows,
        _ => {
            let problem = format!("must be 1 to {}", limits::MAX_CLEANUP_ROWS);
            return Err(Invalid::new("max_rows", problem));
        }
    };
    Ok((Scope { team, age, dry_run: request.dry_run, elected: false }, limit))
}

pub(in crate::grpc) fn session(key: SessionKey, row: SessionRow) -> pb::Session {
    let state = if row.live { pb::SessionState::Held } else { pb::SessionState::Free };
    let lease = row.lease;
    let (session_id, consumer) = ids(&key.session);
    pb::Session {
        team_id: key.team.into_string(),
        session_id,
        consumer,
        state: state.into(),
        holder: lease.holder,
        fencing_token: lease.token.0,
        acquire_time: timestamp(lease.acquire_time),
        expire_time: timestamp(lease.expire_time),
        remaining: if row.live { length(lease.remaining) } else { None },
        epic_id: lease.epic.unwrap_or_default(),
        labels: lease.labels.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        waiters: i32::try_from(row.queue.len()).unwrap_or(i32::MAX),
    }
}

pub(in crate::grpc) fn stats(counts: Counts) -> pb::GetStatsResponse {
    pb::GetStatsResponse {
        events: count(counts.events),
        expired_events: count(counts.expired_events),
        sessions: count(counts.sessions),
        held_sessions: count(counts.held_sessions),
        waiters: count(counts.waiters),
    }
}

pub(in crate::grpc) fn count(rows: u64) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

pub(in crate::grpc) fn cleanup_response(cleaned: Cleaned) -> pb::CleanupResponse {
    pb::CleanupResponse {
        deleted_events: count(cleaned.events),
        deleted_sessions: count(cleaned.sessions),
        more: cleaned.more,
    }
}
