//! `oncegate health`.

use std::time::Duration;

use serde_json::json;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{ClientArgs, Exit};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to check: readiness, liveness, or a service's full name
    #[arg(default_value = "readiness")]
    service: String,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(args: Args) -> anyhow::Result<Exit> {
    let message = HealthCheckRequest { service: args.service.clone() };
    let request = args.client.request(message, Duration::ZERO);
    let answer = HealthClient::new(args.client.connection().await?).check(request).await;
    let status = match answer {
        Ok(answer) => answer.into_inner().status(),
        Err(status) if status.code() == Code::NotFound => ServingStatus::ServiceUnknown,
        Err(status) => return Err(status.into()),
    };
    let name = status.as_str_name();
    let json = json!({ "service": args.service, "status": name });
    args.client.output.print(&json, format_args!("{}: {name}", args.service))?;
    Ok(if status == ServingStatus::Serving { Exit::Yes } else { Exit::No })
}
