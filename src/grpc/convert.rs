//! Messages to values, checked field by field, and values to messages.

use std::time::Duration;

use prost_types::Timestamp as PbTimestamp;

use super::pb;
use crate::{
    admin::Author,
    cleanup::Cleaned,
    domain::{
        Acquire, By, Claim, Delivered, EventKey, EventRow, FencingToken, Held, Id, Invalid, Labels,
        Lease, LeaseId, Mark, MarkOutcome, PayloadDigest, RequestId, SessionKey, SessionRow,
        SlackEvent, Timestamp, Ttl, bounded, limits,
    },
    session::{Holding, SessionError},
    store::{Age, Counts, EventFilter, Page, Renew, Scope, Standing},
};

/// When a caller that found a session about to be handed on may ask again.
const RETRY_AFTER_HANDOVER: Duration = Duration::from_millis(100);
/// The longest that a caller who does not wait is told to stay away.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(1);

fn required<T>(field: &'static str, value: Option<T>) -> Result<T, Invalid> {
    value.ok_or_else(|| Invalid::new(field, "is required"))
}

pub(super) fn duration(
    field: &'static str,
    value: Option<prost_types::Duration>,
) -> Result<Option<Duration>, Invalid> {
    let Some(value) = value else { return Ok(None) };
    if value.seconds < 0 || value.nanos < 0 {
        return Err(Invalid::new(field, "must not be negative"));
    }
    match (u64::try_from(value.seconds), u32::try_from(value.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => {
            Ok(Some(Duration::new(seconds, nanos)))
        }
        _ => Err(Invalid::new(field, "must have nanos below 1,000,000,000")),
    }
}

fn slack_event(slack: pb::SlackEvent) -> Result<SlackEvent, Invalid> {
    Ok(SlackEvent {
        event_id: Id::optional("slack.event_id", slack.event_id)?,
        client_msg_id: Id::optional("slack.client_msg_id", slack.client_msg_id)?,
        channel: Id::optional("slack.channel", slack.channel)?,
        ts: Id::optional("slack.ts", slack.ts)?,
        thread_ts: Id::optional("slack.thread_ts", slack.thread_ts)?,
        action_id: Id::optional("slack.action_id", slack.action_id)?,
        message_ts: Id::optional("slack.message_ts", slack.message_ts)?,
        user_id: Id::optional("slack.user_id", slack.user_id)?,
    })
}

/// The event of a delivery, with the digest that is given beside it.
pub(super) fn delivered(
    key: Option<pb::EventKey>,
    payload_digest: &[u8],
) -> Result<Delivered, Invalid> {
    let digest = PayloadDigest::optional("payload_digest", payload_digest)?;
    let read = |key: pb::EventKey| {
        let team = Id::parse("team_id", key.team_id)?;
        let event = match required("event_id", key.key)? {
            pb::event_key::Key::EventId(id) => EventKey::given(team, Id::parse("event_id", id)?),
            pb::event_key::Key::Slack(slack) => EventKey::slack(team, slack_event(slack)?)?,
        };
        if key.aliases.len() > limits::MAX_ALIASES {
            let (most, are) = (limits::MAX_ALIASES, key.aliases.len());
            return Err(Invalid::new("aliases", format!("must be at most {most}, are {are}")));
        }
        let alias = |(index, alias): (usize, String)| {
            let parsed = Id::parse("aliases", alias).map(Id::into_string);
            parsed.map_err(|invalid| Invalid::new(format!("aliases[{index}]"), invalid.problem))
        };
        let aliases = key.aliases.into_iter().enumerate().map(alias).collect::<Result<_, _>>()?;
        Ok(Delivered::new(event, aliases, digest))
    };
    read(required("event", key)?).map_err(|invalid: Invalid| invalid.within("event"))
}

/// An event on record, which its aliases belong to.
fn event_key(key: Option<pb::EventKey>) -> Result<EventKey, Invalid> {
    let Delivered { key, aliases, .. } = delivered(key, &[])?;
    if !aliases.is_empty() {
        return Err(Invalid::new("event.aliases", "must be empty: one name stands for all"));
    }
    Ok(key)
}

pub(super) fn session_key(key: Option<pb::SessionKey>) -> Result<SessionKey, Invalid> {
    let read = |key: pb::SessionKey| {
        let team = Id::parse("team_id", key.team_id)?;
        match required("session_id", key.key)? {
            pb::session_key::Key::SessionId(id) => {
                Ok(SessionKey::given(team, Id::parse("session_id", id)?))
            }
            pb::session_key::Key::Thread(pb::Thread { channel_id, thread_ts }) => {
                let thread = || {
                    let channel = Id::parse("channel_id", channel_id)?;
                    SessionKey::thread(team, &channel, Id::parse("thread_ts", thread_ts)?)
                };
                thread().map_err(|invalid: Invalid| invalid.within("thread"))
            }
            pb::session_key::Key::Slack(slack) => SessionKey::slack(team, slack_event(slack)?),
        }
    };
    read(required("session", key)?).map_err(|invalid: Invalid| invalid.within("session"))
}

pub(super) fn mark(request: pb::MarkProcessedRequest) -> Result<Mark, Invalid> {
    let event = delivered(request.event, &request.payload_digest)?;
    let ttl = event_ttl(request.ttl)?;
    let request_id = Id::optional("request_id", request.request_id)?;
    let request = RequestId::for_event(&event.key, request_id.as_ref());
    Ok(Mark { event, ttl, request })
}

pub(super) fn event_ttl(ttl: Option<prost_types::Duration>) -> Result<Ttl, Invalid> {
    Ttl::parse(duration("ttl", ttl)?, limits::DEFAULT_EVENT_TTL, &limits::EVENT_TTL)
}

fn lease_ttl(ttl: Option<prost_types::Duration>) -> Result<Ttl, Invalid> {
    Ttl::parse(duration("ttl", ttl)?, limits::DEFAULT_LEASE_TTL, &limits::LEASE_TTL)
}

/// A request for a lease, as the session service takes it.
pub(super) struct AcquireCall {
    pub(super) acquire: Acquire,
    pub(super) wait: Duration,
}

pub(super) fn acquire(request: pb::AcquireSessionLeaseRequest) -> Result<AcquireCall, Invalid> {
    let key = session_key(request.session)?;
    let holder = Id::parse("holder", request.holder)?.into_string();
    let request_id = Id::optional("request_id", request.request_id)?;
    let ttl = lease_ttl(request.ttl)?;
    let wait = duration("wait", request.wait)?.unwrap_or_default();
    let wait = bounded("wait", wait, &limits::WAIT)?;
    let epic = Id::optional("epic_id", request.epic_id)?.map(Id::into_string);
    let labels = Labels::parse(request.labels)?;
    let attempt = RequestId::for_session(&key, request_id.as_ref());
    let acquire = Acquire { key, holder, request: attempt, ttl, epic, labels, stream: None };
    Ok(AcquireCall { acquire, wait })
}

/// The same request, to be kept.
pub(super) fn hold(request: pb::HoldSessionLeaseRequest) -> Result<AcquireCall, Invalid> {
    let pb::HoldSessionLeaseRequest { session, holder, request_id, ttl, wait, epic_id, labels } =
        request;
    acquire(pb::AcquireSessionLeaseRequest {
        session,
        holder,
        request_id,
        ttl,
        wait,
        epic_id,
        labels,
    })
}

pub(super) fn renew(request: pb::RenewSessionLeaseRequest) -> Result<Renew, Invalid> {
    let key = session_key(request.session)?;
    let lease = LeaseId::parse(&request.lease_id)?;
    Ok(Renew { key, lease, ttl: lease_ttl(request.ttl)?, stream: None })
}

pub(super) fn release(
    request: pb::ReleaseSessionLeaseRequest,
) -> Result<(SessionKey, LeaseId), Invalid> {
    let key = session_key(request.session)?;
    Ok((key, LeaseId::parse(&request.lease_id)?))
}

pub(super) fn check(
    request: pb::CheckSessionLeaseRequest,
) -> Result<(SessionKey, FencingToken), Invalid> {
    let key = session_key(request.session)?;
    if request.fencing_token < 1 {
        return Err(Invalid::new("fencing_token", "must be 1 or more"));
    }
    Ok((key, FencingToken(request.fencing_token)))
}

/// Stands between team and id in a page token; no id has control characters.
const TOKEN_SEPARATOR: char = '\u{1f}';

pub(super) fn team(given: String) -> Result<Option<String>, Invalid> {
    Ok(Id::optional("team_id", given)?.map(Id::into_string))
}

/// Which part of a list to read.
fn page(team_id: String, size: i32, token: &str) -> Result<Page, Invalid> {
    let limit = match u32::try_from(size) {
        Ok(0) => limits::DEFAULT_PAGE_SIZE,
        Ok(size) if size <= limits::MAX_PAGE_SIZE => size,
        _ => {
            let problem = format!("must be 1 to {}", limits::MAX_PAGE_SIZE);
            return Err(Invalid::new("page_size", problem));
        }
    };
    let after = match token.split_once(TOKEN_SEPARATOR) {
        Some((team, id)) if !id.contains(char::is_control) && !team.contains(char::is_control) => {
            (team.to_owned(), id.to_owned())
        }
        None if token.is_empty() => Default::default(),
        _ => return Err(Invalid::new("page_token", "must be the next_page_token of a page")),
    };
    Ok(Page { team: team(team_id)?, after, limit })
}

/// Where the page after the one that ends with this team and id begins.
pub(super) fn page_token((team, id): (&String, &String)) -> String {
    format!("{team}{TOKEN_SEPARATOR}{id}")
}

/// Which sessions to list: those that are held, or those that are not, or all.
pub(super) fn sessions(request: pb::ListSessionsRequest) -> Result<(Page, Option<bool>), Invalid> {
    let held = match request.state() {
        _ if pb::SessionState::try_from(request.state).is_err() => {
            return Err(Invalid::new("state", "must be a SessionState"));
        }
        pb::SessionState::Unspecified => None,
        pb::SessionState::Held => Some(true),
        pb::SessionState::Free => Some(false),
    };
    Ok((page(request.team_id, request.page_size, &request.page_token)?, held))
}

/// Which events to list.
pub(super) fn events(request: pb::ListEventsRequest) -> Result<(Page, EventFilter), Invalid> {
    let filter = EventFilter {
        standing: standing(request.state, request.outcome)?,
        newer_than: age("newer_than", request.newer_than)?,
        older_than: age("older_than", request.older_than)?,
    };
    Ok((page(request.team_id, request.page_size, &request.page_token)?, filter))
}

fn standing(state: i32, outcome: i32) -> Result<Option<Standing>, Invalid> {
    let state = match pb::EventState::try_from(state) {
        Ok(pb::EventState::Unspecified) => None,
        Ok(pb::EventState::NotSeen) => Some(Standing::Free),
        Ok(pb::EventState::InProgress) => Some(Standing::Claimed),
        Ok(pb::EventState::Processed) => Some(Standing::Processed),
        Err(_) => return Err(Invalid::new("state", "must be an EventState")),
    };
    let outcome = match pb::TurnOutcome::try_from(outcome) {
        Ok(pb::TurnOutcome::Unspecified) => return Ok(state),
        Ok(pb::TurnOutcome::Succeeded) => Standing::Succeeded,
        Ok(pb::TurnOutcome::GaveUp) => Standing::GaveUp,
        Ok(pb::TurnOutcome::Failed) | Err(_) => {
            return Err(Invalid::new("outcome", "must be SUCCEEDED or GAVE_UP"));
        }
    };
    match state {
        None | Some(Standing::Processed) => Ok(Some(outcome)),
        Some(_) => Err(Invalid::new("outcome", "must be unset unless state is PROCESSED")),
    }
}

fn age(
    field: &'static str,
    value: Option<prost_types::Duration>,
) -> Result<Option<Duration>, Invalid> {
    let age = duration(field, value)?;
    age.map(|age| bounded(field, age, &limits::CLEANUP_AGE)).transpose()
}

fn author(actor: String, reason: String) -> Result<Author, Invalid> {
    let reason = Id::optional("reason", reason)?.map(Id::into_string).unwrap_or_default();
    Ok(Author { actor: Id::parse("actor", actor)?.into_string(), reason })
}

pub(super) fn bind(
    request: pb::BindEpicRequest,
) -> Result<(SessionKey, Option<String>, Author), Invalid> {
    let key = session_key(request.session)?;
    let epic = Id::optional("epic_id", request.epic_id)?.map(Id::into_string);
    Ok((key, epic, author(request.actor, request.reason)?))
}

pub(super) fn force_release(
    request: pb::ForceReleaseSessionLeaseRequest,
) -> Result<(SessionKey, Author), Invalid> {
    let key = session_key(request.session)?;
    let reason = Id::parse("reason", request.reason)?.into_string();
    Ok((key, author(request.actor, reason)?))
}

pub(super) fn close(request: pb::CloseSessionRequest) -> Result<(SessionKey, Author), Invalid> {
    Ok((session_key(request.session)?, author(request.actor, request.reason)?))
}

pub(super) fn forget(request: pb::ForgetEventRequest) -> Result<(EventKey, Author), Invalid> {
    Ok((event_key(request.event)?, author(request.actor, request.reason)?))
}

/// What to delete, and the most rows of it.
pub(super) fn cleanup(request: pb::CleanupRequest) -> Result<(Scope, u32), Invalid> {
    let team = team(request.team_id)?;
    let age = age("older_than", request.older_than)?.map_or(Age::Expired, Age::AtLeast);
    // The stores count in microseconds: less than one is none.
    if matches!(age, Age::AtLeast(age) if age.as_micros() == 0) && team.is_none() {
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

#[expect(clippy::unnecessary_wraps, reason = "every message field is optional on the wire")]
pub(super) fn timestamp(at: Timestamp) -> Option<PbTimestamp> {
    let micros = at.as_micros();
    let nanos = i32::try_from(micros.rem_euclid(1_000_000) * 1_000).unwrap_or(0);
    Some(PbTimestamp { seconds: micros.div_euclid(1_000_000), nanos })
}

pub(super) fn length(span: Duration) -> Option<prost_types::Duration> {
    span.try_into().ok()
}

pub(super) fn small(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

pub(super) fn event(key: EventKey, row: EventRow) -> pb::ProcessedEvent {
    let EventKey { team: team_id, event: event_id } = key;
    let named = pb::ProcessedEvent { team_id, event_id, ..Default::default() };
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
fn claim_state(claim: &Claim) -> pb::EventState {
    if claim.remaining.is_zero() { pb::EventState::NotSeen } else { pb::EventState::InProgress }
}

pub(super) fn mark_response(
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

pub(super) fn look_response(key: EventKey, row: Option<EventRow>) -> pb::IsProcessedResponse {
    let event = match row {
        Some(row) => event(key, row),
        None => pb::ProcessedEvent {
            team_id: key.team,
            event_id: key.event,
            state: pb::EventState::NotSeen.into(),
            ..pb::ProcessedEvent::default()
        },
    };
    let processed = event.state() == pb::EventState::Processed;
    pb::IsProcessedResponse { state: event.state, processed, event: Some(event) }
}

pub(super) fn session_lease(key: SessionKey, lease: Lease) -> pb::SessionLease {
    pb::SessionLease {
        team_id: key.team,
        session_id: key.session,
        lease_id: lease.id.as_uuid().to_string(),
        fencing_token: lease.token.0,
        holder: lease.holder,
        acquire_time: timestamp(lease.acquire_time),
        expire_time: timestamp(lease.expire_time),
        remaining: length(lease.remaining),
        epic_id: lease.epic.unwrap_or_default(),
        labels: lease.labels.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
    }
}

pub(super) fn holding(key: &SessionKey, told: Holding) -> pb::HoldSessionLeaseResponse {
    use pb::hold_session_lease_response::Event;
    let lease = |lease| Some(session_lease(key.clone(), lease));
    let event = match told {
        Holding::Queued(place) => {
            let position = i32::try_from(place).unwrap_or(i32::MAX);
            Event::Queued(pb::LeaseQueued { position })
        }
        Holding::Granted(granted) => Event::Granted(pb::LeaseGranted { lease: lease(granted) }),
        Holding::Renewed(renewed) => Event::Renewed(pb::LeaseRenewed { lease: lease(renewed) }),
        Holding::Held(held) => Event::Held(lease_held(held)),
    };
    pb::HoldSessionLeaseResponse { event: Some(event) }
}

pub(super) fn lease_held(held: Held) -> pb::LeaseHeld {
    let retry_after = held.remaining.clamp(RETRY_AFTER_HANDOVER, MAX_RETRY_AFTER);
    pb::LeaseHeld {
        holder: held.holder,
        expire_time: held.expire_time.and_then(timestamp),
        remaining: length(held.remaining),
        queue_length: i32::try_from(held.queue_length).unwrap_or(i32::MAX),
        retry_after: length(retry_after),
    }
}

pub(super) fn session(key: SessionKey, row: SessionRow) -> pb::Session {
    let state = if row.live { pb::SessionState::Held } else { pb::SessionState::Free };
    let lease = row.lease;
    pb::Session {
        team_id: key.team,
        session_id: key.session,
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

pub(super) fn stats(counts: Counts) -> pb::GetStatsResponse {
    pb::GetStatsResponse {
        events: count(counts.events),
        expired_events: count(counts.expired_events),
        sessions: count(counts.sessions),
        held_sessions: count(counts.held_sessions),
        waiters: count(counts.waiters),
    }
}

fn count(rows: u64) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}

pub(super) fn cleanup_response(cleaned: Cleaned) -> pb::CleanupResponse {
    pb::CleanupResponse {
        deleted_events: count(cleaned.events),
        deleted_sessions: count(cleaned.sessions),
        more: cleaned.more,
    }
}
