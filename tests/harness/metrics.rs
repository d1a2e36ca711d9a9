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
    page_for(address, path, "").await
}

/// The same, for a request with further headers: lines that end in CRLF.
pub async fn page_for(address: SocketAddr, path: &str, headers: &str) -> String {
    let mut peer = TcpStream::connect(address).await.unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n");
    peer.write_all(request.as_bytes()).await.unwrap();
    let mut page = String::new();
    peer.read_to_string(&mut page).await.unwrap();
    page
}

/// The value of a series on a page, such as `oncegate_store_up`; none if it is not there.
pub fn value(page: &str, series: &str) -> Option<f64> {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map(|value| value.parse().unwrap())
}

/// Waits until a metric's value is one that `is_right`.
pub async fn metric_is(replica: &Replica, series: &str, is_right: impl Fn(f64) -> bool) -> f64 {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let page = metrics_page(replica).await;
        let value = value(&page, series);
        if let Some(value) = value.filter(|value| is_right(*value)) {
            return value;
        }
        assert!(Instant::now() < until, "{series} is {value:?} in\n{page}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until a series is not shown.
pub async fn metric_is_gone(replica: &Replica, series: &str) {
    let until = Instant::now() + Duration::from_secs(30);
    while let Some(value) = value(&metrics_page(replica).await, series) {
        assert!(Instant::now() < until, "{series} is still {value}");
        sleep(Duration::from_millis(5)).await;
    }
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
