//! `oncegate cleanup`.

use std::time::Duration;

use serde_json::json;

use super::{ClientArgs, Exit, client::duration};
use crate::grpc::pb::CleanupRequest;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only this team's rows
    #[arg(long, default_value = "")]
    team: String,
    /// Delete what was marked, or left idle, longer ago than this, expired or
    /// not; 0s deletes all of a team's. Unset: what has expired
    #[arg(long, value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// The most rows to delete, 1 to 1000000; 0: 100000
    #[arg(long, default_value_t = 0)]
    max_rows: i32,
    /// Count, delete nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(args: Args) -> anyhow::Result<Exit> {
    let message = CleanupRequest {
        team_id: args.team,
        older_than: duration(args.older_than)?,
        max_rows: args.max_rows,
        dry_run: args.dry_run,
    };
    let request = args.client.request(message, Duration::ZERO);
    let answer = args.client.connect().await?.cleanup(request).await?.into_inner();
    let json = json!({
        "deleted_events": answer.deleted_events,
        "deleted_sessions": answer.deleted_sessions,
        "more": answer.more,
        "dry_run": args.dry_run,
    });
    let text = format!(
        "{} {} events, {} sessions{}",
        if args.dry_run { "would delete" } else { "deleted" },
        answer.deleted_events,
        answer.deleted_sessions,
        if answer.more { "; there may be more" } else { "" },
    );
    args.client.output.print(&json, text)?;
    Ok(Exit::Yes)
}
