//! Operations as a store takes them.

use std::time::Duration;

use oncegate::domain::{
    Acquire, Begin, Delivered, Enqueue, EventKey, Labels, LeaseId, OwnLease, Release, RequestId,
    SessionKey, Team, Ttl,
    limits::{CLAIM_TTL, LEASE_TTL},
};
use uuid::Uuid;

pub fn key(session: &str) -> SessionKey {
    SessionKey { team: Team::stored("T1"), session: session.into() }
}

pub fn request(number: u128) -> RequestId {
    RequestId::from_uuid(Uuid::from_u128(number))
}

/// Each time another operation.
pub fn acquire(session: &str, number: u128) -> Acquire {
    Acquire {
        key: key(session),
        holder: "bot".into(),
        request: request(number),
        lease: OwnLease::random(),
        ttl: Ttl::parse(None, *LEASE_TTL.end(), &LEASE_TTL).unwrap(),
        epic: None,
        labels: Labels::default(),
        stream: None,
        resumes: None,
        digest: None,
    }
}

pub fn enqueue(session: &str, number: u128) -> Enqueue {
    Enqueue { acquire: acquire(session, number), takes_over: None }
}

pub fn release(session: &str, lease: LeaseId) -> Release {
    Release::new(key(session), lease, None)
}

pub fn begin(event: &str, aliases: &[&str]) -> Begin {
    let event = EventKey { team: Team::stored("T1"), event: event.into() };
    let aliases = aliases.iter().map(|&alias| alias.to_owned()).collect();
    Begin {
        event: Delivered::new(event, aliases, None, None),
        request: request(9),
        holder: "bot".into(),
        claim_ttl: Ttl::parse(None, *CLAIM_TTL.end(), &CLAIM_TTL).unwrap(),
        max_attempts: 3,
        session: Some(acquire("turn", 9)),
        stream: None,
        resumes: None,
        grace: Duration::ZERO,
    }
}
