//! What a caller may do.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::usage::{OverLimit, Usage, UsageGuard};
use crate::domain::TeamScope;

/// What a principal may call. Each role may do all that the roles before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Health.
    Probe,
    /// What only reads.
    Reader,
    /// Marks, leases and turns.
    Bot,
    /// The operator API, and `Cleanup`.
    Admin,
}

impl Role {
    /// Every role, from the least.
    pub const ALL: [Self; 4] = [Self::Probe, Self::Reader, Self::Bot, Self::Admin];

    /// The role's name in the file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Reader => "reader",
            Self::Bot => "bot",
            Self::Admin => "admin",
        }
    }
}

/// A rate of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Calls per second in the long run.
    pub per_second: u32,
    /// Calls at once after a pause.
    pub burst: u32,
}

impl Rate {
    /// The time from one call to the next.
    pub(super) fn interval(self) -> Duration {
        Duration::from_secs(1) / self.per_second.max(1)
    }
}

/// Upper limits of one principal; none where there is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PrincipalLimits {
    /// Calls per second.
    pub rate: Option<Rate>,
    /// Calls in flight.
    pub in_flight: Option<u32>,
    /// Callers that wait for a session.
    pub waiters: Option<u32>,
}

/// A caller of the file.
#[derive(Debug)]
pub struct Principal {
    /// Its name: a label in metrics, and in the audit log.
    pub name: Arc<str>,
    /// What it may call.
    pub role: Role,
    /// The teams that it may use.
    pub teams: TeamScope,
    /// Its limits.
    pub limits: PrincipalLimits,
    /// What it uses of them; kept over reloads of the file.
    pub usage: Arc<Usage>,
}

impl Principal {
    /// A call begins: it is in flight until the place is dropped.
    ///
    /// # Errors
    /// The limit that the call would exceed. A refused call counts against no limit.
    pub fn begin_call(&self, now: Instant) -> Result<UsageGuard, OverLimit> {
        let place = self.usage.in_flight(self.limits.in_flight).ok_or(OverLimit::InFlight)?;
        if let Some(rate) = self.limits.rate {
            self.usage.admit(rate, now).map_err(|retry_after| OverLimit::Rate { retry_after })?;
        }
        Ok(place)
    }

    /// A caller starts to wait, until the place is dropped.
    ///
    /// # Errors
    /// [`OverLimit::Waiters`].
    pub fn begin_wait(&self) -> Result<UsageGuard, OverLimit> {
        self.usage.waiting(self.limits.waiters).ok_or(OverLimit::Waiters)
    }
}
