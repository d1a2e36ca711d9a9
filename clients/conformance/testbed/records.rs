//! Sessions and events on record, which the testbed reads and changes at the server directly.

use std::{sync::atomic::Ordering, time::Duration};

use anyhow::{Context as _, bail};
use oncegate::grpc::pb::{
    EventKey, EventState, ForceReleaseSessionLeaseRequest, ForgetEventRequest, GetSessionRequest,
    IsProcessedRequest, ListEventsRequest, ProcessedEvent, Session, SessionKey, TurnOutcome,
    admin_service_client::AdminServiceClient, event_key,
    idempotency_service_client::IdempotencyServiceClient, session_key,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};

use crate::replica::Replica;

/// Who asks, in the server's log.
const ACTOR: &str = "testbed";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionName {
    team: String,
    session: String,
    #[serde(default)]
    consumer: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventName {
    team: String,
    event: String,
    #[serde(default)]
    consumer: String,
}

/// A session or an event.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Name {
    team: String,
    session: Option<String>,
    event: Option<String>,
    #[serde(default)]
    consumer: String,
}

impl From<SessionName> for SessionKey {
    fn from(name: SessionName) -> Self {
        Self {
            team_id: name.team,
            key: Some(session_key::Key::SessionId(name.session)),
            consumer: name.consumer,
            ..Self::default()
        }
    }
}

impl From<EventName> for EventKey {
    fn from(name: EventName) -> Self {
        Self {
            team_id: name.team,
            key: Some(event_key::Key::EventId(name.event)),
            consumer: name.consumer,
            ..Self::default()
        }
    }
}

/// Ends the lease of a session by force. The server answers with the fence as it is then, which the
/// next holders may have raised further.
pub async fn lose(replica: &Replica, name: SessionName) -> anyhow::Result<Value> {
    let session = SessionKey::from(name);
    let before = session_on_record(replica, session.clone()).await?;
    let request = ForceReleaseSessionLeaseRequest {
        session: Some(session),
        actor: ACTOR.into(),
        reason: "a scenario asks for it".into(),
    };
    let answer = admin(replica).await?.force_release_session_lease(request).await;
    let answer = answer.map_err(explain)?.into_inner();
    let fence = |session: Option<Session>| session.map(|session| session.fencing_token);
    Ok(json!({
        "released": answer.released,
        "fence_before": fence(before),
        "fence": fence(answer.session),
    }))
}

/// Deletes the record of an event.
pub async fn forget(replica: &Replica, name: EventName) -> anyhow::Result<Value> {
    let request = ForgetEventRequest {
        event: Some(name.into()),
        actor: ACTOR.into(),
        reason: "a scenario asks for it".into(),
    };
    let found = found(admin(replica).await?.forget_event(request).await)?;
    Ok(json!({ "forgotten": found.is_some() }))
}

/// Reports a session or an event.
pub async fn look(replica: &Replica, name: Name) -> anyhow::Result<Value> {
    let Name { team, consumer, .. } = name;
    match (name.session, name.event) {
        (Some(session), None) => {
            look_at_session(replica, SessionName { team, session, consumer }).await
        }
        (None, Some(event)) => look_at_event(replica, EventName { team, event, consumer }).await,
        _ => bail!("look needs a session or an event"),
    }
}

async fn look_at_session(replica: &Replica, name: SessionName) -> anyhow::Result<Value> {
    let Some(session) = session_on_record(replica, name.into()).await? else {
        return Ok(json!({
            "state": "UNKNOWN",
            "holder": null,
            "fence": null,
            "waiters": 0,
            "remaining_ms": null,
            "epic": null,
            "labels": {},
        }));
    };
    let state = session.state().as_str_name().trim_start_matches("SESSION_STATE_");
    let remaining = session.remaining.map(Duration::try_from).transpose()?;
    Ok(json!({
        "state": state,
        "holder": text(&session.holder),
        "fence": session.fencing_token,
        "waiters": session.waiters,
        "remaining_ms": remaining.map(|span| span.as_millis()),
        "epic": text(&session.epic_id),
        "labels": session.labels,
    }))
}

async fn session_on_record(
    replica: &Replica,
    session: SessionKey,
) -> anyhow::Result<Option<Session>> {
    let request = GetSessionRequest { session: Some(session) };
    let answer = found(admin(replica).await?.get_session(request).await)?;
    answer.map(|answer| answer.session.context("the answer has no session")).transpose()
}

async fn look_at_event(replica: &Replica, name: EventName) -> anyhow::Result<Value> {
    let process = replica.process()?;
    let mut client = IdempotencyServiceClient::new(connect(replica).await?);
    let request = IsProcessedRequest { event: Some(name.clone().into()), include_result: true };
    let answer = client.is_processed(request).await.map_err(explain)?.into_inner();
    process.own_looks.fetch_add(1, Ordering::SeqCst);
    let mut event = answer.event.clone().context("the answer has no event")?;
    let mut outcome = outcome(event.outcome());
    if event.state() == EventState::NotSeen
        && let Some(free) = free_event(replica, &name).await?
    {
        // One that only lapsed ended later than it was claimed.
        outcome = (free.process_time == free.expire_time).then_some("FAILED");
        event = free;
    }
    let result = result(&answer.result, &answer.result_type);
    Ok(json!({
        "state": answer.state().as_str_name().trim_start_matches("EVENT_STATE_"),
        "outcome": outcome,
        "attempt": event.attempt,
        "holder": text(&event.holder),
        "detail": text(&event.detail),
        "result": result,
    }))
}

/// An event that a turn had claimed and that is free again.
async fn free_event(replica: &Replica, name: &EventName) -> anyhow::Result<Option<ProcessedEvent>> {
    let mut client = admin(replica).await?;
    let mut page_token = String::new();
    loop {
        let request = ListEventsRequest {
            team_id: name.team.clone(),
            state: EventState::NotSeen.into(),
            page_token,
            ..Default::default()
        };
        let page = client.list_events(request).await.map_err(explain)?.into_inner();
        let is_it = |event: &ProcessedEvent| {
            event.event_id == name.event && event.consumer == name.consumer
        };
        let found = page.events.into_iter().find(is_it);
        if found.is_some() || page.next_page_token.is_empty() {
            return Ok(found);
        }
        page_token = page.next_page_token;
    }
}

fn outcome(outcome: TurnOutcome) -> Option<&'static str> {
    (outcome != TurnOutcome::Unspecified)
        .then(|| outcome.as_str_name().trim_start_matches("TURN_OUTCOME_"))
}

/// A text as JSON: null if it is empty.
fn text(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// A result as scenarios write it: JSON if its type says so, otherwise bytes.
fn result(result: &[u8], result_type: &str) -> Value {
    if result.is_empty() {
        return Value::Null;
    }
    let json = (result_type == "application/json").then(|| serde_json::from_slice(result).ok());
    json.flatten().unwrap_or_else(|| {
        let digits = result.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
        let hex = digits.filter_map(|digit| char::from_digit(digit.into(), 16));
        json!({ "$hex": hex.collect::<String>() })
    })
}

async fn admin(replica: &Replica) -> anyhow::Result<AdminServiceClient<Channel>> {
    Ok(AdminServiceClient::new(connect(replica).await?))
}

async fn connect(replica: &Replica) -> anyhow::Result<Channel> {
    replica.process()?;
    let address = format!("unix:{}", replica.socket().display());
    Endpoint::from_shared(address)?.connect().await.context("cannot reach the server")
}

/// What was found; none if nothing is on record.
fn found<T>(answer: Result<Response<T>, Status>) -> anyhow::Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer.into_inner())),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(explain(status)),
    }
}

/// A status as an error in one line.
#[expect(clippy::needless_pass_by_value, reason = "as `map_err` gives it")]
fn explain(status: Status) -> anyhow::Error {
    anyhow::anyhow!("{:?}: {}", status.code(), status.message())
}
