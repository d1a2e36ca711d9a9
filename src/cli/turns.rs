//! `oncegate turns`: which events are worked on, which failed, and which were given up or
//! rejected.

use std::{
    io,
    time::{Duration, SystemTime},
};

use clap::ValueEnum;
use prost_types::Timestamp;
use serde_json::json;

use super::{
    ClientArgs, Exit,
    client::{Output, duration, id_of, moment, with_consumer, within},
};
use crate::{
    domain::limits::{CLEANUP_AGE, MAX_PAGE_SIZE},
    grpc::pb::{EventState, ListEventsRequest, ProcessedEvent, TurnOutcome},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only this team's events
    #[arg(long)]
    team: Option<String>,
    /// Only events in this state. Unset: in progress, then failed, then given up, then rejected
    #[arg(long, value_enum)]
    state: Option<ListedEvents>,
    /// Only events that began or ended less than AGE ago
    #[arg(long, value_name = "AGE", value_parser = within(CLEANUP_AGE))]
    newer_than: Option<Duration>,
    /// Only events that began or ended at least AGE ago
    #[arg(long, value_name = "AGE", value_parser = within(CLEANUP_AGE))]
    older_than: Option<Duration>,
    #[command(flatten)]
    client: ClientArgs,
}

/// How much of a detail a line shows.
const DETAIL_CHARS: usize = 100;

/// Which events are listed.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ListedEvents {
    /// A run is processing the event.
    InProgress,
    /// Its run failed, or its claim lapsed; the next delivery may process it.
    Failed,
    /// All its attempts failed or lapsed.
    GaveUp,
    /// Its handler rejected it for good.
    Rejected,
    /// A turn has processed it.
    Succeeded,
    /// Every event on record, marks included.
    All,
}

impl ListedEvents {
    /// The states that need attention. They are listed one after the other: an event that changes
    /// meanwhile may be listed twice, or not at all.
    const UNSETTLED: &[Self] = &[Self::InProgress, Self::Failed, Self::GaveUp, Self::Rejected];

    const fn filter(self) -> (EventState, TurnOutcome) {
        match self {
            Self::InProgress => (EventState::InProgress, TurnOutcome::Unspecified),
            Self::Failed => (EventState::NotSeen, TurnOutcome::Unspecified),
            Self::GaveUp => (EventState::Processed, TurnOutcome::GaveUp),
            Self::Rejected => (EventState::Processed, TurnOutcome::Rejected),
            Self::Succeeded => (EventState::Processed, TurnOutcome::Succeeded),
            Self::All => (EventState::Unspecified, TurnOutcome::Unspecified),
        }
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<Exit> {
    let mut client = args.client.admin().await?;
    let states = args.state.as_ref().map_or(ListedEvents::UNSETTLED, std::slice::from_ref);
    for (state, outcome) in states.iter().map(|state| state.filter()) {
        let mut page_token = String::new();
        loop {
            let message = ListEventsRequest {
                team_id: args.team.clone().unwrap_or_default(),
                state: state.into(),
                outcome: outcome.into(),
                newer_than: args.newer_than.map(duration),
                older_than: args.older_than.map(duration),
                page_size: MAX_PAGE_SIZE.cast_signed(),
                page_token,
            };
            let request = args.client.request(message, Duration::ZERO);
            let answer = client.list_events(request).await?.into_inner();
            for event in &answer.events {
                print(args.client.output, event, answer.read_time)?;
            }
            page_token = answer.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
    }
    Ok(Exit::Yes)
}

fn print(output: Output, event: &ProcessedEvent, now: Option<Timestamp>) -> io::Result<()> {
    let age = between(event.process_time, now);
    let in_progress = event.state() == EventState::InProgress;
    let remaining = between(now, event.expire_time).filter(|_| in_progress);
    let json = json!({
        "team_id": event.team_id,
        "event_id": event.event_id,
        "state": event.state().as_str_name(),
        "outcome": event.outcome().as_str_name(),
        "holder": event.holder,
        "attempt": event.attempt,
        "detail": event.detail,
        "process_time": moment(event.process_time),
        "expire_time": moment(event.expire_time),
        "age_seconds": age.map(|age| age.as_secs_f64()),
        "remaining_seconds": remaining.map(|left| left.as_secs_f64()),
    });
    output.print(&with_consumer(json, &event.consumer), line(event, age, remaining))
}

fn line(event: &ProcessedEvent, age: Option<Duration>, remaining: Option<Duration>) -> String {
    let ProcessedEvent { team_id, event_id, holder, attempt, .. } = event;
    let by = if holder.is_empty() { String::new() } else { format!(" by {holder}") };
    let since = if remaining.is_some() { "begun " } else { "" };
    let left = remaining.map(|left| format!(", {} left", whole(left))).unwrap_or_default();
    let ago = whole(age.unwrap_or_default());
    let (id, why) = (id_of(event_id, &event.consumer), why(&event.detail));
    format!("{team_id} {id} {}{by}, attempt {attempt}, {since}{ago} ago{left}{why}", outcome(event))
}

/// The first line of a detail, shortened, as the end of a line.
fn why(detail: &str) -> String {
    let Some(first) = detail.lines().map(str::trim).find(|line| !line.is_empty()) else {
        return String::new();
    };
    let is_whole = first == detail.trim() && first.chars().count() <= DETAIL_CHARS;
    if is_whole {
        return format!(": {first}");
    }
    let shown: String = first.chars().take(DETAIL_CHARS - 1).collect();
    format!(": {shown}…")
}

/// The outcome of an event, in a word.
fn outcome(event: &ProcessedEvent) -> &'static str {
    match (event.state(), event.outcome()) {
        (EventState::InProgress, _) => "in progress",
        // One that only lapsed did so later than it was claimed.
        (EventState::NotSeen, _) if event.process_time == event.expire_time => "failed",
        (EventState::NotSeen, _) => "lapsed",
        (_, TurnOutcome::GaveUp) => "given up",
        (_, TurnOutcome::Rejected) => "rejected",
        (_, TurnOutcome::Succeeded) => "succeeded",
        _ => "marked",
    }
}

/// The time from one moment to another; none if one is missing, or they are the other way round.
fn between(earlier: Option<Timestamp>, later: Option<Timestamp>) -> Option<Duration> {
    let (earlier, later) = (SystemTime::try_from(earlier?), SystemTime::try_from(later?));
    later.ok()?.duration_since(earlier.ok()?).ok()
}

/// A span as people read it, in whole seconds.
fn whole(span: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(span.as_secs()))
}
