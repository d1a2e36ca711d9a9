//! The operator API over the rows of several consumers.

use super::*;

on_all_stores!(
    events_are_listed_with_their_consumers_over_pages,
    sessions_are_listed_with_their_consumers_over_pages,
    an_event_of_one_consumer_is_forgotten,
    a_session_of_one_consumer_is_administered,
    cleanup_takes_the_rows_of_all_consumers,
);

async fn events_are_listed_with_their_consumers_over_pages(mut f: Fixture) {
    let mut admin = admin(&f).await;
    for id in ["a:1", "b", "a"] {
        for consumer in ["bot-b", "", "bot-a"] {
            mark(&mut f, id, consumer).await;
        }
    }
    // By id, as bytes, and then by consumer: one event's stand together.
    let expected = ["a", "a:1", "b"].map(|id| CONSUMERS.map(|consumer| (id, consumer))).concat();
    for page_size in [1, 2, 4, 9] {
        let mut request =
            ListEventsRequest { team_id: "T1".into(), page_size, ..Default::default() };
        let mut listed = Vec::new();
        loop {
            let page = admin.list_events(request.clone()).await.unwrap().into_inner();
            listed.extend(page.events);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        assert_eq!(listed.iter().map(names).collect::<Vec<_>>(), expected, "{page_size}");
    }
}

async fn sessions_are_listed_with_their_consumers_over_pages(mut f: Fixture) {
    let mut admin = admin(&f).await;
    for id in ["a:1", "b", "a"] {
        for consumer in ["bot-b", "", "bot-a"] {
            f.client.acquire_session_lease(asking(session(id, consumer), "pod-1")).await.unwrap();
        }
    }
    let expected = ["a", "a:1", "b"].map(|id| CONSUMERS.map(|consumer| (id, consumer))).concat();
    for page_size in [1, 2, 4, 9] {
        let mut request =
            ListSessionsRequest { team_id: "T1".into(), page_size, ..Default::default() };
        let mut listed = Vec::new();
        loop {
            let page = admin.list_sessions(request.clone()).await.unwrap().into_inner();
            listed.extend(page.sessions);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        let names: Vec<_> =
            listed.iter().map(|s| (s.session_id.as_str(), s.consumer.as_str())).collect();
        assert_eq!(names, expected, "{page_size}");
    }
}

async fn an_event_of_one_consumer_is_forgotten(mut f: Fixture) {
    let mut admin = admin(&f).await;
    for consumer in CONSUMERS {
        mark(&mut f, "Ev1", consumer).await;
    }
    let forget = || ForgetEventRequest {
        event: event("Ev1", "bot-a"),
        actor: "ops".into(),
        ..Default::default()
    };
    let forgotten = admin.forget_event(forget()).await.unwrap().into_inner().event.unwrap();
    assert_eq!(names(&forgotten), ("Ev1", "bot-a"));
    assert_eq!(admin.forget_event(forget()).await.unwrap_err().code(), Code::NotFound);
    assert!(mark(&mut f, "Ev1", "bot-a").await);
    for consumer in ["", "bot-b"] {
        assert!(!mark(&mut f, "Ev1", consumer).await, "{consumer:?}");
    }
}

async fn a_session_of_one_consumer_is_administered(mut f: Fixture) {
    let mut admin = admin(&f).await;
    for consumer in CONSUMERS {
        f.client.acquire_session_lease(asking(session("s", consumer), "pod-1")).await.unwrap();
    }
    let show = |consumer: &str| GetSessionRequest { session: session("s", consumer) };
    let epic = BindEpicRequest {
        session: session("s", "bot-a"),
        epic_id: "PROJ-50".into(),
        actor: "ops".into(),
        ..Default::default()
    };
    let bound = admin.bind_epic(epic).await.unwrap().into_inner().session.unwrap();
    assert_eq!((bound.consumer.as_str(), bound.epic_id.as_str()), ("bot-a", "PROJ-50"));
    let force = ForceReleaseSessionLeaseRequest {
        session: session("s", "bot-a"),
        actor: "ops".into(),
        reason: "stuck".into(),
    };
    let freed = admin.force_release_session_lease(force).await.unwrap().into_inner();
    assert!(freed.released);
    assert_eq!(freed.session.unwrap().consumer, "bot-a");
    for (consumer, state, epic) in [
        ("", SessionState::Held, ""),
        ("bot-a", SessionState::Free, "PROJ-50"),
        ("bot-b", SessionState::Held, ""),
    ] {
        let shown = admin.get_session(show(consumer)).await.unwrap().into_inner().session.unwrap();
        assert_eq!((shown.session_id.as_str(), shown.consumer.as_str()), ("s", consumer));
        assert_eq!((shown.state(), shown.epic_id.as_str()), (state, epic), "{consumer:?}");
    }
    let close = |consumer: &str| CloseSessionRequest {
        session: session("s", consumer),
        actor: "ops".into(),
        ..Default::default()
    };
    // A token is above the clock only by the grants of the same moment.
    f.clock.advance(Duration::from_secs(1));
    assert!(admin.close_session(close("bot-b")).await.unwrap().into_inner().closed);
    assert_eq!(admin.get_session(show("bot-b")).await.unwrap_err().code(), Code::NotFound);
    assert!(!admin.close_session(close("bot-c")).await.unwrap().into_inner().closed);
    for consumer in ["", "bot-a"] {
        admin.get_session(show(consumer)).await.unwrap();
    }
}

async fn cleanup_takes_the_rows_of_all_consumers(mut f: Fixture) {
    for consumer in CONSUMERS {
        mark(&mut f, "Ev1", consumer).await;
        f.client.acquire_session_lease(asking(session("s", consumer), "pod-1")).await.unwrap();
    }
    f.clock.advance(Duration::from_hours(25));
    let all = CleanupRequest { team_id: "T1".into(), older_than: seconds(0), ..Default::default() };
    let cleaned = f.client.cleanup(all).await.unwrap().into_inner();
    assert_eq!((cleaned.deleted_events, cleaned.deleted_sessions), (3, 3));
    for consumer in CONSUMERS {
        assert!(mark(&mut f, "Ev1", consumer).await);
    }
}
