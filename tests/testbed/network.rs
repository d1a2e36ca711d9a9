//! The proxy: connections that break, fall silent, or stand still.

use serde_json::json;
use tokio::time::timeout;

use super::{QUIET, Run, Testbed, marking};

#[tokio::test]
async fn a_cut_closes_all_connections_and_new_ones_work() {
    let mut testbed = Testbed::sqlite().await;
    let mut run = Run::begin(testbed.channel().await, "E1").await;
    testbed.ask(json!({ "do": "cut" })).await;
    assert!(run.next().await.is_err());
    testbed.until("E1", "NOT_SEEN").await;
    assert_eq!(testbed.look("E1").await["outcome"], "FAILED");
    assert!(marking(testbed.client().await, "E2").await.unwrap().unwrap());
}

#[tokio::test]
async fn a_cut_of_the_clients_half_is_not_seen_by_the_server() {
    let mut testbed = Testbed::sqlite().await;
    let mut run = Run::begin(testbed.channel().await, "E1").await;
    testbed.ask(json!({ "do": "cut", "side": "client" })).await;
    assert!(run.next().await.is_err());
    tokio::time::sleep(QUIET).await;
    assert_eq!(testbed.look("E1").await["state"], "IN_PROGRESS");
    assert!(marking(testbed.client().await, "E2").await.unwrap().unwrap());
    testbed.ask(json!({ "do": "cut" })).await;
    testbed.until("E1", "NOT_SEEN").await;
}

#[tokio::test]
async fn a_cut_of_the_servers_half_is_not_seen_by_the_client() {
    let mut testbed = Testbed::sqlite().await;
    let mut run = Run::begin(testbed.channel().await, "E1").await;
    testbed.ask(json!({ "do": "cut", "side": "server" })).await;
    testbed.until("E1", "NOT_SEEN").await;
    assert!(timeout(QUIET, run.events.message()).await.is_err(), "its connection is open");
    testbed.ask(json!({ "do": "cut" })).await;
    assert!(run.next().await.is_err());
}

#[tokio::test]
async fn held_answers_come_once_they_are_released() {
    let mut testbed = Testbed::sqlite().await;
    let client = testbed.client().await;
    assert!(marking(client.clone(), "E1").await.unwrap().unwrap());
    testbed.ask(json!({ "do": "hold", "direction": "to_client" })).await;
    let mut calls = [marking(client, "E2"), marking(testbed.client().await, "E3")];
    for (call, event) in calls.iter_mut().zip(["E2", "E3"]) {
        testbed.until(event, "PROCESSED").await;
        assert!(timeout(QUIET, call).await.is_err(), "the answer is held");
    }
    testbed.ask(json!({ "do": "release" })).await;
    for call in calls {
        assert!(call.await.unwrap().unwrap());
    }
}

#[tokio::test]
async fn held_requests_arrive_once_they_are_released() {
    let mut testbed = Testbed::sqlite().await;
    testbed.ask(json!({ "do": "hold", "direction": "to_server" })).await;
    let mut call = marking(testbed.client().await, "E1");
    assert!(timeout(QUIET, &mut call).await.is_err(), "the request is held");
    assert_eq!(testbed.look("E1").await["state"], "NOT_SEEN");
    testbed.ask(json!({ "do": "release", "direction": "to_client" })).await;
    assert!(timeout(QUIET, &mut call).await.is_err(), "the other direction is held");
    testbed.ask(json!({ "do": "release", "direction": "to_server" })).await;
    assert!(call.await.unwrap().unwrap());
}

#[tokio::test]
async fn an_answer_is_cut_off_after_its_call_was_done() {
    let mut testbed = Testbed::sqlite().await;
    let mut other = Run::begin(testbed.channel().await, "E1").await;
    testbed.ask(json!({ "do": "cut_before_data", "direction": "to_client", "skip": 1 })).await;
    let client = testbed.client().await;
    assert!(marking(client.clone(), "E2").await.unwrap().unwrap());
    assert!(marking(client.clone(), "E3").await.unwrap().is_err(), "its answer is cut off");
    assert_eq!(testbed.look("E3").await["state"], "PROCESSED");
    assert!(other.next().await.is_err(), "all connections are cut");
    assert!(marking(testbed.client().await, "E4").await.unwrap().unwrap(), "it happens once");
}

#[tokio::test]
async fn a_request_is_cut_off_before_it_arrives() {
    let mut testbed = Testbed::sqlite().await;
    let client = testbed.client().await;
    assert!(marking(client.clone(), "E1").await.unwrap().unwrap());
    testbed.ask(json!({ "do": "cut_before_data", "direction": "to_server" })).await;
    assert!(marking(client, "E2").await.unwrap().is_err(), "its request is cut off");
    assert_eq!(testbed.look("E2").await["state"], "NOT_SEEN");
    assert!(marking(testbed.client().await, "E3").await.unwrap().unwrap(), "it happens once");
}

#[tokio::test]
async fn a_cut_disarms_what_has_not_happened() {
    let mut testbed = Testbed::sqlite().await;
    for direction in ["to_server", "to_client"] {
        testbed.ask(json!({ "do": "cut_before_data", "direction": direction })).await;
    }
    testbed.ask(json!({ "do": "cut" })).await;
    assert!(marking(testbed.client().await, "E1").await.unwrap().unwrap());
}

#[tokio::test]
async fn new_connections_are_refused_until_they_are_accepted() {
    let mut testbed = Testbed::sqlite().await;
    let client = testbed.client().await;
    assert!(marking(client.clone(), "E1").await.unwrap().unwrap());
    testbed.ask(json!({ "do": "refuse" })).await;
    assert!(marking(testbed.client().await, "E2").await.unwrap().is_err(), "it is refused");
    assert!(marking(client, "E3").await.unwrap().unwrap(), "it was connected before");
    testbed.ask(json!({ "do": "accept" })).await;
    assert!(marking(testbed.client().await, "E4").await.unwrap().unwrap());
}
