//! The example `workspace`: Slack's deliveries and bots that are killed, for minutes of
//! simulated time. It judges by itself; what is looked at here is that enough happened.

use std::{collections::HashMap, env, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

use crate::harness::postgres;

/// How long it may take in all: much longer than it does, however slow the machine is.
const BOUND: Duration = Duration::from_mins(10);

/// Runs the example, which is to find everything right, and answers its figures.
async fn figures(flags: &[&str]) -> HashMap<String, u64> {
    let tests = env::current_exe().unwrap();
    let example = tests.ancestors().nth(2).unwrap().join("examples/workspace");
    assert!(example.exists(), "`cargo test` builds it, and so does `cargo build --examples`");
    let mut command = Command::new(example);
    command.env_clear().args(flags).stdin(Stdio::null()).kill_on_drop(true);
    let ended = timeout(BOUND, command.output()).await.expect("it takes for ever").unwrap();
    let told = String::from_utf8(ended.stdout).unwrap();
    assert!(ended.status.success(), "{told}{}", String::from_utf8_lossy(&ended.stderr));
    let figure = |line: &str| {
        let (count, what) = line.trim_start().split_once(' ')?;
        Some((what.to_owned(), count.parse().ok()?))
    };
    told.lines().filter_map(figure).collect()
}

fn assert_happened(figures: &HashMap<String, u64>, what: &[&str]) {
    for what in what {
        assert!(figures[*what] > 0, "no {what}: {figures:?}");
    }
    for never in ["messages lost", "messages handled twice"] {
        assert_eq!(figures[never], 0, "{never}");
    }
}

#[tokio::test]
async fn a_workspace_has_every_message_handled_once_by_bots_that_are_killed() {
    let url = postgres::new_database().await;
    let figures = figures(&["--database-url", &url]).await;
    assert!(figures["bots killed"] >= 19, "{figures:?}");
    assert_happened(
        &figures,
        &[
            "messages by another name",
            "messages overtaken by a later one of their thread",
            "deliveries answered as duplicates",
            "deliveries answered as in progress",
            "deliveries answered as busy",
            "turns granted to a later attempt",
            "turns ended as failed",
            "turns ended too late, and refused",
            "stale effects refused by their fencing token",
            "effects repeated for a run that died or stood still, and known",
        ],
    );
}

#[tokio::test]
async fn a_workspace_has_every_message_handled_once_by_one_bot_that_is_killed() {
    let flags = ["--threads", "300", "--deliveries", "3000", "--kill-every", "500"];
    let figures = figures(&flags).await;
    assert!(figures["bots killed"] > 4, "{figures:?}");
    assert_happened(
        &figures,
        &["turns granted to a later attempt", "deliveries answered as duplicates"],
    );
}
