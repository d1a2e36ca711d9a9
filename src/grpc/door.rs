//! Authentication and the limits of principals: each call is authenticated before it takes a slot
//! of `--max-calls`, and refusals are counted and audited.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::SystemTime,
};

use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{access::Access, caller::Caller, status::Problem};
use crate::{
    auth::{Authenticated, Credentials, OverLimit, Policy, Principal, Unauthenticated},
    sockets::PeerIdentity,
    telemetry::{AUDIT, AuthMetrics, LogThrottle, call::CallTrace},
};

/// How many calls of one connection may be refused in a row for want of a valid credential
/// before the connection is closed.
const MAX_REFUSED: u32 = 100;
/// Who is refused whom no policy knows, in the audit log.
const ANONYMOUS: &str = "anonymous";

/// The time by which credentials end.
#[expect(clippy::disallowed_methods, reason = "tokens and certificates end by the wall clock")]
pub(super) fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// Decides by the policy in force who calls.
pub struct Door {
    policy: watch::Sender<Arc<Policy>>,
    /// Rises after the policy has changed.
    generation: AtomicU64,
    /// Whether bearer tokens are accepted over plaintext from other hosts.
    insecure: bool,
    metrics: AuthMetrics,
    /// One of each principal's refusals for each reason in ten seconds is logged. Both are of a
    /// bounded number: the names of the policy in force, and the labels.
    throttles: Mutex<HashMap<(Arc<str>, &'static str), LogThrottle>>,
}

/// Why a call is refused, or an item of it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Refusal<'a> {
    /// The caller is not known.
    Unauthenticated(Unauthenticated),
    /// A token came over plaintext from another host.
    Plaintext,
    /// The role does not allow the method.
    Role,
    /// The caller may not use this team; empty: all teams.
    Team(&'a str),
    /// The caller exceeds a limit of its own.
    Quota(OverLimit),
}

impl Refusal<'_> {
    /// The value of a label.
    const fn reason(self) -> &'static str {
        match self {
            Self::Unauthenticated(why) => why.reason(),
            Self::Plaintext => "plaintext_token",
            Self::Role => "role_denied",
            Self::Team(_) => "team_denied",
            Self::Quota(OverLimit::Rate { .. }) => "rate",
            Self::Quota(OverLimit::InFlight) => "in_flight",
            Self::Quota(OverLimit::Waiters) => "waiters",
        }
    }
}

impl Door {
    /// A door for `policy`. If it is `insecure`, bearer tokens are accepted over plaintext from
    /// other hosts.
    #[must_use]
    pub fn new(policy: Policy, insecure: bool, metrics: AuthMetrics) -> Self {
        Self {
            policy: watch::Sender::new(Arc::new(policy)),
            generation: AtomicU64::new(0),
            insecure,
            metrics,
            throttles: Mutex::default(),
        }
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.borrow())
    }

    /// Puts `policy` into force: for the next message of each connection, and for streams and
    /// waiting calls at once.
    pub fn replace(&self, policy: Policy) {
        let mut throttles = self.throttles();
        throttles.retain(|(name, _), _| policy.principals().any(|known| known.name == *name));
        drop(throttles);
        self.metrics.keep(|name| policy.principals().any(|known| &*known.name == name));
        self.policy.send_modify(|current| {
            *current = Arc::new(policy);
            self.generation.fetch_add(1, Ordering::Release);
        });
    }

    /// A number that changes with the policy.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Reports changes of the policy.
    pub(super) fn changes(&self) -> watch::Receiver<Arc<Policy>> {
        self.policy.subscribe()
    }

    /// Who presents these headers on the connection of `peer`.
    pub(super) fn authenticate<'a>(
        &self,
        authorization: impl Iterator<Item = &'a HeaderValue>,
        peer: &PeerIdentity,
        now: SystemTime,
    ) -> Result<Authenticated, Refusal<'static>> {
        let authorization: Vec<_> = authorization.map(HeaderValue::as_bytes).collect();
        let is_remote = peer.address.is_some_and(|at| !at.ip().to_canonical().is_loopback());
        if !authorization.is_empty() && is_remote && !peer.encrypted && !self.insecure {
            return Err(Refusal::Plaintext);
        }
        // Connections outlive certificates.
        let is_valid = peer.certificate_ends.is_none_or(|end| now < end);
        let credentials = Credentials {
            certificate: peer.certificate.as_ref().filter(|_| is_valid),
            authorization: &authorization,
            uid: peer.uid,
        };
        let mut known =
            self.policy().authenticate(&credentials, now).map_err(Refusal::Unauthenticated)?;
        if is_valid {
            known.expires = known.expires.into_iter().chain(peer.certificate_ends).min();
        }
        Ok(known)
    }

    /// The caller that presents these headers on the connection of `peer`.
    pub(super) fn admit(
        self: &Arc<Self>,
        authorization: Vec<HeaderValue>,
        peer: &PeerIdentity,
    ) -> Result<Caller, Refusal<'static>> {
        // Before the policy: a newer policy is only looked at once more.
        let generation = self.generation();
        let Authenticated { principal, expires } =
            self.authenticate(authorization.iter(), peer, wall_clock())?;
        let calls = self.metrics.calls(&principal.name);
        let door = (Arc::clone(self), generation);
        Ok(Caller::known(peer.clone(), authorization, (principal, calls), expires, door))
    }

    /// Counts a refusal, and writes it to the audit log unless the principal had one for the same
    /// reason there just before.
    pub(super) fn refuse(
        &self,
        refusal: Refusal<'_>,
        principal: Option<&Principal>,
        peer: &PeerIdentity,
        call: Option<&CallTrace>,
    ) {
        let reason = refusal.reason();
        self.metrics.refused(reason);
        let name = principal.map_or_else(|| Arc::from(ANONYMOUS), |known| Arc::clone(&known.name));
        if !self.throttles().entry((Arc::clone(&name), reason)).or_default().now() {
            return;
        }
        let team = match refusal {
            Refusal::Team("") => Some("*"),
            Refusal::Team(team) => Some(team),
            _ => None,
        };
        let method = call.map(|call| call.method().to_string());
        let (principal, peer) = (&*name, Peer(peer).to_string());
        crate::telemetry::call::log(call, || {
            tracing::warn!(target: AUDIT, principal, peer, method, team, reason, "call refused");
        });
    }

    fn throttles(
        &self,
    ) -> std::sync::MutexGuard<'_, HashMap<(Arc<str>, &'static str), LogThrottle>> {
        self.throttles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a caller is, for the audit log.
struct Peer<'a>(&'a PeerIdentity);

impl fmt::Display for Peer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.address, self.0.uid) {
            (Some(address), _) => address.ip().to_canonical().fmt(f),
            (None, Some(uid)) => write!(f, "uid {uid}"),
            (None, None) => f.write_str("unknown"),
        }
    }
}

/// Whether a caller was let in on a connection, or shut out since its place was given to another.
#[derive(Default)]
pub struct Known(OnceLock<bool>);

impl Known {
    /// Whether one was let in.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.get() == Some(&true)
    }

    /// Lets a caller in. Answers whether that is still possible.
    fn let_in(&self) -> bool {
        *self.0.get_or_init(|| true)
    }

    /// Shuts callers out, unless one was let in before. Answers whether that is so.
    pub(crate) fn shut_out(&self) -> bool {
        !*self.0.get_or_init(|| false)
    }
}

/// The callers of one connection.
#[derive(Default)]
pub(super) struct Callers {
    known: Arc<Known>,
    /// Of the latest call.
    latest: Mutex<Option<Arc<Caller>>>,
    /// How many calls in a row had no valid credential.
    refused: AtomicU32,
}

impl Callers {
    /// Those of a connection that notes in `known` that one was let in.
    pub(super) fn noting(known: Arc<Known>) -> Self {
        Self { known, ..Self::default() }
    }

    /// Whether one was let in.
    pub(super) fn are_known(&self) -> bool {
        self.known.is_set()
    }

    /// Who makes a call with these `headers`; none if the call's `access` does not need to know.
    pub(super) fn admit(
        &self,
        door: Option<&Arc<Door>>,
        (access, headers): (Access, &HeaderMap),
        (peer, call): (&PeerIdentity, &CallTrace),
        end: &CancellationToken,
    ) -> Result<Option<Arc<Caller>>, Problem> {
        if access == Access::Anonymous {
            return Ok(None);
        }
        let caller = self.caller(door, headers, peer).map_err(|refusal| {
            if let Some(door) = door {
                door.refuse(refusal, None, peer, Some(call));
            }
            if self.refused.fetch_add(1, Ordering::Relaxed) + 1 >= MAX_REFUSED {
                end.cancel();
            }
            Problem::Unauthenticated
        })?;
        self.refused.store(0, Ordering::Relaxed);
        if !self.known.let_in() {
            return Err(Problem::Connections);
        }
        Ok(Some(caller))
    }

    fn caller(
        &self,
        door: Option<&Arc<Door>>,
        headers: &HeaderMap,
        peer: &PeerIdentity,
    ) -> Result<Arc<Caller>, Refusal<'static>> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let authorization = || headers.get_all(AUTHORIZATION).into_iter();
        if let Some(caller) = latest.as_ref().filter(|caller| caller.is_same(authorization())) {
            return Ok(Arc::clone(caller));
        }
        let caller = match door {
            None => Caller::unknown(peer.clone()),
            Some(door) => door.admit(authorization().cloned().collect(), peer)?,
        };
        let caller = Arc::new(caller);
        *latest = Some(Arc::clone(&caller));
        Ok(caller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_over_plaintext_from_another_host_is_not_even_looked_up() {
        let token = format!("Bearer {}", crate::auth::token::generate().unwrap());
        let token = HeaderValue::from_str(&token).unwrap();
        let refused = |address: Option<&str>, encrypted, insecure, headers: &[&HeaderValue]| {
            let door = Door::new(Policy::default(), insecure, AuthMetrics::default());
            let address = address.map(|address| format!("{address}:7411").parse().unwrap());
            let peer = PeerIdentity { address, encrypted, ..PeerIdentity::default() };
            let refused = door.authenticate(headers.iter().copied(), &peer, wall_clock());
            refused.expect_err("no policy knows it").reason()
        };
        for (address, is_remote) in [
            (Some("203.0.113.5"), true),
            (Some("[2001:db8::5]"), true),
            (Some("[::ffff:203.0.113.5]"), true),
            (Some("127.0.0.1"), false),
            (Some("127.8.8.8"), false),
            (Some("[::1]"), false),
            (Some("[::ffff:127.0.0.1]"), false),
            (None, false),
        ] {
            let reason = if is_remote { "plaintext_token" } else { "unknown" };
            assert_eq!(refused(address, false, false, &[&token]), reason, "{address:?}");
            assert_eq!(refused(address, true, false, &[&token]), "unknown", "{address:?}");
            assert_eq!(refused(address, false, true, &[&token]), "unknown", "{address:?}");
            assert_eq!(refused(address, false, false, &[]), "missing", "{address:?}");
        }
    }
}
