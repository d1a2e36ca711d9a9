//! `oncegate server-info`: version, limits and features of a server.

use std::{fmt::Write as _, time::Duration};

use serde_json::{Map, Value, json};

use super::{ClientArgs, Exit, client::seconds};
use crate::grpc::pb::{
    GetServerInfoRequest, ServerLimits, server_service_client::ServerServiceClient,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(args: Args) -> anyhow::Result<Exit> {
    let request = args.client.request(GetServerInfoRequest {}, Duration::ZERO);
    let mut client = ServerServiceClient::new(args.client.connection().await?);
    let info = client.get_server_info(request).await?.into_inner();
    let limits = limits(info.limits.unwrap_or_default());
    let mut text = format!("version {}\nfeatures {}", info.version, info.features.join(" "));
    for (name, (limit, unit)) in &limits {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n{name} {limit}{unit}");
    }
    let limits: Map<_, _> =
        limits.into_iter().map(|(name, (limit, _))| (name.to_owned(), limit)).collect();
    let json = json!({ "version": info.version, "features": info.features, "limits": limits });
    args.client.output.print(&json, text)?;
    Ok(Exit::Yes)
}

/// The limits by name, each with its unit. Durations are in seconds.
fn limits(limits: ServerLimits) -> [(&'static str, (Value, &'static str)); 14] {
    let span = |span| (json!(seconds(span)), "s");
    let count = |count: i32| (json!(count), "");
    [
        ("max_id_bytes", count(limits.max_id_bytes)),
        ("max_aliases", count(limits.max_aliases)),
        ("max_payload_bytes", count(limits.max_payload_bytes)),
        ("max_result_bytes", count(limits.max_result_bytes)),
        ("max_detail_bytes", count(limits.max_detail_bytes)),
        ("max_batch_items", count(limits.max_batch_items)),
        ("max_request_bytes", count(limits.max_request_bytes)),
        ("max_waiters_per_session", count(limits.max_waiters_per_session)),
        ("max_event_ttl", span(limits.max_event_ttl)),
        ("max_claim_ttl", span(limits.max_claim_ttl)),
        ("max_lease_ttl", span(limits.max_lease_ttl)),
        ("max_wait", span(limits.max_wait)),
        ("max_hold", span(limits.max_hold)),
        ("call_timeout", span(limits.call_timeout)),
    ]
}
