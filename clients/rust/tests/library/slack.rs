//! The guard of Slack.

use std::time::Duration;

use http::StatusCode;
use oncegate_client::{
    EventState, Gate, Session,
    slack::{Guard, Socket},
    testing::{self, Server},
};
use serde_json::Value;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use self::bot::{
    Bot, BoxError, Leave, SECRET, answer, click, drained, envelope, mention, post, posting,
    queueing, signed,
};

mod bot;

#[tokio::test]
async fn an_event_is_handled_once() {
    let (gate, _server) = testing::start().await;
    let mut bot = Bot::new();
    let events = bot.events(&Guard::new(gate));
    let first = posting(&events, "1");
    assert_eq!(bot.runs().await, "1");
    let second = post(&events, "1", 0).await;
    assert_eq!(second.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(second.may_retry);
    bot.leaves(Leave::Done).await;
    assert_eq!(first.await.expect("a reply").status, StatusCode::OK);
    assert_eq!(post(&events, "1", 1).await.status, StatusCode::OK);
    bot.runs_no_more();
}

#[tokio::test]
async fn an_error_is_delivered_again() {
    let (gate, _server) = testing::start().await;
    let mut bot = Bot::new();
    let events = bot.events(&Guard::new(gate));
    bot.leaves(Leave::Fail).await;
    let first = post(&events, "1", 0).await;
    assert_eq!(first.status, StatusCode::SERVICE_UNAVAILABLE);
    bot.leaves(Leave::Reject).await;
    assert_eq!(post(&events, "1", 1).await.status, StatusCode::OK);
    assert_eq!(post(&events, "1", 2).await.status, StatusCode::OK);
    assert_eq!((bot.ran(), bot.ran()), ("1".into(), "1".into()));
    bot.runs_no_more();
}

#[tokio::test]
async fn a_request_that_slack_gives_up_is_handled() {
    let (gate, server) = testing::start().await;
    let mut bot = Bot::new();
    let guard = Guard::new(gate);
    let first = posting(&bot.events(&guard), "1");
    bot.runs().await;
    first.abort();
    assert!(first.await.is_err_and(|error| error.is_cancelled()));
    bot.leaves(Leave::Done).await;
    drained(&guard).await;
    let events = bot.events(&Guard::new(server.gate()));
    assert_eq!(post(&events, "1", 1).await.status, StatusCode::OK);
    bot.runs_no_more();
}

#[tokio::test]
async fn a_busy_thread_queues() {
    let server = Server::start([]).await;
    let (gate, mut is_queued) = queueing(&server);
    let mut bot = Bot::new();
    let guard = Guard::new(gate);
    let events = bot.events(&guard);
    let first = posting(&events, "1");
    bot.runs().await;
    for event in ["2", "3"] {
        assert_eq!(post(&events, event, 0).await.status, StatusCode::OK);
        is_queued.recv().await;
    }
    bot.runs_no_more();
    for _ in 0..3 {
        bot.leaves(Leave::Done).await;
    }
    assert_eq!(first.await.expect("a reply").status, StatusCode::OK);
    drained(&guard).await;
    assert_eq!((bot.ran(), bot.ran()), ("2".into(), "3".into()));
    assert_eq!(server.turns("T1").await, []);
}

#[tokio::test]
async fn without_a_wait_a_busy_thread_is_delivered_again() {
    let server = Server::start([]).await;
    let mut bot = Bot::new();
    let guard = Guard::new(server.gate()).wait(Duration::ZERO);
    let events = bot.events(&guard);
    let first = posting(&events, "1");
    bot.runs().await;
    let second = post(&events, "2", 0).await;
    assert_eq!((second.status, second.may_retry), (StatusCode::SERVICE_UNAVAILABLE, true));
    for _ in 0..2 {
        bot.leaves(Leave::Done).await;
    }
    assert_eq!(first.await.expect("a reply").status, StatusCode::OK);
    assert_eq!(post(&events, "2", 1).await.status, StatusCode::OK);
    assert_eq!(bot.ran(), "2");
    drained(&guard).await;
    bot.runs_no_more();
}

/// After a loss by force, the event is free when its TTL has ended.
fn with_short_turns(gate: Gate) -> Guard {
    Guard::new(gate).with(|turn| turn.ttl(Duration::from_secs(5)))
}

#[tokio::test]
async fn an_event_that_waited_is_asked_for_again_after_a_loss() {
    let server = Server::start([]).await;
    let (gate, mut is_queued) = queueing(&server);
    let mut bot = Bot::new();
    let guard = with_short_turns(gate);
    let lease = server.gate().lease(thread()).acquire().await.expect("a lease");
    assert_eq!(post(&bot.events(&guard), "1", 0).await.status, StatusCode::OK);
    is_queued.recv().await;
    lease.release().await.expect("it is released");
    is_handled_after_a_loss(&mut bot, &guard, &server).await;
}

#[tokio::test]
async fn an_event_that_was_acknowledged_first_is_asked_for_again_after_a_loss() {
    let server = Server::start([]).await;
    let mut bot = Bot::new();
    let guard = with_short_turns(server.gate()).ack_first();
    assert_eq!(post(&bot.events(&guard), "1", 0).await.status, StatusCode::OK);
    is_handled_after_a_loss(&mut bot, &guard, &server).await;
}

async fn is_handled_after_a_loss(bot: &mut Bot, guard: &Guard, server: &Server) {
    assert_eq!(bot.runs().await, "1");
    server.lose(&thread()).await;
    assert_eq!(bot.runs().await, "1");
    bot.leaves(Leave::Done).await;
    drained(guard).await;
    let events = bot.events(&Guard::new(server.gate()));
    assert_eq!(post(&events, "1", 1).await.status, StatusCode::OK, "a duplicate");
    bot.runs_no_more();
}

#[tokio::test]
async fn an_event_is_not_asked_for_again_after_the_wait() {
    let server = Server::start([]).await;
    let (gate, mut is_queued) = queueing(&server);
    let mut bot = Bot::new();
    let wait = Duration::from_secs(3);
    let guard = with_short_turns(gate).wait(wait);
    let began = Instant::now();
    let lease = server.gate().lease(thread()).acquire().await.expect("a lease");
    assert_eq!(post(&bot.events(&guard), "1", 0).await.status, StatusCode::OK);
    is_queued.recv().await;
    lease.release().await.expect("it is released");
    assert_eq!(bot.runs().await, "1");
    sleep_until(began + wait * 2).await; // a long run
    server.kill().await;
    bot.is_idle().await;
    server.restart().await;
    bot.leaves(Leave::Done).await; // of a second run
    drained(&guard).await;
    bot.runs_no_more();
}

/// That of [`mention`].
fn thread() -> Session {
    Session::thread("T1", "C1", "17.5")
}

#[tokio::test]
async fn a_drain_is_limited() {
    let server = Server::start([]).await;
    let mut bot = Bot::new();
    let guard = Guard::new(server.gate()).ack_first();
    let events = bot.events(&guard);
    assert_eq!(post(&events, "1", 0).await.status, StatusCode::OK);
    bot.runs().await;
    assert_eq!(post(&events, "2", 0).await.status, StatusCode::OK); // it waits
    assert!(!guard.drain(Duration::from_millis(50)).await);
    assert_eq!(server.turns("T1").await, [], "what has not ended has failed");
    assert_eq!(post(&events, "3", 0).await.status, StatusCode::SERVICE_UNAVAILABLE);
    bot.runs_no_more();
}

#[tokio::test]
async fn too_many_that_are_acknowledged_are_refused() {
    let server = Server::start([]).await;
    let mut bot = Bot::new();
    let guard = Guard::new(server.gate()).ack_first().max_background(1);
    let events = bot.events(&guard);
    assert_eq!(post(&events, "1", 0).await.status, StatusCode::OK);
    assert_eq!(bot.runs().await, "1");
    let second = post(&events, "2", 0).await; // its thread is busy
    assert_eq!((second.status, second.may_retry), (StatusCode::SERVICE_UNAVAILABLE, true));
    let other = signed(&mention("3").replace("17.5", "18.5"), SECRET, 0);
    let third = tokio::spawn(answer(events.clone(), other));
    assert_eq!(bot.runs().await, "3");
    for _ in 0..2 {
        bot.leaves(Leave::Fail).await;
    }
    let third = third.await.expect("a reply");
    assert_eq!(
        third.status,
        StatusCode::SERVICE_UNAVAILABLE,
        "it is acknowledged after its handler"
    );
    drained(&guard).await;
    bot.runs_no_more();
}

#[tokio::test]
async fn a_click_in_a_busy_thread_is_reported() {
    let server = Server::start([]).await;
    let (gate, mut is_queued) = queueing(&server);
    let mut bot = Bot::new();
    let (report, mut is_reported) = mpsc::channel(10);
    let guard = Guard::new(gate).on_busy(move |payload: Value| {
        let report = report.clone();
        async move {
            report.send(payload["type"].clone()).await.expect("it is awaited");
            panic!("a bug of on_busy");
        }
    });
    let socket: Socket = bot.socket(&guard);
    let lease = server.gate().lease(thread()).acquire().await.expect("a lease");
    let ack = |envelope| Some(format!(r#"{{"envelope_id":"{envelope}"}}"#));
    assert_eq!(socket.message(&click("a click")).await, ack("a click"));
    is_queued.recv().await;
    assert_eq!(socket.message(&envelope("1", 0)).await, ack("envelope of 1"));
    is_queued.recv().await;
    lease.release().await.expect("it is released");
    for _ in 0..2 {
        bot.leaves(Leave::Done).await;
    }
    drained(&guard).await;
    assert_eq!((bot.ran(), bot.ran()), ("a click".into(), "1".into()));
    assert_eq!(is_reported.recv().await.expect("a report"), "block_actions");
    assert!(is_reported.try_recv().is_err(), "an event is reported");
}

#[tokio::test]
async fn the_last_retry_waits_for_the_run_before_it() {
    let server = Server::start([]).await;
    for (event, leave) in [("1", Leave::Done), ("2", Leave::Fail)] {
        let is_handled = matches!(leave, Leave::Done);
        let mut bot = Bot::new();
        let guard = Guard::new(server.gate());
        let events = bot.events(&guard);
        let first = posting(&events, event);
        bot.runs().await;
        for retry in [1, 2] {
            let refused = post(&events, event, retry).await;
            assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "retry {retry}");
        }
        assert_eq!(post(&events, event, 3).await.status, StatusCode::OK);
        bot.leaves(leave).await;
        assert_eq!(first.await.expect("a reply").status.is_success(), is_handled);
        if !is_handled {
            assert_eq!(bot.runs().await, event);
            bot.leaves(Leave::Done).await;
        }
        drained(&guard).await;
        let events = bot.events(&Guard::new(server.gate()));
        assert_eq!(post(&events, event, 1).await.status, StatusCode::OK);
        bot.runs_no_more();
    }
}

#[tokio::test]
async fn the_last_retry_waits_for_the_server() {
    let (gate, server) = testing::start().await;
    server.kill().await;
    let mut bot = Bot::new();
    let guard = Guard::new(gate);
    let events = bot.events(&guard);
    let unavailable = post(&events, "1", 0).await;
    assert_eq!(unavailable.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(unavailable.may_retry);
    bot.runs_no_more();
    assert_eq!(post(&events, "1", 3).await.status, StatusCode::OK);
    server.restart().await;
    bot.leaves(Leave::Done).await;
    drained(&guard).await;
    assert_eq!(bot.ran(), "1");
}

#[tokio::test]
async fn a_panic_fails_the_turn() {
    let server = Server::start([]).await;
    let ack_first = Guard::new(server.gate()).ack_first();
    for (event, guard, status) in [("1", Guard::new(server.gate()), 503), ("2", ack_first, 200)] {
        let mut bot = Bot::new();
        bot.leaves(Leave::Panic).await;
        assert_eq!(post(&bot.events(&guard), event, 0).await.status.as_u16(), status);
        drained(&guard).await;
        assert_eq!(bot.ran(), event);
        assert_eq!(server.turns("T1").await, []);
        bot.leaves(Leave::Done).await;
        let guard = Guard::new(server.gate());
        assert_eq!(post(&bot.events(&guard), event, 1).await.status, StatusCode::OK);
        assert_eq!(bot.ran(), event);
    }
}

#[tokio::test]
async fn the_request_url_verifies_who_asks() {
    let (gate, _server) = testing::start().await;
    let mut bot = Bot::new();
    let guard = Guard::new(gate);
    let events = bot.events(&guard);
    let challenge = r#"{"type": "url_verification", "token": "x", "challenge": "abc"}"#;
    let reply = answer(events.clone(), signed(challenge, SECRET, 0)).await;
    assert_eq!((reply.status, reply.body.as_str()), (StatusCode::OK, "abc"));
    let event = mention("1");
    for _ in 0..4 {
        bot.leaves(Leave::Done).await; // one that runs wrongly does not wait
    }
    let mut without = signed(&event, SECRET, 0);
    without.headers_mut().remove("x-slack-signature");
    for (what, request) in [
        ("another secret", signed(&event, "another", 0)),
        ("an old request", signed(&event, SECRET, 301)),
        ("no signature", without),
    ] {
        assert_eq!(
            answer(events.clone(), request).await.status,
            StatusCode::UNAUTHORIZED,
            "{what}"
        );
    }
    let open = guard.events("", |_: Value, _| async { Ok::<_, BoxError>(()) });
    let reply = answer(open, signed(&event, "", 0)).await;
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "an empty secret");
    for (body, status) in [
        ("x".repeat((4 << 20) + 1), StatusCode::PAYLOAD_TOO_LARGE),
        ("payload=x".to_owned(), StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(answer(events.clone(), signed(&body, SECRET, 0)).await.status, status);
    }
    bot.runs_no_more();
}

#[tokio::test]
async fn a_form_is_not_acknowledged() {
    let (gate, _server) = testing::start().await;
    let guard = Guard::new(gate.clone());
    // Whatever the handler takes.
    let events = guard.events(SECRET, |_: Value, _| async { Ok::<_, BoxError>(()) });
    let click = "payload=%7B%22type%22%3A%22block_actions%22%2C%22trigger_id%22%3A%221.2.x%22%2C\
                 %22team%22%3A%7B%22id%22%3A%22T1%22%7D%7D";
    let reply = answer(events, signed(click, SECRET, 0)).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    let seen = gate.seen(&oncegate_client::slack(click.as_bytes())).await.expect("an answer");
    assert_eq!(seen.state, EventState::NotSeen);
}

#[tokio::test]
async fn an_envelope_is_acknowledged_after_its_handler() {
    let server = Server::start([]).await;
    let (gate, mut is_queued) = queueing(&server);
    let mut bot = Bot::new();
    let guard = Guard::new(gate);
    let socket: Socket = bot.socket(&guard);
    for other in [r#"{"type": "hello"}"#, "no JSON"] {
        assert_eq!(socket.message(other).await, None);
    }
    let first = tokio::spawn({
        let socket = socket.clone();
        async move { socket.message(&envelope("1", 0)).await }
    });
    assert_eq!(bot.runs().await, "1");
    assert_eq!(socket.message(&envelope("1", 1)).await, None, "Slack is to deliver again");
    let ack = Some(r#"{"envelope_id":"a click"}"#.to_owned());
    assert_eq!(socket.message(&click("a click")).await, ack, "it waits in this process");
    is_queued.recv().await;
    bot.leaves(Leave::Done).await;
    let ack = Some(r#"{"envelope_id":"envelope of 1"}"#.to_owned());
    assert_eq!(first.await.expect("an end"), ack);
    assert_eq!(bot.runs().await, "a click");
    let ack = Some(r#"{"envelope_id":"again"}"#.to_owned());
    assert_eq!(socket.message(&click("again")).await, ack, "a click that runs is acknowledged");
    bot.leaves(Leave::Done).await;
    drained(&guard).await;
    bot.runs_no_more();
}
