//! The listener for operations: metrics, and health over HTTP and gRPC, for Prometheus and probes,
//! which cannot use the other port or have no credentials for it. Its pages hold no caller's data.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use axum::{
    Router,
    body::Body,
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CONTENT_TYPE, VARY},
    },
    routing::get,
};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio_util::sync::CancellationToken;
use tonic_health::pb::health_server::{Health as HealthService, HealthServer};
use tower::ServiceExt as _;

use super::{
    certificates::ListenerTls, latest::EvictingConnections, probe::Health, workers::ACCEPT_PAUSE,
};
use crate::{
    config::{Address, LimitConfig},
    sockets::{Listener, Peer, Socket},
    telemetry::{Metrics, TextFormat},
};

/// How long a peer may take to ask, before and after an answer.
const ASKING: Duration = Duration::from_mins(1);
/// The most requests of one connection at once.
const MAX_STREAMS: u32 = 16;

/// How its connections are served. Cheap to clone.
#[derive(Clone)]
pub(super) struct Ops {
    pub(super) limits: LimitConfig,
    pub(super) tls: Option<ListenerTls>,
}

/// What it answers.
pub(super) fn pages<H: HealthService>(
    metrics: Metrics,
    health: Health,
    service: HealthServer<H>,
) -> Router {
    let page = get(move |headers: HeaderMap| async move {
        let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let format = TextFormat::of_accept(accepted);
        let headers = [(CONTENT_TYPE, format.content_type()), (VARY, "accept")];
        (headers, metrics.render(format))
    });
    let ready = get(move || async move {
        if health.is_ready() {
            (StatusCode::OK, "ready\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
        }
    });
    Router::new()
        .route("/metrics", page)
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", ready)
        .route_service("/grpc.health.v1.Health/{method}", service)
}

impl Ops {
    /// Serves `pages` on `address` until `ended`.
    pub(super) async fn serve(
        self,
        address: SocketAddr,
        pages: Router,
        ended: CancellationToken,
    ) -> anyhow::Result<SocketAddr> {
        let listener = Listener::bind(&Address::Tcp(address)).await.context("--ops-listen")?;
        let address = match listener.address()? {
            Address::Tcp(bound) => bound,
            Address::Unix(_) => address,
        };
        tokio::spawn(async move {
            ended.run_until_cancelled(self.accept(listener, pages)).await;
        });
        Ok(address)
    }

    async fn accept(self, listener: Listener, pages: Router) {
        let mut connections = EvictingConnections::default();
        loop {
            match listener.accept().await {
                Ok(socket) => {
                    let answering = tokio::spawn(self.clone().answer(socket, pages.clone()));
                    connections.add(answering.abort_handle());
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    async fn answer(self, socket: Socket, pages: Router) {
        let tls = self.tls.as_ref();
        let accepted = Peer::accept(socket, &self.limits, tls.map(|it| &it.tls)).await;
        if let Some(tls) = tls {
            tls.ended(&accepted);
        }
        let Ok(peer) = accepted else { return };
        let mut http = Builder::new(TokioExecutor::new());
        http.http1().timer(TokioTimer::new()).header_read_timeout(ASKING);
        http.http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .keep_alive_interval(self.limits.keepalive_interval)
            .keep_alive_timeout(self.limits.keepalive_timeout);
        let answering = service_fn(move |request: hyper::Request<Incoming>| {
            pages.clone().oneshot(request.map(Body::new))
        });
        // How a connection ended is its peer's business.
        let _ = http.serve_connection(TokioIo::new(peer), answering).await;
    }
}
