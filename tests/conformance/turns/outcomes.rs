//! Turns that end with a rejection, a detail or a typed result.

use oncegate::grpc::pb::{
    ForgetEventRequest, IsProcessedResponse, ListEventsRequest, MarkProcessedRequest, TurnEnd,
    run_turn_response::News,
};

use super::{asking::gave_up, calls::Kept, *};
use crate::harness::execute;

on_all_stores!(
    a_rejected_event_is_not_retried,
    a_stream_can_end_with_a_rejection,
    rejected_events_are_listed_and_forgotten,
    the_detail_of_the_latest_failure_is_on_record,
    a_claim_that_lapses_keeps_the_detail_of_the_failure_before,
    details_and_types_out_of_bounds_are_refused_by_name,
    the_longest_detail_and_type_are_kept,
    a_result_is_returned_with_its_type,
    a_result_is_read_where_it_is_asked_for;
    kept: a_rejection_that_an_older_binary_wrote_over_does_not_count,
);

/// A request that is handled by the statements for sessions, for events alone, or for events
/// of several names.
fn wishes(id: &str) -> [BeginTurnRequest; 3] {
    let named = |kind: &str| wish(&format!("{id} {kind}"), "pod-1");
    let alone = BeginTurnRequest { session: None, ..named("alone") };
    let mut aliased = named("aliased");
    aliased.event.as_mut().unwrap().aliases = vec![format!("{id} A"), format!("{id} z")];
    [named("in a session"), alone, aliased]
}

fn id_of(wished: &BeginTurnRequest) -> &str {
    match wished.event.as_ref().unwrap().key.as_ref().unwrap() {
        event_key::Key::EventId(id) => id,
        other => panic!("{other:?}"),
    }
}

fn ending(turn: &Turn, outcome: TurnOutcome) -> FinishTurnRequest {
    let turn_id = turn.turn_id.clone();
    FinishTurnRequest { turn_id, outcome: outcome.into(), ..Default::default() }
}

fn failing(turn: &Turn, detail: &str) -> FinishTurnRequest {
    FinishTurnRequest { detail: detail.into(), ..ending(turn, TurnOutcome::Failed) }
}

async fn end(turns: &mut Turns, request: FinishTurnRequest) -> ProcessedEvent {
    turns.finish_turn(request).await.unwrap().into_inner().event.unwrap()
}

async fn look_for_result(f: &mut Fixture, event: Option<EventKey>) -> IsProcessedResponse {
    let request = IsProcessedRequest { event, include_result: true };
    f.client.is_processed(request).await.unwrap().into_inner()
}

/// The one event that is listed with this id.
async fn listed(f: &Fixture, id: &str) -> ProcessedEvent {
    let mut admin = AdminServiceClient::new(connect(f.replica.server.address()).await);
    let listed = admin.list_events(ListEventsRequest::default()).await.unwrap().into_inner();
    listed.events.into_iter().find(|event| event.event_id == id).expect("a listed event")
}

async fn a_rejected_event_is_not_retried(mut f: Fixture) {
    let mut turns = turns(&f).await;
    for (wished, ttl) in wishes("Ev").into_iter().zip([None, seconds(60), seconds(60)]) {
        let id = id_of(&wished).to_owned();
        let mine = turn(begin(&mut turns, wished.clone()).await);
        let rejection = FinishTurnRequest {
            ttl,
            detail: "no such channel\n\tC1".into(),
            ..ending(&mine, TurnOutcome::Rejected)
        };
        let rejected = end(&mut turns, rejection.clone()).await;
        assert_eq!(rejected.state(), EventState::Processed);
        assert_eq!((rejected.outcome(), rejected.attempt), (TurnOutcome::Rejected, 1));
        assert_eq!(rejected.detail, "no such channel\n\tC1");
        let lives = rejected.expire_time.unwrap().seconds - rejected.process_time.unwrap().seconds;
        assert_eq!(lives, ttl.map_or(24 * 60 * 60, |ttl| ttl.seconds));
        // Its answer may have been lost.
        assert_eq!(end(&mut turns, rejection.clone()).await, rejected);
        for other in [TurnOutcome::Succeeded, TurnOutcome::Failed] {
            let late = turns.finish_turn(ending(&mine, other)).await.unwrap_err();
            assert_eq!(reason(&late), "CLAIM_LOST");
        }

        assert_eq!(look(&mut f, &id).await, rejected);
        let again = duplicate(begin(&mut turns, wished.clone()).await);
        assert_eq!(again.event.as_ref(), Some(&rejected));
        assert_eq!((again.result, again.result_type.as_str()), (Vec::new(), ""));
        let event = wished.event.clone();
        let marked = MarkProcessedRequest { event, ..Default::default() };
        // Twice, as the second may be answered from memory.
        for _ in 0..2 {
            let marked = f.client.mark_processed(marked.clone()).await.unwrap().into_inner();
            assert_eq!((marked.first, marked.event.as_ref()), (false, Some(&rejected)));
        }
        for alias in &wished.event.as_ref().unwrap().aliases {
            let by_alias = look(&mut f, alias).await;
            assert_eq!(
                (by_alias.outcome(), by_alias.detail),
                (rejected.outcome(), rejected.detail.clone())
            );
        }
        // The session is free.
        let asked = f.client.acquire_session_lease(acquire("T1", "s", "b")).await.unwrap();
        f.client.release_session_lease(release(&granted(asked.into_inner()))).await.unwrap();
    }
    f.clock.advance(Duration::from_mins(1));
    let [_, alone, _] = wishes("Ev");
    let mine = turn(begin(&mut turns, alone.clone()).await);
    assert_eq!(mine.attempt, 1);
    assert_eq!(look(&mut f, id_of(&alone)).await.detail, "");
    let done = finish(&mut turns, &mine, TurnOutcome::Succeeded).await.unwrap();
    assert_eq!((done.outcome(), done.detail.as_str()), (TurnOutcome::Succeeded, ""));
}

async fn a_stream_can_end_with_a_rejection(mut f: Fixture) {
    let mut kept = Kept::new(&f, wish("Ev1", "a")).await;
    kept.turn().await;
    kept.end_with(TurnEnd {
        outcome: TurnOutcome::Rejected.into(),
        ttl: seconds(60),
        detail: "not for us".into(),
        ..Default::default()
    })
    .await;
    let News::Finished(finished) = kept.event().await else { panic!("not finished") };
    let rejected = finished.event.unwrap();
    assert_eq!(
        (rejected.outcome(), rejected.detail.as_str()),
        (TurnOutcome::Rejected, "not for us")
    );
    assert_eq!(look(&mut f, "Ev1").await, rejected);
    let mut again = Kept::new(&f, wish("Ev1", "b")).await;
    let News::Duplicate(duplicate) = again.event().await else { panic!("no duplicate") };
    assert_eq!(duplicate.event.unwrap(), rejected);
}

async fn rejected_events_are_listed_and_forgotten(f: Fixture) {
    let mut turns = turns(&f).await;
    for (id, outcome) in [("a", TurnOutcome::Rejected), ("b", TurnOutcome::Succeeded)] {
        let mine = turn(begin(&mut turns, wish(id, "pod-1")).await);
        end(&mut turns, ending(&mine, outcome)).await;
    }
    let once = BeginTurnRequest { max_attempts: 1, ..wish("c", "pod-1") };
    let mine = turn(begin(&mut turns, once).await);
    end(&mut turns, failing(&mine, "out of memory")).await;
    let mut admin = AdminServiceClient::new(connect(f.replica.server.address()).await);
    for (outcome, state, expected) in [
        (TurnOutcome::Rejected, EventState::Unspecified, "a"),
        (TurnOutcome::Rejected, EventState::Processed, "a"),
        (TurnOutcome::Succeeded, EventState::Unspecified, "b"),
        (TurnOutcome::GaveUp, EventState::Unspecified, "c"),
    ] {
        let request = ListEventsRequest {
            outcome: outcome.into(),
            state: state.into(),
            ..Default::default()
        };
        let listed = admin.list_events(request).await.unwrap().into_inner().events;
        assert_eq!(listed.len(), 1, "{outcome:?}: {listed:?}");
        assert_eq!((listed[0].event_id.as_str(), listed[0].outcome()), (expected, outcome));
    }
    let wrong = ListEventsRequest {
        outcome: TurnOutcome::Rejected.into(),
        state: EventState::InProgress.into(),
        ..Default::default()
    };
    refuses("outcome", &admin.list_events(wrong).await.unwrap_err());
    let rejected = listed(&f, "a").await;
    let forget =
        ForgetEventRequest { event: event("T1", "a"), actor: "ops".into(), ..Default::default() };
    let forgotten = admin.forget_event(forget).await.unwrap().into_inner().event.unwrap();
    assert_eq!(forgotten, rejected);
    turn(begin(&mut turns, wish("a", "pod-1")).await);
}

/// A binary of the version before knows no rejection, and leaves its columns alone.
async fn a_rejection_that_an_older_binary_wrote_over_does_not_count(mut f: Fixture) {
    let mut turns = turns(&f).await;
    let mine = turn(begin(&mut turns, wish("Ev1", "pod-1")).await);
    end(&mut turns, ending(&mine, TurnOutcome::Rejected)).await;
    let later = if f.url.starts_with("sqlite:") { "1000000" } else { "interval '1 second'" };
    execute(&f.url, &format!("UPDATE processed_events SET processed_at = processed_at + {later}"))
        .await;
    assert_eq!(look(&mut f, "Ev1").await.outcome(), TurnOutcome::GaveUp);
    gave_up(begin(&mut turns, wish("Ev1", "pod-1")).await);
}

async fn the_detail_of_the_latest_failure_is_on_record(mut f: Fixture) {
    let mut turns = turns(&f).await;
    for wished in wishes("Ev") {
        let wished = BeginTurnRequest { max_attempts: 3, ..wished };
        let id = id_of(&wished).to_owned();
        let mine = turn(begin(&mut turns, wished.clone()).await);
        assert_eq!(look(&mut f, &id).await.detail, "");
        let failed = failing(&mine, "timeout");
        let answer = end(&mut turns, failed.clone()).await;
        assert_eq!(answer.state(), EventState::NotSeen);
        assert_eq!(end(&mut turns, failed).await, answer);
        assert_eq!(listed(&f, &id).await.detail, "timeout");
        // A claim in progress keeps it.
        let mine = turn(begin(&mut turns, wished.clone()).await);
        assert_eq!(look(&mut f, &id).await.detail, "timeout");
        let renew = RenewTurnRequest { turn_id: mine.turn_id.clone(), ..Default::default() };
        turns.renew_turn(renew).await.unwrap();
        let progress = f.client.mark_processed(mark("T1", &id)).await.unwrap().into_inner();
        assert_eq!(progress.event.unwrap().detail, "timeout");
        // A failure without one has none.
        end(&mut turns, failing(&mine, "")).await;
        assert_eq!(listed(&f, &id).await.detail, "");
        let mine = turn(begin(&mut turns, wished.clone()).await);
        let event = end(&mut turns, failing(&mine, "out of memory")).await;
        assert_eq!(
            (event.outcome(), event.detail.as_str()),
            (TurnOutcome::GaveUp, "out of memory")
        );
        assert_eq!(gave_up(begin(&mut turns, wished.clone()).await), event);
        assert_eq!(look(&mut f, &id).await, event);
        assert_eq!(listed(&f, &id).await, event);
    }
    for wished in wishes("Good") {
        let id = id_of(&wished).to_owned();
        let mine = turn(begin(&mut turns, wished.clone()).await);
        end(&mut turns, failing(&mine, "timeout")).await;
        let mine = turn(begin(&mut turns, wished.clone()).await);
        let done = finish(&mut turns, &mine, TurnOutcome::Succeeded).await.unwrap();
        assert_eq!((done.outcome(), done.detail.as_str()), (TurnOutcome::Succeeded, ""));
        assert_eq!(look(&mut f, &id).await, done);
        assert_eq!(duplicate(begin(&mut turns, wished).await).event, Some(done));
    }
}

async fn a_claim_that_lapses_keeps_the_detail_of_the_failure_before(mut f: Fixture) {
    let mut turns = turns(&f).await;
    for wished in wishes("Ev") {
        let wished = BeginTurnRequest { max_attempts: 2, ..wished };
        let id = id_of(&wished).to_owned();
        let mine = turn(begin(&mut turns, wished.clone()).await);
        end(&mut turns, failing(&mine, "timeout")).await;
        turn(begin(&mut turns, wished.clone()).await);
        f.clock.advance(Duration::from_mins(5));
        assert_eq!(listed(&f, &id).await.detail, "timeout");
        let event = gave_up(begin(&mut turns, wished).await);
        assert_eq!((event.attempt, event.detail.as_str()), (2, "timeout"));
        assert_eq!(look(&mut f, &id).await, event);
    }
    // A mark that takes the event over has none.
    let mine = turn(begin(&mut turns, wish("marked", "pod-1")).await);
    end(&mut turns, failing(&mine, "timeout")).await;
    let marked = f.client.mark_processed(mark("T1", "marked")).await.unwrap().into_inner();
    assert_eq!((marked.first, marked.event.unwrap().detail.as_str()), (true, ""));
    assert_eq!(look(&mut f, "marked").await.detail, "");
}

async fn details_and_types_out_of_bounds_are_refused_by_name(f: Fixture) {
    let mut turns = turns(&f).await;
    let mine = turn(begin(&mut turns, wish("Ev1", "a")).await);
    let with = |outcome| ending(&mine, outcome);
    let (succeeded, failed, rejected) =
        (TurnOutcome::Succeeded, TurnOutcome::Failed, TurnOutcome::Rejected);
    let mut wrong = vec![
        ("detail", FinishTurnRequest { detail: "well".into(), ..with(succeeded) }),
        ("ttl", FinishTurnRequest { ttl: seconds(60), ..with(failed) }),
        ("ttl", FinishTurnRequest { ttl: seconds(0), ..with(rejected) }),
        ("ttl", FinishTurnRequest { ttl: seconds(31 * 24 * 60 * 60), ..with(rejected) }),
        ("result", FinishTurnRequest { result: vec![0], ..with(rejected) }),
        ("result_type", FinishTurnRequest { result_type: "a".repeat(256), ..with(succeeded) }),
        ("result_type", FinishTurnRequest { result_type: "é".repeat(128), ..with(succeeded) }),
        ("result_type", FinishTurnRequest { result_type: "a\nb".into(), ..with(succeeded) }),
        ("result_type", FinishTurnRequest { result_type: "text/plain".into(), ..with(failed) }),
        ("result_type", FinishTurnRequest { result_type: "text/plain".into(), ..with(rejected) }),
    ];
    for outcome in [failed, rejected] {
        for detail in ["a".repeat(2_049), "é".repeat(1_025), "a\0b".into(), "a\u{85}b".into()] {
            wrong.push(("detail", FinishTurnRequest { detail, ..with(outcome) }));
        }
    }
    for (field, request) in wrong {
        refuses(field, &turns.finish_turn(request.clone()).await.unwrap_err());
        let mut kept = Kept::new(&f, BeginTurnRequest { session: None, ..wish("Ev2", "b") }).await;
        let lost = kept.turn().await;
        let FinishTurnRequest { outcome, result, ttl, detail, result_type, .. } = request;
        kept.end_with(TurnEnd { outcome, result, ttl, detail, result_type }).await;
        refuses(field, &kept.next().await.unwrap_err());
        // The stream has broken, and the turn is its holder's for the grace.
        let finished = end(&mut turns, ending(&lost, succeeded)).await;
        assert_eq!(finished.attempt, 1);
        let alone = ForgetEventRequest {
            event: event("T1", "Ev2"),
            actor: "ops".into(),
            ..Default::default()
        };
        let mut admin = AdminServiceClient::new(connect(f.replica.server.address()).await);
        admin.forget_event(alone).await.unwrap();
    }
}

async fn the_longest_detail_and_type_are_kept(mut f: Fixture) {
    let mut turns = turns(&f).await;
    for wished in wishes("Ev") {
        let mine = turn(begin(&mut turns, wished.clone()).await);
        let detail = "é".repeat(1_024);
        end(&mut turns, failing(&mine, &detail)).await;
        assert_eq!(look(&mut f, id_of(&wished)).await.state(), EventState::NotSeen);
        assert_eq!(listed(&f, id_of(&wished)).await.detail, detail);
        let mine = turn(begin(&mut turns, wished.clone()).await);
        let result_type = format!("{}a", "é".repeat(127));
        let typed = FinishTurnRequest {
            result_type: result_type.clone(),
            ..ending(&mine, TurnOutcome::Succeeded)
        };
        end(&mut turns, typed).await;
        let again = duplicate(begin(&mut turns, wished).await);
        assert_eq!((again.result, again.result_type), (Vec::new(), result_type));
    }
}

async fn a_result_is_returned_with_its_type(f: Fixture) {
    let mut turns = turns(&f).await;
    for wished in wishes("Ev") {
        for (result, result_type) in [("{}", "application/json"), ("plain", "")] {
            let mine = turn(begin(&mut turns, wished.clone()).await);
            let typed = FinishTurnRequest {
                result: result.into(),
                result_type: result_type.into(),
                ttl: seconds(60),
                ..ending(&mine, TurnOutcome::Succeeded)
            };
            let done = end(&mut turns, typed).await;
            let again = duplicate(begin(&mut turns, wished.clone()).await);
            assert_eq!(again.event, Some(done));
            assert_eq!((&*again.result, &*again.result_type), (result.as_bytes(), result_type));
            // The next turn of the event has its own.
            f.clock.advance(Duration::from_mins(1));
        }
    }
    let mut kept = Kept::new(&f, wish("kept", "a")).await;
    kept.turn().await;
    kept.end_with(TurnEnd {
        outcome: TurnOutcome::Succeeded.into(),
        result: b"{}".to_vec(),
        result_type: "application/json".into(),
        ..Default::default()
    })
    .await;
    assert!(matches!(kept.event().await, News::Finished(_)));
    let mut again = Kept::new(&f, wish("kept", "b")).await;
    let News::Duplicate(duplicate) = again.event().await else { panic!("no duplicate") };
    assert_eq!((&*duplicate.result, &*duplicate.result_type), (&b"{}"[..], "application/json"));
}

async fn a_result_is_read_where_it_is_asked_for(mut f: Fixture) {
    let mut turns = turns(&f).await;
    for wished in wishes("Ev") {
        let id = id_of(&wished).to_owned();
        let key = || event("T1", &id);
        let nothing = |answer: &IsProcessedResponse| {
            answer.result.is_empty() && answer.result_type.is_empty()
        };
        assert!(nothing(&look_for_result(&mut f, key()).await));
        let mine = turn(begin(&mut turns, wished.clone()).await);
        let claimed = look_for_result(&mut f, key()).await;
        assert_eq!(claimed.state(), EventState::InProgress);
        assert!(nothing(&claimed));
        let typed = FinishTurnRequest {
            result: b"{}".to_vec(),
            result_type: "application/json".into(),
            ..ending(&mine, TurnOutcome::Succeeded)
        };
        let done = end(&mut turns, typed).await;
        for _ in 0..2 {
            // Whether the row is remembered by then or not.
            let request = IsProcessedRequest { event: key(), ..Default::default() };
            let plain = f.client.is_processed(request).await.unwrap().into_inner();
            assert_eq!(plain.event.as_ref(), Some(&done));
            assert!(nothing(&plain));
            let full = look_for_result(&mut f, key()).await;
            assert_eq!((full.processed, full.event.as_ref()), (true, Some(&done)));
            assert_eq!((&*full.result, &*full.result_type), (&b"{}"[..], "application/json"));
        }
        for alias in &wished.event.as_ref().unwrap().aliases {
            let mut by_alias = event("T1", "unknown").unwrap();
            by_alias.aliases = vec![alias.clone()];
            for key in [event("T1", alias), Some(by_alias)] {
                let full = look_for_result(&mut f, key).await;
                assert_eq!((&*full.result, &*full.result_type), (&b"{}"[..], "application/json"));
            }
        }
    }
    f.client.mark_processed(mark("T1", "marked")).await.unwrap();
    let marked = look_for_result(&mut f, event("T1", "marked")).await;
    assert_eq!((marked.processed, &*marked.result, &*marked.result_type), (true, &b""[..], ""));
}
