//! Events: at most one first in a window, exactly.

use std::time::Duration;

use oncegate::grpc::pb::{
    BatchMarkProcessedRequest, EventState, IsProcessedRequest, MarkProcessedRequest,
    batch_mark_processed_result::Result as Item,
};
use prost_types::Timestamp;

use crate::{
    harness::{Fixture, event, mark, seconds},
    on_all_stores,
};

on_all_stores!(
    the_first_mark_wins_and_the_next_is_a_duplicate,
    past_its_end_an_unswept_event_is_new,
    a_request_id_gets_its_first_answer_again,
    a_batch_answers_each_item_by_itself,
    asking_never_writes,
    teams_are_apart,
);

async fn the_first_mark_wins_and_the_next_is_a_duplicate(mut f: Fixture) {
    let first = f.client.mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner();
    assert!(first.first);
    f.clock.advance(Duration::from_secs(5));
    let again = f.client.mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner();
    assert!(!again.first);
    assert_eq!(again.event, first.event, "a duplicate is told of the winner's mark");
}

async fn past_its_end_an_unswept_event_is_new(mut f: Fixture) {
    let request = MarkProcessedRequest { ttl: seconds(60), ..mark("T1", "Ev1") };
    let event = f.client.mark_processed(request.clone()).await.unwrap().into_inner().event.unwrap();
    let Timestamp { seconds: marked, nanos } = event.process_time.unwrap();
    assert_eq!(event.expire_time, Some(Timestamp { seconds: marked + 60, nanos }));

    f.clock.advance(Duration::from_micros(59_999_999));
    assert!(!f.client.mark_processed(request.clone()).await.unwrap().into_inner().first);
    f.clock.advance(Duration::from_micros(1));
    assert!(f.client.mark_processed(request.clone()).await.unwrap().into_inner().first);
    assert!(!f.client.mark_processed(request).await.unwrap().into_inner().first);
}

async fn a_request_id_gets_its_first_answer_again(mut f: Fixture) {
    let named = |id: &str| MarkProcessedRequest { request_id: id.into(), ..mark("T1", "Ev1") };
    let first = f.client.mark_processed(named("r1")).await.unwrap().into_inner();
    assert!(first.first);
    assert!(!f.client.mark_processed(named("r2")).await.unwrap().into_inner().first);
    let again = f.client.mark_processed(named("r1")).await.unwrap().into_inner();
    assert_eq!(again, first);
    assert!(!f.client.mark_processed(named("r2")).await.unwrap().into_inner().first);
    // The same id at another event is another attempt.
    let other = MarkProcessedRequest { request_id: "r1".into(), ..mark("T1", "Ev2") };
    assert!(f.client.mark_processed(other).await.unwrap().into_inner().first);
}

async fn a_batch_answers_each_item_by_itself(mut f: Fixture) {
    f.client.mark_processed(mark("T1", "seen")).await.unwrap();
    let requests = vec![
        mark("T1", "new"),
        mark("T1", ""),
        mark("T1", "seen"),
        mark("T1", "new"),
        MarkProcessedRequest { ttl: seconds(0), ..mark("T1", "other") },
        mark("T2", "new"),
    ];
    let answer = f.client.batch_mark_processed(BatchMarkProcessedRequest { requests }).await;
    let results: Vec<_> = answer
        .unwrap()
        .into_inner()
        .results
        .into_iter()
        .map(|result| match result.result.unwrap() {
            Item::Response(response) => Ok(response.first),
            Item::Error(error) => Err((error.code, error.field)),
        })
        .collect();
    assert_eq!(
        results,
        [
            Ok(true),
            Err((3, "requests[1].event.event_id".to_owned())),
            Ok(false),
            Ok(false),
            Err((3, "requests[4].ttl".to_owned())),
            Ok(true),
        ]
    );
}

async fn asking_never_writes(mut f: Fixture) {
    let ask = IsProcessedRequest { event: event("T1", "Ev1"), ..Default::default() };
    for _ in 0..2 {
        let answer = f.client.is_processed(ask.clone()).await.unwrap().into_inner();
        assert_eq!(answer.state(), EventState::NotSeen);
        assert!(!answer.processed);
        assert_eq!(answer.event.unwrap().process_time, None);
    }
    let marked = f.client.mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner();
    assert!(marked.first);
    let answer = f.client.is_processed(ask.clone()).await.unwrap().into_inner();
    assert!(answer.processed);
    assert_eq!(answer.event, marked.event);
    f.clock.advance(Duration::from_hours(24));
    assert!(!f.client.is_processed(ask).await.unwrap().into_inner().processed);
}

async fn teams_are_apart(mut f: Fixture) {
    assert!(f.client.mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner().first);
    assert!(f.client.mark_processed(mark("T2", "Ev1")).await.unwrap().into_inner().first);
}
