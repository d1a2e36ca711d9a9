//! What requests are answered, and what of it is stored for duplicates.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::{Value, json};

use crate::{Duplicate, Error, NotGranted, Stored, errors::BoxError};

/// Of a turn, in bytes.
const LONGEST_RESULT: usize = 64 * 1024;

/// What belongs to a response, and not to the exchange that it was made in.
const RECORDED: [header::HeaderName; 6] = [
    header::CONTENT_LANGUAGE,
    header::CONTENT_LOCATION,
    header::CONTENT_TYPE,
    header::ETAG,
    header::LAST_MODIFIED,
    header::LOCATION,
];

/// The body of a request of at most so many bytes; or what is answered instead.
pub(crate) async fn read<B>(body: B, limit: usize) -> Result<Bytes, Response<Bytes>>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(respond(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large"))
        }
        Err(_) => Err(respond(StatusCode::BAD_REQUEST, "the body cannot be read")),
    }
}

/// A response as the turn stores it, for duplicates: the same JSON in every language.
pub(super) fn record_of(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Value {
    let recorded = RECORDED.iter().filter_map(|name| {
        let value = headers.get(name)?.to_str().ok()?;
        Some((name.as_str().to_owned(), value.to_owned()))
    });
    let headers: BTreeMap<_, _> = recorded.collect();
    let record =
        json!({"status": status.as_u16(), "headers": headers, "body": BASE64.encode(body)});
    if record.to_string().len() > LONGEST_RESULT {
        // A duplicate of a long response gets the status alone.
        return json!({"status": status.as_u16(), "headers": {}, "body": ""});
    }
    record
}

/// What a duplicate gets: 200 if it was handled otherwise, such as by a mark.
fn replayed(result: &Stored) -> Response<Bytes> {
    let replay = || {
        let record: Value = result.decode().ok()??;
        let status = u16::try_from(record["status"].as_u64()?).ok()?;
        let status = StatusCode::from_u16(status).ok().filter(|status| status.as_u16() >= 200)?;
        let body = BASE64.decode(record["body"].as_str()?).ok()?;
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = status;
        for (name, value) in record["headers"].as_object().into_iter().flatten() {
            let name = header::HeaderName::try_from(name.as_str()).ok()?;
            let value = HeaderValue::from_str(value.as_str()?).ok()?;
            response.headers_mut().insert(name, value);
        }
        Some(response)
    };
    replay().unwrap_or_else(|| respond(StatusCode::OK, ""))
}

pub(crate) fn respond(status: StatusCode, text: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

pub(crate) fn again(after: Duration) -> Response<Bytes> {
    let mut response = respond(StatusCode::SERVICE_UNAVAILABLE, "retry later");
    let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
    response.headers_mut().insert(header::RETRY_AFTER, seconds.max(1).into());
    response
}

/// What a request is answered without its handler, or in place of what that has answered.
pub(super) fn instead(error: &Error) -> Response<Bytes> {
    if let Some(why) = error.not_granted() {
        match why {
            NotGranted::Duplicate(Duplicate { result, .. }) => return replayed(result),
            NotGranted::GaveUp(_) | NotGranted::Dropped => return respond(StatusCode::OK, ""),
            NotGranted::InProgress(_) | NotGranted::Busy(_) => {}
        }
    }
    if let Some(after) = error.retry_after() {
        return again(after);
    }
    match error {
        Error::PayloadMismatch { .. } => {
            respond(StatusCode::UNPROCESSABLE_ENTITY, "the key was used with another payload")
        }
        Error::EpicMismatch { .. } => {
            respond(StatusCode::CONFLICT, "the conversation belongs to other work")
        }
        Error::Invalid { .. } => {
            tracing::warn!(%error, "a webhook's delivery is invalid");
            respond(StatusCode::BAD_REQUEST, "the delivery is invalid")
        }
        // The redelivery finds out whether the event is handled.
        Error::TurnLost { .. } | Error::OutcomeUnknown { .. } | Error::Closed => {
            again(Duration::ZERO)
        }
        _ => {
            tracing::error!(%error, "a webhook's turn failed");
            respond(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
        }
    }
}
