//! What is served over HTTP: metrics, and health for who speaks no gRPC.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    routing::get,
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::{latest::EvictingConnections, probe::Health, workers::ACCEPT_PAUSE};
use crate::telemetry::Metrics;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// How long a peer may take to ask, before and after an answer.
const ASKING: Duration = Duration::from_mins(1);

/// Serves `/metrics`, `/livez` and `/readyz` on `address` until `ended`.
pub(super) async fn serve(
    address: SocketAddr,
    metrics: Metrics,
    health: Health,
    ended: CancellationToken,
) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot serve metrics on {address}"))?;
    let address = listener.local_addr()?;
    let page = get(move || async move { ([(CONTENT_TYPE, OPEN_METRICS)], metrics.render()) });
    let ready = get(move || async move {
        if health.is_ready() {
            (StatusCode::OK, "ready\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
        }
    });
    let pages = Router::new()
        .route("/metrics", page)
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", ready);
    tokio::spawn(async move { ended.run_until_cancelled(accept(listener, pages)).await });
    Ok(address)
}

async fn accept(listener: TcpListener, pages: Router) {
    let mut connections = EvictingConnections::default();
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                connections.add(tokio::spawn(answer(socket, pages.clone())).abort_handle());
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn answer(socket: TcpStream, pages: Router) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(ASKING);
    let answering = service_fn(move |request: hyper::Request<Incoming>| {
        pages.clone().oneshot(request.map(axum::body::Body::new))
    });
    // How a connection ended is its peer's business.
    let _ = http.serve_connection(TokioIo::new(socket), answering).await;
}
