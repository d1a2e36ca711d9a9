//! Reasons of single items.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_item_that_fails_has_a_reason() {
    for store in [Store::Postgres, Store::Sqlite] {
        let f = store.serve(&[]).await;
        execute(&f.url, rule(store)).await;
        let digest =
            |digest: u8| MarkProcessedRequest { payload_digest: vec![digest], ..mark("T1", "Ev2") };
        f.client.clone().mark_processed(digest(1)).await.unwrap();
        let requests = vec![mark("T1", "Ev3"), mark("T1", "Ev1"), mark("", "Ev4"), digest(2)];
        let answer = f
            .client
            .clone()
            .batch_mark_processed(BatchMarkProcessedRequest { requests })
            .await
            .unwrap();
        let named = answer.into_inner().results.into_iter().map(|result| match result.result {
            Some(Item::Error(error)) => error.reason,
            _ => String::new(),
        });
        let named: Vec<String> = named.collect();
        assert_eq!(named, ["", "REJECTED_BY_DATABASE", "INVALID_FIELD", "PAYLOAD_MISMATCH"]);
    }
}
