//! Who makes a call, and what it may do. The task that works on a call knows its caller.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures_util::FutureExt as _;
use http::HeaderValue;
use prometheus_client::metrics::counter::Counter;
use tokio::task_local;

use super::{
    access::Access,
    door::{Door, Refusal, wall_clock},
    status::Problem,
};
use crate::{
    auth::{Principal, Role, UsageGuard},
    domain::{Fault, Invalid, Team, TeamScope},
    session::StreamCaller,
    sockets::PeerIdentity,
    telemetry::call::CallTrace,
};

/// The least role of the calls that wait for a session or keep it.
const LASTING: Role = Role::Bot;
/// How often the end of a credential is looked for at least: the system's clock may step.
const MAX_SLEEP: Duration = Duration::from_secs(10);

task_local! {
    static CALLER: (Option<Arc<Caller>>, Access);
}

/// The caller of a call.
pub(super) struct Caller {
    peer: PeerIdentity,
    /// None where the server has no `--auth`: then a caller may do everything.
    known: Option<Known>,
}

/// A caller that was authenticated.
struct Known {
    principal: Arc<Principal>,
    /// Counts its calls.
    calls: Counter,
    /// The values of `authorization` that it was authenticated by.
    authorization: Vec<HeaderValue>,
    expires: Option<SystemTime>,
    door: Arc<Door>,
    /// That of the policy that knows it.
    generation: u64,
    /// Its place among the calls in flight, if the call was begun by another principal.
    place: Option<UsageGuard>,
}

impl Caller {
    /// A caller of a server without `--auth`.
    pub(super) fn unknown(peer: PeerIdentity) -> Self {
        Self { peer, known: None }
    }

    /// A caller that the policy of `generation` knows as `principal` until `expires`.
    pub(super) fn known(
        peer: PeerIdentity,
        authorization: Vec<HeaderValue>,
        (principal, calls): (Arc<Principal>, Counter),
        expires: Option<SystemTime>,
        (door, generation): (Arc<Door>, u64),
    ) -> Self {
        let known =
            Known { principal, calls, authorization, expires, door, generation, place: None };
        Self { peer, known: Some(known) }
    }

    /// Runs `work` as a call of `caller` that needs `access`.
    pub(super) fn scope<F: Future>(
        caller: Option<Arc<Self>>,
        access: Access,
        work: F,
    ) -> impl Future<Output = F::Output> {
        CALLER.scope((caller, access), work)
    }

    /// The caller of the call that this task works on. Its message may come long after its headers:
    /// if the policy has changed meanwhile, or the credential has expired, it is authenticated
    /// again. If the credential is of another principal now, the call counts as one of that.
    ///
    /// # Errors
    /// If there is none: nobody has checked who calls; or if it may not call any more.
    pub(super) fn current() -> Result<Arc<Self>, Problem> {
        let Ok((Some(caller), access)) = CALLER.try_with(Clone::clone) else {
            return Err(Problem::Unauthenticated);
        };
        let Some(known) = caller.known.as_ref().filter(|known| !known.is_current()) else {
            return Ok(caller);
        };
        let call = CallTrace::current();
        let again = known.door.admit(known.authorization.clone(), &caller.peer);
        let mut again = again.map_err(|refusal| {
            caller.refuse(refusal, call.as_ref());
            Problem::Unauthenticated
        })?;
        if again.has_usage_of(&caller) {
            again.check_role(access, call.as_ref())?;
        } else {
            let place = again.begin_call(access, call.as_ref())?;
            if let Some(known) = &mut again.known {
                known.place = place;
            }
        }
        Ok(Arc::new(again))
    }

    /// The principal's name; none where the server has no `--auth`.
    pub(super) fn principal(&self) -> Option<Arc<str>> {
        self.known.as_ref().map(|known| Arc::clone(&known.principal.name))
    }

    /// Reads a request by the teams that its caller may use. There is no other way to a
    /// [`TeamScope`], so that each team that is denied is noted.
    pub(super) fn read<T>(
        &self,
        read: impl FnOnce(&TeamScope) -> Result<T, Invalid>,
    ) -> Result<T, Problem> {
        let teams = self.known.as_ref().map_or(&TeamScope::All, |known| &known.principal.teams);
        read(teams).map_err(|invalid| {
            if let Fault::TeamDenied(team) = &invalid.fault {
                self.refuse(Refusal::Team(team), CallTrace::current().as_ref());
            }
            invalid.into()
        })
    }

    /// Whether the caller may use a team. [`Caller::read`] is what denies one.
    pub(super) fn may_use(&self, team: &str) -> bool {
        self.known.as_ref().is_none_or(|known| known.principal.teams.contains(team))
    }

    /// Whether a call on the same connection, with these headers, is certainly this caller's.
    pub(super) fn is_same<'a>(
        &self,
        mut authorization: impl Iterator<Item = &'a HeaderValue>,
    ) -> bool {
        let Some(known) = &self.known else { return true };
        known.is_current()
            && known.authorization.iter().all(|had| authorization.next() == Some(had))
            && authorization.next().is_none()
    }

    /// Counts a refusal of `call`, or of an item in it.
    pub(super) fn refuse(&self, refusal: Refusal<'_>, call: Option<&CallTrace>) {
        if let Some(known) = &self.known {
            known.door.refuse(refusal, Some(&known.principal), &self.peer, call);
        }
    }

    /// Counts a call in that needs `access`. The role is checked last, so that calls that it does
    /// not allow count against the rate as well.
    pub(super) fn begin_call(
        &self,
        access: Access,
        call: Option<&CallTrace>,
    ) -> Result<Option<UsageGuard>, Problem> {
        let Some(known) = &self.known else { return Ok(None) };
        known.calls.inc();
        let place = known.principal.begin_call(Instant::now()).map_err(|over| {
            self.refuse(Refusal::Quota(over), call);
            Problem::Quota(over)
        })?;
        self.check_role(access, call)?;
        Ok(Some(place))
    }

    fn check_role(&self, access: Access, call: Option<&CallTrace>) -> Result<(), Problem> {
        let role = self.known.as_ref().map_or(Role::Admin, |known| known.principal.role);
        if access.allows(role) {
            return Ok(());
        }
        self.refuse(Refusal::Role, call);
        Err(Problem::Role)
    }

    /// Whether the calls of both count together.
    fn has_usage_of(&self, other: &Self) -> bool {
        match (&self.known, &other.known) {
            (Some(known), Some(other)) => {
                Arc::ptr_eq(&known.principal.usage, &other.principal.usage)
            }
            _ => false,
        }
    }

    /// Counts a call in that waits for a session, if it does.
    pub(super) fn begin_wait(&self, wait: Duration) -> Result<Option<UsageGuard>, Problem> {
        let Some(known) = self.known.as_ref().filter(|_| !wait.is_zero()) else { return Ok(None) };
        known.principal.begin_wait().map(Some).map_err(|over| {
            self.refuse(Refusal::Quota(over), CallTrace::current().as_ref());
            Problem::Quota(over)
        })
    }

    /// Does `work`, which may `wait` for a session of `team`, for as long as the caller may use
    /// that.
    pub(super) fn while_allowed<T, E: Into<Problem>>(
        &self,
        team: &Team,
        wait: Duration,
        work: impl Future<Output = Result<T, E>>,
    ) -> impl Future<Output = Result<T, Problem>> {
        let Some(known) = self.known.as_ref().filter(|_| !wait.is_zero()) else {
            return work.map(|done| done.map_err(Into::into)).left_future();
        };
        let place = self.begin_wait(wait);
        let denied = known.denied(self.peer.clone(), team.clone()).boxed();
        let waiting = async move {
            let _place = place?;
            tokio::select! {
                // First: the lease that it waits for may come free by the same revocation.
                biased;
                () = denied => Err(Problem::Unauthenticated),
                done = work => done.map_err(Into::into),
            }
        };
        waiting.right_future()
    }

    /// The caller of a stream for `team`, for as long as it may use that.
    pub(super) fn of_stream(&self, team: &Team, stream: StreamCaller) -> StreamCaller {
        let Some(known) = &self.known else { return stream };
        stream.until(known.denied(self.peer.clone(), team.clone()))
    }
}

impl Known {
    /// Whether the policy in force still says the same of it.
    fn is_current(&self) -> bool {
        self.generation == self.door.generation()
            && self.expires.is_none_or(|expires| wall_clock() < expires)
    }

    /// Waits until the caller may no longer use sessions of `team`: the policy does not know it
    /// any more, or gives it a lower role or other teams, or its credential has expired.
    fn denied(&self, peer: PeerIdentity, team: Team) -> impl Future<Output = ()> + use<> {
        let (door, expires) = (Arc::clone(&self.door), self.expires);
        let authorization = self.authorization.clone();
        let (mut generation, mut principal) = (self.generation, Some(Arc::clone(&self.principal)));
        async move {
            let mut changes = door.changes();
            loop {
                let now = wall_clock();
                let is_valid = expires.is_none_or(|expires| now < expires);
                if door.generation() != generation {
                    generation = door.generation();
                    let known = door.authenticate(authorization.iter(), &peer, now);
                    principal = known.ok().map(|known| known.principal);
                }
                let may = principal.as_ref().is_some_and(|principal| {
                    principal.role >= LASTING && principal.teams.contains(&team)
                });
                if !is_valid || !may {
                    return;
                }
                let left = expires.and_then(|expires| expires.duration_since(now).ok());
                let pause = left.map_or(Duration::MAX, |left| left.min(MAX_SLEEP));
                // Without an end it waits for a change alone.
                let _ = tokio::time::timeout(pause, changes.changed()).await;
            }
        }
    }
}
