//! The server's process: how it ends, and how it comes back.

use serde_json::json;
use tokio::time::timeout;
use tonic::Code;

use super::{QUIET, Run, Testbed, marking};
use crate::harness::{Client, connect, mark};

#[tokio::test]
async fn a_killed_server_is_restarted_on_the_same_store_and_address() {
    let mut testbed = Testbed::sqlite().await;
    assert!(marking(testbed.client().await, "E1").await.unwrap().unwrap());
    let mut run = Run::begin(testbed.channel().await, "E2").await;
    testbed.ask(json!({ "do": "kill" })).await;
    assert_eq!(testbed.servers(), [0; 0]);
    assert!(run.next().await.is_err());
    let error = testbed.run(json!({ "do": "mute" })).await.expect_err("no server");
    assert_eq!(error, "the server does not run; restart it first");
    testbed.ask(json!({ "do": "kill" })).await;
    assert!(marking(testbed.client().await, "E3").await.unwrap().is_err(), "no server");

    testbed.ask(json!({ "do": "restart" })).await;
    assert!(!marking(testbed.client().await, "E1").await.unwrap().unwrap());
    assert_eq!(testbed.look("E2").await["state"], "IN_PROGRESS");
}

#[tokio::test]
async fn a_drained_server_leaves_its_turns() {
    let mut testbed = Testbed::sqlite().await;
    let mut run = Run::begin(testbed.channel().await, "E1").await;
    testbed.ask(json!({ "do": "drain" })).await;
    assert_eq!(run.next().await.unwrap_err().code(), Code::Unavailable);
    testbed.ask(json!({ "do": "restart", "after_ms": 1 })).await;
    assert_eq!(testbed.look("E1").await["state"], "IN_PROGRESS");
}

#[tokio::test]
async fn a_restart_that_waits_holds_no_other_command_up() {
    let mut testbed = Testbed::sqlite().await;
    testbed.ask(json!({ "do": "mute" })).await;
    testbed.ask(json!({ "do": "drain" })).await;
    let restart = testbed.send(json!({ "do": "restart" })).await;
    for command in ["hold", "release", "cut", "refuse", "accept", "unmute"] {
        testbed.ask(json!({ "do": command })).await;
    }
    testbed.answer(restart).await.unwrap();
    assert!(marking(testbed.client().await, "E1").await.unwrap().unwrap());
}

#[tokio::test]
async fn a_muted_server_answers_once_it_is_not_muted() {
    let mut testbed = Testbed::sqlite().await;
    testbed.ask(json!({ "do": "mute" })).await;
    let mut call = marking(testbed.client().await, "E1");
    assert!(timeout(QUIET, &mut call).await.is_err(), "it is muted");
    testbed.ask(json!({ "do": "unmute" })).await;
    assert!(call.await.unwrap().unwrap());
}

#[tokio::test]
async fn replicas_share_a_store_and_are_killed_one_by_one() {
    let mut testbed = Testbed::start(&["--store", "postgres", "--replicas", "2"]).await;
    let [first, second] = &testbed.replicas[..] else { panic!("{:?}", testbed.replicas) };
    assert_ne!(first, second);
    let (first, mut second) =
        (Client::new(connect(first).await), Client::new(connect(second).await));
    assert!(marking(first.clone(), "E1").await.unwrap().unwrap());
    testbed.ask(json!({ "do": "kill" })).await;
    assert!(marking(first, "E2").await.unwrap().is_err(), "no server");
    assert!(!second.mark_processed(mark("T1", "E1")).await.unwrap().into_inner().first);
    let look = json!({ "do": "look", "replica": 1, "team": "T1", "event": "E1" });
    assert_eq!(testbed.ask(look).await["state"], "PROCESSED");
    testbed.ask(json!({ "do": "restart" })).await;
    assert_eq!(testbed.look("E1").await["state"], "PROCESSED");
}
