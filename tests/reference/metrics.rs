use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use oncegate::{
    sockets::HandshakeError,
    store::Durability,
    telemetry::{Metrics, TableFigures, TextFormat, UNARY},
};

use super::{code, head, row};
use crate::harness::{Fixture, mark, metrics::metrics_page};

/// Why `--auth` refuses a call.
const REFUSALS: [&str; 11] = [
    "missing",
    "malformed",
    "unknown",
    "expired",
    "conflicting",
    "plaintext_token",
    "role_denied",
    "team_denied",
    "rate",
    "in_flight",
    "waiters",
];

/// A page of metrics with a series of each kind: those without one are not rendered.
fn rendered() -> String {
    let metrics = Metrics::new();
    for kind in [UNARY, "server_stream"] {
        let method = metrics.method(kind, "service", "Method", &[]);
        method.started();
        method.handled((0, "OK"), Duration::ZERO);
        method.waited(Duration::ZERO);
    }
    let lane = metrics.lane("event");
    lane.shed();
    lane.batch(1, Duration::ZERO);
    metrics.swept("event", 0);
    let _ = metrics.reload.of("tls");
    let _ = metrics.auth.calls("bots");
    for reason in REFUSALS {
        metrics.auth.refused(reason);
    }
    let _ = metrics.tls.handshakes("grpc", HandshakeError::ALL.map(HandshakeError::name));
    metrics.traces.exported(0);
    metrics.traces.failed(0);
    metrics.traces.dropped();
    metrics.tls.valid(Some((0, 0)));
    for durability in Durability::ALL {
        metrics.durability.found(durability.reason(), false);
    }
    let store = &metrics.store;
    let _ = store.of_connections();
    store.clock_read(Some((0, Duration::ZERO)));
    store.leases(Some(0));
    store.sweeping(Duration::ZERO);
    store.sweep_lag(Some(Duration::ZERO));
    store.schema_version(Some(1));
    store.xid_age(Some(1));
    let table = "processed_events";
    let (last_autovacuum, bytes, live_rows, dead_rows) = (Some(0.0), 1, 0, 0);
    store.tables(&[TableFigures { table, bytes, live_rows, dead_rows, last_autovacuum }]);
    metrics.render(TextFormat::Prometheus)
}

/// The labels of a series, such as `a="x",b="y"`.
fn labels(series: &str) -> impl Iterator<Item = (&str, &str)> {
    let labels = series.split_once('{').map_or("", |(_, rest)| rest.split('}').next().unwrap());
    labels.split(',').filter_map(|label| label.split_once('='))
}

pub fn page() -> String {
    let rendered = rendered();
    let mut rows = String::new();
    for metric in rendered.split("# HELP ").skip(1) {
        let mut lines = metric.lines();
        let (name, help) = lines.next().unwrap().split_once(' ').unwrap();
        let kind = lines.find_map(|line| line.strip_prefix("# TYPE ")).unwrap();
        let kind = kind.rsplit(' ').next().unwrap();
        let mut values: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (label, value) in metric.lines().filter(|line| !line.starts_with('#')).flat_map(labels)
        {
            let values = values.entry(label).or_default();
            if !values.contains(&value) {
                values.push(value);
            }
        }
        values.remove("le");
        let shown = values.into_iter().map(|(label, mut values)| {
            values.sort_unstable();
            // Those that are all there at start, which a caller or a version does not choose.
            let all = matches!(label, "class" | "outcome" | "reason" | "state");
            let values = values.into_iter().map(|value| value.trim_matches('"'));
            let values = if all { values.collect::<Vec<_>>().join(", ") } else { String::new() };
            format!("`{label}` {values}").trim_end().to_owned()
        });
        let labels = shown.collect::<Vec<_>>().join("; ");
        rows += &row([code(name), kind.to_owned(), labels, help.trim_end_matches('.').to_owned()]);
    }
    format!(
        "`/metrics` of `--ops-listen`, in the text format of Prometheus, or in the OpenMetrics format if\n\
        the header `Accept` of the request prefers it. The series of a method, of its waits and of a lane's batches\n\
        begin with the first one. No label holds a key, a holder or anything else that a caller chose.\n\n{}{rows}",
        head(["metric", "type", "labels", "meaning"])
    )
}

/// The names of the metrics on a page.
fn names(page: &str) -> BTreeSet<&str> {
    let helps = page.lines().filter_map(|line| line.strip_prefix("# HELP "));
    helps.filter_map(|help| help.split(' ').next()).collect()
}

#[tokio::test]
async fn each_metric_of_a_server_is_on_the_page() {
    let f = Fixture::sqlite().await.restarted(&["--ops-listen", "127.0.0.1:0"]).await;
    f.client.clone().mark_processed(mark("T1", "Ev1")).await.unwrap();
    let (served, rendered) = (metrics_page(&f.replica).await, rendered());
    let (served, rendered) = (names(&served), names(&rendered));
    let missing: Vec<_> = served.difference(&rendered).collect();
    assert!(missing.is_empty(), "`rendered` makes no series of {missing:?}");
    assert!(served.len() > 15, "{served:?}");
}
