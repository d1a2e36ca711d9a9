//! `oncegate cleanup`.

use std::time::Duration;

use serde_json::json;

use super::{
    ClientArgs, Exit,
    client::{duration, within},
};
use crate::{
    domain::limits::{CLEANUP_AGE, DEFAULT_CLEANUP_ROWS, MAX_CLEANUP_ROWS},
    grpc::pb::CleanupRequest,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only this team's rows
    #[arg(long)]
    team: Option<String>,
    /// Delete rows that were marked, claimed, finished or last used longer ago than
    /// AGE, expired or not, but none in progress; 0s deletes all rows of a team. Unset:
    /// expired rows only
    #[arg(long, value_name = "AGE", value_parser = within(CLEANUP_AGE))]
    older_than: Option<Duration>,
    /// Maximum number of rows to delete, 1 to 1000000
    #[arg(long, value_name = "ROWS", default_value_t = DEFAULT_CLEANUP_ROWS,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_CLEANUP_ROWS)))]
    max_rows: u32,
    /// Count the rows, but delete none
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(args: Args) -> anyhow::Result<Exit> {
    let message = CleanupRequest {
        team_id: args.team.unwrap_or_default(),
        older_than: args.older_than.map(duration),
        max_rows: args.max_rows.cast_signed(),
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
        if answer.more { "; more may remain" } else { "" },
    );
    args.client.output.print(&json, text)?;
    Ok(Exit::Yes)
}
