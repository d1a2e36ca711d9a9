//! What a server tells Prometheus.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep},
};

use super::Replica;

/// What a server's metrics page holds now, headers included.
pub async fn metrics_page(replica: &Replica) -> String {
    page(replica.server.ops_address().unwrap(), "/metrics").await
}

/// What a server answers over HTTP, headers included.
pub async fn page(address: SocketAddr, path: &str) -> String {
    let mut peer = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    peer.write_all(request.as_bytes()).await.unwrap();
    let mut page = String::new();
    peer.read_to_string(&mut page).await.unwrap();
    page
}

/// Waits until a metric has a value: `line` as the page shows it. A call is
/// counted when its last byte has left, a moment after its caller may have it.
pub async fn metric(replica: &Replica, line: &str) {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let page = metrics_page(replica).await;
        if page.lines().any(|found| found == line) {
            return;
        }
        assert!(Instant::now() < until, "no {line} in\n{page}");
        sleep(Duration::from_millis(5)).await;
    }
}
