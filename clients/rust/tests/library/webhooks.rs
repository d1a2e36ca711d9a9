//! The guard of webhooks.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use oncegate_client::{
    Body, Delivery, Gate, Session, Turn, github,
    testing::{self, Server},
    webhook::Guard,
};
use tower::{Layer as _, Service, ServiceExt as _, service_fn};

type Reply = Response<Full<Bytes>>;

/// A status, headers and a body.
type Answer = (StatusCode, HeaderMap, String);

async fn call<S, R>(service: S, request: Request<Full<Bytes>>) -> Result<Answer, S::Error>
where
    S: Service<Request<Full<Bytes>>, Response = Response<R>>,
    R: http_body::Body<Error: std::fmt::Debug>,
{
    let (parts, body) = service.oneshot(request).await?.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    Ok((parts.status, parts.headers, String::from_utf8_lossy(&body).into_owned()))
}

struct Site {
    server: Server,
    gate: Gate,
    calls: Arc<AtomicU32>,
}

impl Site {
    async fn start() -> Self {
        let (gate, server) = testing::start().await;
        Self { server, gate, calls: Arc::default() }
    }

    fn by_github(&self) -> Guard {
        Guard::new(self.gate.clone(), |request| github(&request.headers, &request.body))
    }

    /// What a request is answered by a handler behind the guard. The handler gets the number of its call.
    async fn deliver<F>(
        &self,
        guard: Guard,
        request: Request<Full<Bytes>>,
        handler: impl Fn(u32, Turn) -> F + Clone + Send + Sync + 'static,
    ) -> Answer
    where
        F: Future<Output = Reply> + Send,
    {
        let calls = self.calls.clone();
        let service = service_fn(move |request: Request<Body>| {
            let call = calls.fetch_add(1, Ordering::SeqCst) + 1;
            let turn = request.extensions().get::<Turn>().cloned();
            let handler = handler.clone();
            async move {
                let body = request.into_body().collect().await.expect("a body").to_bytes();
                assert!(!body.is_empty());
                Ok::<_, Infallible>(handler(call, turn.expect("a turn")).await)
            }
        });
        let Ok(answer) = call(guard.layer(service), request).await;
        answer
    }

    fn calls(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }
}

const ISSUE: &str = r#"{"action": "opened", "issue": {"number": 1},
    "repository": {"full_name": "octo/repo", "owner": {"id": 7}}, "installation": {"id": 9}}"#;

fn issue(delivery: &str) -> Request<Full<Bytes>> {
    let request = Request::post("/github").header("X-GitHub-Delivery", delivery);
    request.body(Full::new(Bytes::from(ISSUE))).expect("a request")
}

fn reply(status: u16, body: impl Into<Bytes>) -> Reply {
    let response = Response::builder().status(status);
    response.body(Full::new(body.into())).expect("a response")
}

#[tokio::test]
async fn a_duplicate_gets_the_same_response() {
    let site = Site::start().await;
    let create = |_, turn: Turn| async move {
        assert!(turn.fence().is_some());
        let mut response = reply(201, "created");
        let headers = response.headers_mut();
        headers.insert("location", "/issues/1".parse().expect("a value"));
        headers.insert("x-request-id", "of this exchange".parse().expect("a value"));
        response
    };
    let (status, headers, body) = site.deliver(site.by_github(), issue("d1"), create).await;
    assert_eq!((status.as_u16(), body.as_str()), (201, "created"));
    assert!(headers.contains_key("x-request-id"));
    let (status, headers, body) = site.deliver(site.by_github(), issue("d1"), create).await;
    assert_eq!((status.as_u16(), body.as_str()), (201, "created"));
    assert_eq!(headers["location"], "/issues/1");
    assert!(!headers.contains_key("x-request-id"));
    assert_eq!(site.calls(), 1);
}

#[tokio::test]
async fn a_long_response_is_replayed_by_its_status() {
    let site = Site::start().await;
    let long = |_, _| async { reply(202, "x".repeat(50_000)) };
    assert_eq!(site.deliver(site.by_github(), issue("d1"), long).await.2.len(), 50_000);
    let (status, _, body) = site.deliver(site.by_github(), issue("d1"), long).await;
    assert_eq!((status.as_u16(), body.as_str()), (202, ""));
}

#[tokio::test]
async fn a_failure_is_handled_again() {
    let site = Site::start().await;
    let once_bad = |call, turn: Turn| async move {
        assert_eq!(turn.attempt(), call);
        if call == 1 { reply(500, "no disk") } else { reply(200, "done") }
    };
    let (status, _, body) = site.deliver(site.by_github(), issue("d1"), once_bad).await;
    assert_eq!((status.as_u16(), body.as_str()), (500, "no disk"));
    let (status, _, body) = site.deliver(site.by_github(), issue("d1"), once_bad).await;
    assert_eq!((status.as_u16(), body.as_str()), (200, "done"));
}

#[tokio::test]
async fn others_are_asked_to_come_again() {
    let site = Site::start().await;
    let by_github = || site.by_github().with(|turn| turn.wait(std::time::Duration::ZERO));
    let (entered, mut has_entered) = tokio::sync::mpsc::channel(1);
    let waits = move |_, _| {
        let entered = entered.clone();
        async move {
            let _ = entered.send(()).await;
            std::future::pending::<Reply>().await
        }
    };
    let others = async {
        has_entered.recv().await.expect("it is handled");
        for delivery in ["d1", "d2"] {
            let unwanted = |_, _| async { reply(200, "it ran") };
            let (status, headers, _) = site.deliver(by_github(), issue(delivery), unwanted).await;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{delivery}");
            assert!(headers.contains_key("retry-after"));
        }
    };
    tokio::select! {
        _ = site.deliver(by_github(), issue("d1"), waits) => panic!("it is answered"),
        () = others => {}
    }
    assert_eq!(site.calls(), 1);
    site.gate.close().await;
    assert_eq!(site.server.turns("").await, [], "a handler that was dropped has failed");
}

#[tokio::test]
async fn an_idempotency_key_is_of_one_payload() {
    let site = Site::start().await;
    let guard = || Guard::idempotency_key(site.gate.clone(), |_| "account".to_owned());
    let pay = |key: &str, body: &str| {
        let request = Request::post("/pay").header("Idempotency-Key", key);
        request.body(Full::new(Bytes::from(body.to_owned()))).expect("a request")
    };
    let paid = |_, _| async { reply(200, "paid") };
    for _ in 0..2 {
        let (status, _, body) = site.deliver(guard(), pay("\"k1\"", "5"), paid).await;
        assert_eq!((status.as_u16(), body.as_str()), (200, "paid"));
    }
    let (status, ..) = site.deliver(guard(), pay("k1", "6"), paid).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    site.deliver(guard(), pay("k2", "5"), paid).await;
    assert_eq!(site.calls(), 2);
    // HTTP/2 has the host in the URI.
    let mut absolute = pay("k1", "5");
    *absolute.uri_mut() = "https://shop.example/pay".parse().expect("a URI");
    assert_eq!(site.deliver(guard(), absolute, paid).await.0, StatusCode::OK);
    let mut other = pay("k1", "5");
    *other.uri_mut() = "/pay?x=1".parse().expect("a URI");
    assert_eq!(site.deliver(guard(), other, paid).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    // A caller that sends a key relies on it.
    let mut twice = pay("k3", "5");
    twice.headers_mut().append("Idempotency-Key", "k4".parse().expect("a value"));
    let mut no_text = pay("k3", "5");
    let bytes = http::HeaderValue::from_bytes(b"k\xe4y").expect("a value");
    no_text.headers_mut().insert("Idempotency-Key", bytes);
    for request in [pay("", "5"), pay("\"\"", "5"), twice, no_text] {
        assert_eq!(site.deliver(guard(), request, paid).await.0, StatusCode::BAD_REQUEST);
    }
    assert_eq!(site.calls(), 2);
}

#[tokio::test]
async fn nothing_of_a_request_is_shown() {
    let site = Site::start().await;
    let guard = Guard::new(site.gate.clone(), |request| {
        let shown = format!("{request:?}");
        assert!(shown.contains("x-github-delivery") && !shown.contains("d1"), "{shown}");
        assert!(!shown.contains("octo"), "{shown}");
        let delivery = github(&request.headers, &request.body);
        assert!(!format!("{delivery:?}").contains("octo"), "{delivery:?}");
        delivery
    });
    let done = |_, _| async { reply(200, "done") };
    assert_eq!(site.deliver(guard, issue("d1"), done).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_handler_that_panics_fails_the_turn() {
    let site = Site::start().await;
    let panics = |call, _| async move {
        assert!(call > 1, "a bug");
        reply(200, "done")
    };
    let site = Arc::new(site);
    let first = site.clone();
    let first =
        tokio::spawn(async move { first.deliver(first.by_github(), issue("d1"), panics).await.0 });
    assert!(first.await.is_err_and(|error| error.is_panic()));
    // Its turn ends in the background.
    let mut status = StatusCode::SERVICE_UNAVAILABLE;
    while status == StatusCode::SERVICE_UNAVAILABLE {
        status = site.deliver(site.by_github(), issue("d1"), panics).await.0;
    }
    assert_eq!((status, site.calls()), (StatusCode::OK, 2));
}

#[tokio::test]
async fn an_error_of_the_handler_fails_the_turn() {
    let site = Site::start().await;
    let failing = |request: Request<Body>| async move {
        let turn = request.extensions().get::<Turn>().expect("a turn");
        if turn.attempt() == 1 { Err("no disk") } else { Ok(reply(200, "done")) }
    };
    let deliver = || call(site.by_github().layer(service_fn(failing)), issue("d1"));
    assert_eq!(deliver().await.expect_err("it fails"), "no disk");
    assert_eq!(deliver().await.expect("it is handled again").2, "done");
}

#[tokio::test]
async fn a_turn_that_is_lost_drops_the_handler() {
    let site = Arc::new(Site::start().await);
    let guard = Guard::new(site.gate.clone(), |_| Delivery::new("T1", "E1").session("S1"));
    let (entered, mut has_entered) = tokio::sync::mpsc::channel(1);
    let waits = move |_, _| {
        let entered = entered.clone();
        async move {
            let _ = entered.send(()).await;
            std::future::pending::<Reply>().await
        }
    };
    let first = site.clone();
    let first = tokio::spawn(async move { first.deliver(guard, issue("d1"), waits).await });
    has_entered.recv().await.expect("it is handled");
    site.server.lose(&Session::new("T1", "S1")).await;
    let (status, headers, _) = first.await.expect("an answer");
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(headers.contains_key("retry-after"));
}

#[tokio::test]
async fn a_request_without_a_key_is_not_guarded() {
    let site = Site::start().await;
    let guard = Guard::idempotency_key(site.gate.clone(), |_| "account".to_owned());
    let unguarded = |request: Request<Body>| async move {
        assert!(request.extensions().get::<Turn>().is_none());
        Ok::<_, Infallible>(reply(500, request.into_body().collect().await.expect("it").to_bytes()))
    };
    for body in ["5", "6"] {
        let request = Request::post("/pay").body(Full::new(Bytes::from(body))).expect("a request");
        let Ok((status, _, answered)) = call(guard.layer(service_fn(unguarded)), request).await;
        assert_eq!((status.as_u16(), answered.as_str()), (500, body));
    }
    site.server.kill().await; // nobody asks it
    let Ok((status, ..)) = call(guard.layer(service_fn(unguarded)), issue("d1")).await;
    assert_eq!(status.as_u16(), 500);
}

#[tokio::test]
async fn a_body_over_the_limit_is_not_handled() {
    let site = Site::start().await;
    let unwanted = |_, _| async { reply(200, "it ran") };
    let body = Bytes::from(vec![b' '; (32 << 20) + 1]);
    let request = Request::post("/github").header("X-GitHub-Delivery", "d1");
    let request = request.body(Full::new(body)).expect("a request");
    let (status, ..) = site.deliver(site.by_github(), request, unwanted).await;
    assert_eq!((status, site.calls()), (StatusCode::PAYLOAD_TOO_LARGE, 0));
}

#[tokio::test]
async fn a_rejected_event_is_not_handled_again() {
    let site = Site::start().await;
    let rejecting = |_, turn: Turn| async move {
        drop(turn.reject("it has no command"));
        reply(422, "no command")
    };
    let (status, _, body) = site.deliver(site.by_github(), issue("d1"), rejecting).await;
    assert_eq!((status.as_u16(), body.as_str()), (422, "no command"));
    let (status, _, body) = site.deliver(site.by_github(), issue("d1"), rejecting).await;
    assert_eq!((status.as_u16(), body.as_str(), site.calls()), (200, "", 1));
    let seen = site.gate.seen(&github(issue("d1").headers(), ISSUE.as_bytes())).await;
    let seen = seen.expect("an answer");
    assert_eq!(seen.outcome, Some(oncegate_client::EventOutcome::Rejected));
    assert_eq!(seen.detail, "it has no command");
}

#[tokio::test]
async fn a_layer_of_axum() {
    let site = Site::start().await;
    let calls = site.calls.clone();
    let handler = |axum::Extension(turn): axum::Extension<Turn>, body: String| async move {
        let call = calls.fetch_add(1, Ordering::SeqCst) + 1;
        assert_eq!((turn.attempt(), body.as_str()), (1, ISSUE));
        (StatusCode::CREATED, format!("call {call}"))
    };
    let router = axum::Router::new().route("/github", axum::routing::post(handler));
    let router = router.layer(site.by_github());
    for _ in 0..2 {
        let Ok((status, _, body)) = call(router.clone(), issue("d1")).await;
        assert_eq!((status, body.as_str()), (StatusCode::CREATED, "call 1"));
    }
}
