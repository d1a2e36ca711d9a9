//! `oncegate check`.

use std::time::Duration;

use serde_json::json;

use super::{
    ClientArgs, Exit,
    client::{Consumer, event, id_of, moment, with_consumer},
};
use crate::grpc::pb::{EventKey, EventState, IsProcessedRequest};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The team of the event
    team: String,
    /// The event's id, as stored
    event: String,
    /// Alias: another name of the same event; up to 8
    #[arg(long = "alias", value_name = "EVENT")]
    aliases: Vec<String>,
    #[command(flatten)]
    consumer: Consumer,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(args: Args) -> anyhow::Result<Exit> {
    let key = EventKey { aliases: args.aliases, ..event(args.team, args.event, &args.consumer) };
    let message = IsProcessedRequest { event: Some(key), include_result: false };
    let request = args.client.request(message, Duration::ZERO);
    let answer = args.client.connect().await?.is_processed(request).await?.into_inner();
    let state = answer.state();
    let (outcome, exit) = match state {
        EventState::Processed => ("processed", Exit::Yes),
        EventState::InProgress => ("in progress", Exit::InProgress),
        EventState::NotSeen | EventState::Unspecified => ("not seen", Exit::No),
    };
    let event = answer.event.unwrap_or_default();
    let json = json!({
        "team_id": event.team_id,
        "event_id": event.event_id,
        "state": state.as_str_name(),
        "process_time": moment(event.process_time),
        "expire_time": moment(event.expire_time),
    });
    let id = id_of(&event.event_id, &event.consumer);
    let json = with_consumer(json, &event.consumer);
    args.client.output.print(&json, format_args!("{outcome} {} {id}", event.team_id))?;
    Ok(exit)
}
