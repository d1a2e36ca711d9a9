//! The formats of the metrics page, and its length.

use std::{collections::BTreeMap, time::Duration};

use super::{OPS, SERVICE};
use crate::harness::{
    Fixture, mark,
    metrics::{metric, metric_is, metrics_page, page_for},
};

const TEXT: &str = "content-type: text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str =
    "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The most lines of a page of a replica that is not called.
const MAX_IDLE_LINES: usize = 250;

#[tokio::test]
async fn the_page_is_in_the_format_that_is_asked_for() {
    let f = Fixture::sqlite().await.restarted(&OPS).await;
    let address = f.replica.server.ops_address().unwrap();
    for (accept, kind) in [
        (None, TEXT),
        (Some(""), TEXT),
        (Some("*/*"), TEXT),
        (Some("text/plain"), TEXT),
        (Some("text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"), TEXT),
        (Some("application/openmetrics-text"), OPEN_METRICS),
        (Some("Application/OpenMetrics-Text; Version=1.0.0; charset=utf-8"), OPEN_METRICS),
        // Of Prometheus 2.
        (
            Some(
                "application/openmetrics-text;version=1.0.0,\
                 application/openmetrics-text;version=0.0.1;q=0.75,\
                 text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            ),
            OPEN_METRICS,
        ),
        // Of Prometheus 3, if it is set to prefer the text format.
        (
            Some(
                "text/plain;version=0.0.4;q=0.6,\
                 application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,*/*;q=0.2",
            ),
            TEXT,
        ),
        // Of the ranges that a type is in, the most specific one counts.
        (Some("*/*;q=0.9, text/plain;q=0.2, application/openmetrics-text;q=0.5"), OPEN_METRICS),
        (Some("text/*;q=0.8,text/plain;q=0.1,application/openmetrics-text;q=0.5"), OPEN_METRICS),
        (
            Some(
                "application/openmetrics-text;q=0.9,\
                 application/openmetrics-text;version=1.0.0;q=0.1,text/plain;q=0.5",
            ),
            TEXT,
        ),
        // A value may be quoted, with what separates others.
        (Some(r#"application/openmetrics-text;version="1.0.0""#), OPEN_METRICS),
        (Some(r#"application/openmetrics-text;version="0.0.1,2""#), TEXT),
        (Some(r#"text/plain;note="a,application/openmetrics-text;q=1",*/*;q=0.1"#), TEXT),
        // Another version only, or none.
        (Some("application/openmetrics-text;version=0.0.1"), TEXT),
        (Some("application/openmetrics-text;q=0"), TEXT),
        (Some("application/openmetrics-text;q=nonsense,text/plain;q=0.1"), TEXT),
    ] {
        let header = accept.map(|accept| format!("Accept: {accept}\r\n")).unwrap_or_default();
        let page = page_for(address, "/metrics", &header).await;
        assert!(page.contains(&format!("{kind}\r\n")), "{accept:?}: {page}");
        // Caches between must not confuse them.
        assert!(page.contains("vary: accept\r\n"), "{accept:?}: {page}");
        assert_eq!(page.ends_with("# EOF\n"), kind == OPEN_METRICS, "{accept:?}: {page}");
        let info = if kind == TEXT {
            "# TYPE oncegate_build_info gauge"
        } else {
            "# TYPE oncegate_build info"
        };
        assert!(page.lines().any(|line| line == info), "{accept:?}: {page}");
    }
    let lines = "Accept: text/plain;q=0.2\r\nAccept: application/openmetrics-text\r\n";
    let page = page_for(address, "/metrics", lines).await;
    assert!(page.contains(OPEN_METRICS), "{page}");
}

/// What `promtool check metrics` says of a name:
/// <https://github.com/prometheus/client_golang/tree/main/prometheus/testutil/promlint/validations>.
fn problems(name: &str, kind: &str, help: &str) -> Vec<&'static str> {
    let mut problems = Vec::new();
    let words: Vec<&str> = name.split('_').collect();
    let has = |of: &[&str]| words.iter().skip(1).any(|word| of.contains(word));
    let ends = |suffix: &str| name.ends_with(suffix);
    if help.is_empty() {
        problems.push("no help text");
    }
    if kind == "counter" && !ends("_total") {
        problems.push("a counter must end in _total");
    }
    if kind != "counter" && ends("_total") {
        problems.push("only a counter may end in _total");
    }
    if ["_count", "_sum", "_bucket"].iter().any(|suffix| ends(suffix)) {
        problems.push("reserved for histograms");
    }
    if has(&["counter", "gauge", "summary", "histogram", "untyped"]) {
        problems.push("a type in the name");
    }
    if has(&["s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "tb", "pb", "m", "h", "d"]) {
        problems.push("an abbreviated unit");
    }
    let is_other_unit = |word: &&str| {
        let scaled = ["pico", "nano", "micro", "milli", "kilo", "kibi", "mega", "giga", "tera"];
        let base = scaled.iter().find_map(|scale| word.strip_prefix(scale));
        base.is_some_and(|base| ["seconds", "bytes"].contains(&base))
            || ["minutes", "hours", "days", "weeks", "bits"].contains(word)
    };
    if words.iter().any(is_other_unit) {
        problems.push("not a base unit");
    }
    if !name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_')) {
        problems.push("not snake_case");
    }
    problems
}

#[test]
fn names_that_break_a_rule_are_found() {
    for (name, kind) in [
        ("oncegate_marks", "counter"),
        ("oncegate_leases_total", "gauge"),
        ("oncegate_batch_count", "gauge"),
        ("oncegate_depth_gauge", "gauge"),
        ("oncegate_wait_ms", "gauge"),
        ("oncegate_wait_milliseconds", "gauge"),
        ("oncegate_ageHours", "gauge"),
        ("oncegate:age", "gauge"),
    ] {
        assert!(!problems(name, kind, "Help").is_empty(), "{name}");
    }
    assert_eq!(problems("oncegate_up", "gauge", ""), ["no help text"]);
    assert!(problems("oncegate_wait_seconds", "histogram", "Help").is_empty());
}

/// Type and help of each metric of a page in the text format.
fn families(page: &str) -> BTreeMap<&str, (&str, &str)> {
    let mut families: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(families.insert(name, ("", help)).is_none(), "{name} is there twice");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            families.get_mut(name).unwrap().0 = kind;
        }
    }
    families
}

/// The metric of a series.
fn family<'a>(families: &BTreeMap<&'a str, (&str, &str)>, series: &'a str) -> Option<&'a str> {
    let name = series.split(['{', ' ']).next()?;
    let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s));
    let histogram = of_histogram
        .filter(|name| families.get(name).is_some_and(|(kind, _)| *kind == "histogram"));
    histogram.or_else(|| families.contains_key(name).then_some(name))
}

#[tokio::test]
async fn the_names_follow_the_rules_of_prometheus() {
    let f = Fixture::postgres()
        .await
        .restarted(&[OPS.as_slice(), &["--sweep-interval", "50ms"]].concat())
        .await;
    f.client.clone().mark_processed(mark("T1", "Ev1")).await.unwrap();
    let swept = r#"oncegate_lane_batch_rows_count{lane="sweep"}"#;
    metric_is(&f.replica, swept, |batches| batches > 0.0).await;
    let page = metrics_page(&f.replica).await;
    let (_, page) = page.split_once("\r\n\r\n").unwrap();
    let families = families(page);
    assert!(families.len() > 30, "{page}");
    for (name, (kind, help)) in &families {
        assert_eq!(problems(name, kind, help), Vec::<&str>::new(), "{name}");
        assert!(["counter", "gauge", "histogram"].contains(kind), "{name} is of type {kind}");
    }
    let mut seen = Vec::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let name = family(&families, line).unwrap_or_else(|| panic!("no type of {line}"));
        if seen.last() != Some(&name) {
            assert!(!seen.contains(&name), "the series of {name} are not together");
            seen.push(name);
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
        assert_eq!(
            page.lines()
                .filter(|other| other.rsplit_once(' ').is_some_and(|(other, _)| other == series))
                .count(),
            1,
            "{series} is there twice"
        );
    }
}

#[tokio::test]
async fn a_replica_that_is_not_called_has_a_short_page() {
    let flags = [OPS.as_slice(), &["--sweep-interval", "50ms"]].concat();
    let f = Fixture::postgres().await.restarted(&flags).await;
    let swept = r#"oncegate_lane_batch_rows_count{lane="sweep"}"#;
    metric_is(&f.replica, swept, |batches| batches > 1.0).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let page = metrics_page(&f.replica).await;
    let (_, page) = page.split_once("\r\n\r\n").unwrap();
    let lines = page.lines().count();
    assert!(lines <= MAX_IDLE_LINES, "{lines} lines:\n{page}");
    let is_of_calls = |line: &&str| line.starts_with("grpc_server_");
    assert_eq!(page.lines().find(is_of_calls), None, "before any call");

    // A method's series come with its first call.
    f.client.clone().mark_processed(mark("T1", "Ev1")).await.unwrap();
    let method =
        format!(r#"{{grpc_type="unary",grpc_service="{SERVICE}",grpc_method="MarkProcessed"}}"#);
    metric(&f.replica, &format!("grpc_server_started_total{method} 1")).await;
    metric(&f.replica, &format!("grpc_server_handling_seconds_count{method} 1")).await;
    let page = metrics_page(&f.replica).await;
    let mut of_calls = page.lines().filter(is_of_calls);
    assert_eq!(of_calls.find(|line| !line.contains(r#"grpc_method="MarkProcessed""#)), None);
    let of_lanes =
        page.lines().filter(|line| line.starts_with("oncegate_lane_batch_seconds_count"));
    assert_eq!(of_lanes.count(), 2, "mark and sweep");
}
