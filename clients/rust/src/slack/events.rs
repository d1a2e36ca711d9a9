//! The request URL of the Events API.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use serde_json::Value;
use tower_service::Service;

use super::{
    Answer, Delivered, Guard, Handler, LAST_RETRY, name_of,
    signature::{is_signed, number},
};
use crate::{
    Body,
    errors::BoxError,
    webhook::{
        answers::{again, read, respond},
        made,
    },
};

/// More than Slack sends.
const MAX_BODY: usize = 4 << 20;

/// The request URL of the Events API: a [`Service`] for axum, hyper and the like. [`Guard::events`] makes it.
#[derive(Clone)]
pub struct Events {
    pub(super) guard: Guard,
    pub(super) secret: Arc<str>,
    pub(super) handler: Handler,
}

impl Events {
    async fn answer<B>(self, request: Request<B>) -> Response<Bytes>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = request.into_parts();
        let body = match read(body, MAX_BODY).await {
            Ok(body) => body,
            Err(response) => return response,
        };
        if !is_signed(&parts.headers, &body, &self.secret) {
            return respond(StatusCode::UNAUTHORIZED, "the signature is not that of Slack");
        }
        let Ok(payload) = serde_json::from_slice::<Value>(&body) else {
            // Such as a form of an interaction: what is not handled must not be acknowledged.
            return respond(StatusCode::BAD_REQUEST, "this is no event of the Events API");
        };
        if payload["type"] == "url_verification" {
            let challenge = payload["challenge"].as_str().unwrap_or_default().to_owned();
            return respond(StatusCode::OK, challenge);
        }
        let delivery = crate::slack(&body);
        let retry = number(&parts.headers, "x-slack-retry-num").unwrap_or_default();
        let event = name_of(&payload);
        let delivered = match (self.handler)(payload) {
            Ok(run) => Delivered {
                can_refuse: !delivery.is_sent_once() && retry < LAST_RETRY,
                delivery,
                event,
                report: None, // events alone come here
                run,
            },
            Err(_) => return respond(StatusCode::BAD_REQUEST, "the payload cannot be decoded"),
        };
        match self.guard.run(delivered).await {
            Answer::Acknowledge => respond(StatusCode::OK, ""),
            Answer::Refuse(after) => again(after),
        }
    }
}

impl<B> Service<Request<B>> for Events
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let events = self.clone();
        Box::pin(async move { Ok(made(events.answer(request).await)) })
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("guard", &self.guard).finish_non_exhaustive()
    }
}
