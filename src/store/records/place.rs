//! A place in a queue as databases answer it: a JSON array of its columns.

use std::time::Duration;

use uuid::Uuid;

use crate::{
    domain::{Labels, LeaseId, PayloadDigest, RequestId, Timestamp},
    rules::Waiter,
};

/// The columns of a place, in their order; the last is whether its replica is there.
#[derive(serde::Deserialize)]
pub(in crate::store) struct PlaceRecord(
    i64,
    Uuid,
    Uuid,
    String,
    String,
    Option<String>,
    i64,
    Option<Uuid>,
    Option<i64>,
    bool,
);

impl PlaceRecord {
    pub(in crate::store) fn waiter(self) -> Waiter {
        let Self(ticket, lease, request, holder, labels, epic, ttl, digest, left_at, is_there) =
            self;
        Waiter {
            ticket: Some(ticket),
            lease: LeaseId::from_uuid(lease),
            request: RequestId::from_uuid(request),
            holder,
            labels: Labels::from_json(&labels),
            epic,
            ttl: Duration::from_micros(ttl.unsigned_abs()),
            digest: digest.map(PayloadDigest::from_uuid),
            left_at: left_at.map(Timestamp::from_micros),
            is_there,
        }
    }
}
