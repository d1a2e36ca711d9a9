//! The opaque name of a turn.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use prost::Message as _;
use uuid::Uuid;

use crate::domain::{
    EventKey, Fault, Invalid, LeaseId, RequestId, SessionKey, TeamScope, TurnId, is_stored_id,
};

/// What a turn id holds, so that any replica can finish any turn without looking it
/// up. The lease id in it is known to the holder only.
#[derive(Clone, PartialEq, prost::Message)]
struct Token {
    #[prost(string, tag = "1")]
    team: String,
    #[prost(string, tag = "2")]
    event: String,
    #[prost(bytes = "vec", tag = "3")]
    request: Vec<u8>,
    #[prost(string, tag = "4")]
    session: String,
    #[prost(bytes = "vec", tag = "5")]
    lease: Vec<u8>,
    #[prost(uint32, tag = "6")]
    max_attempts: u32,
    #[prost(uint32, tag = "7")]
    attempt: u32,
}

pub(in crate::grpc) fn write_id(id: &TurnId) -> String {
    let lease = id.lease.as_ref();
    let token = Token {
        team: id.event.team.to_string(),
        event: id.event.event.clone(),
        request: id.request.as_uuid().as_bytes().to_vec(),
        session: lease.map(|(key, _)| key.session.clone()).unwrap_or_default(),
        lease: lease.map(|(_, lease)| lease.as_uuid().as_bytes().to_vec()).unwrap_or_default(),
        max_attempts: id.max_attempts,
        attempt: id.attempt,
    };
    URL_SAFE_NO_PAD.encode(token.encode_to_vec())
}

/// Reads a turn id. Nothing signs it: a forged one can name turns of the caller's own teams only,
/// and ends a lease only if it has the lease's id, which its holder alone knows.
pub(in crate::grpc) fn parse_id(teams: &TeamScope, id: &str) -> Result<TurnId, Invalid> {
    let unreadable = || Invalid::new("turn_id", "must be a turn_id that BeginTurn returned");
    let token = decode(id).ok_or_else(unreadable)?;
    let team = teams.team("turn_id", token.team).map_err(|invalid| match invalid.fault {
        Fault::TeamDenied(_) => invalid,
        Fault::Field | Fault::NoKey => unreadable(),
    })?;
    let Token { event, session, max_attempts, attempt, .. } = token;
    let read = || {
        let request = RequestId::from_uuid(Uuid::from_slice(&token.request).ok()?);
        let event = Some(event).filter(|event| is_stored_id(event))?;
        let lease = if session.is_empty() {
            None
        } else {
            let session = Some(session).filter(|session| is_stored_id(session))?;
            let lease = LeaseId::from_uuid(Uuid::from_slice(&token.lease).ok()?);
            Some((SessionKey { team: team.clone(), session }, lease))
        };
        Some(TurnId { event: EventKey { team, event }, request, attempt, lease, max_attempts })
    };
    read().ok_or_else(unreadable)
}

fn decode(id: &str) -> Option<Token> {
    Token::decode(&*URL_SAFE_NO_PAD.decode(id).ok()?).ok()
}
