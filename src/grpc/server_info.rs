//! `ServerService`: describes the server. It does not use the store, and answers while the
//! store cannot be reached.

use std::time::Duration;

use tonic::{Request, Response, Status};

use super::{
    convert::length,
    pb::{self, server_service_server::ServerService},
};
use crate::{domain::limits, platform::Platform};

/// The version, such as `1.4.0`. Also in the header of every response.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What this server can do. Names are added and never change their meaning:
///
/// - `turns`: `TurnService`;
/// - `streams.resume`: a turn or lease whose stream broke is carried on by another call, which
///   repeats its `request_id` or renews it;
/// - `grpc-web`: gRPC-Web on the same port, over HTTP/1.1 and HTTP/2;
/// - `consumer`: `consumer` in the keys of events and sessions;
/// - `platform.NAME`: deliveries of this [`Platform`] name their events and sessions.
const FEATURES: [&str; 4] = ["turns", "streams.resume", "grpc-web", "consumer"];

/// The service, as the server runs it.
pub struct ServerInfo {
    /// How long one call may take, a wait not counted.
    pub timeout: Duration,
    /// How long a lease may be held, renewals included.
    pub max_hold: Duration,
}

#[tonic::async_trait]
impl ServerService for ServerInfo {
    async fn get_server_info(
        &self,
        _request: Request<pb::GetServerInfoRequest>,
    ) -> Result<Response<pb::GetServerInfoResponse>, Status> {
        let platforms = Platform::ALL.map(|platform| format!("platform.{}", platform.name()));
        Ok(Response::new(pb::GetServerInfoResponse {
            version: VERSION.to_owned(),
            limits: Some(self.limits()),
            features: FEATURES.map(str::to_owned).into_iter().chain(platforms).collect(),
        }))
    }
}

impl ServerInfo {
    fn limits(&self) -> pb::ServerLimits {
        pb::ServerLimits {
            max_id_bytes: count(limits::MAX_ID_BYTES),
            max_aliases: count(limits::MAX_ALIASES),
            max_payload_bytes: count(limits::MAX_PAYLOAD_BYTES),
            max_result_bytes: count(limits::MAX_RESULT_BYTES),
            max_detail_bytes: count(limits::MAX_DETAIL_BYTES),
            max_batch_items: count(limits::MAX_BATCH_ITEMS),
            max_request_bytes: count(limits::MAX_REQUEST_BYTES),
            max_waiters_per_session: count(limits::MAX_WAITERS_PER_SESSION),
            max_event_ttl: length(*limits::EVENT_TTL.end()),
            max_claim_ttl: length(*limits::CLAIM_TTL.end()),
            max_lease_ttl: length(*limits::LEASE_TTL.end()),
            max_wait: length(*limits::WAIT.end()),
            max_hold: length(self.max_hold),
            call_timeout: length(self.timeout),
        }
    }
}

fn count(most: usize) -> i32 {
    i32::try_from(most).unwrap_or(i32::MAX)
}
