//! What `oncegate doctor` finds out about a store.

use std::time::Duration;

use humantime::format_duration;
use tokio::time::timeout;

use super::{Durability, Fence, StoreError, schema::SchemaState};

/// How a server would use the store.
#[derive(Debug, Clone, Copy)]
pub struct Planned {
    /// Whether it migrates the schema at startup.
    pub migrate: bool,
    /// Its writers for each kind of writing.
    pub writers: usize,
    /// How many servers there are.
    pub replicas: usize,
}

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Ok,
    /// A server works, but less well, or it may not for long.
    Warning,
    /// A server does not start, or breaks a guarantee.
    Failed,
}

impl Severity {
    /// Its name in the output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// One check, and its result.
#[derive(Debug, Clone)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// What it came to.
    pub finding: Finding,
}

/// The result of a check.
#[derive(Debug, Clone)]
pub struct Finding {
    /// What it came to.
    pub severity: Severity,
    /// What was found.
    pub found: String,
    /// What to do, unless all is well or the finding says it.
    pub advice: Option<String>,
}

impl Finding {
    pub(super) fn ok(found: impl Into<String>) -> Self {
        Self { severity: Severity::Ok, found: found.into(), advice: None }
    }

    pub(super) fn warning(found: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::ok(found) }
    }

    pub(super) fn failed(found: impl Into<String>) -> Self {
        Self { severity: Severity::Failed, ..Self::ok(found) }
    }

    pub(super) fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }
}

/// The store does not answer: further checks would only take their time.
pub(super) struct Unanswered;

/// What was found so far.
pub(super) struct Findings {
    pub(super) checks: Vec<Check>,
    /// The limit of one check.
    limit: Duration,
}

impl Findings {
    pub(super) fn new(limit: Duration) -> Self {
        Self { checks: Vec::new(), limit }
    }

    /// Adds the result of a check; its error fails it.
    pub(super) async fn add(
        &mut self,
        name: &'static str,
        work: impl Future<Output = Result<Finding, StoreError>>,
    ) -> Result<(), Unanswered> {
        let (finding, ended) = match timeout(self.limit, Box::pin(work)).await {
            Ok(Ok(finding)) => (finding, Ok(())),
            Ok(Err(error)) => {
                let is_lost = matches!(error, StoreError::Unavailable(_));
                let ended = if is_lost { Err(Unanswered) } else { Ok(()) };
                (Finding::failed(error.to_string()), ended)
            }
            Err(_) => {
                let found = format!("no answer within {:?}", self.limit);
                (Finding::failed(found), Err(Unanswered))
            }
        };
        self.checks.push(Check { name, finding });
        ended
    }
}

/// What is found of the fence.
pub(super) fn fence(fence: Fence) -> Finding {
    let ahead = fence.ahead();
    if ahead.is_zero() {
        return Finding::ok("no fencing token is ahead of the clock");
    }
    let ahead = format_duration(Duration::from_secs(ahead.as_secs().max(1)));
    Finding::warning(format!("fencing tokens are {ahead} ahead of the clock")).advise(
        "until the clock has passed them, a failover or restore that loses leases needs \
         `oncegate fence raise`, whatever the clock shows",
    )
}

/// What is found of a schema.
pub(super) fn schema(state: Result<SchemaState, StoreError>, planned: Planned) -> Finding {
    let SchemaState { applied, known, pending } = match state {
        Ok(state) => state,
        Err(error) => return Finding::failed(error.to_string()),
    };
    if !pending.is_empty() {
        let found = match applied {
            None => format!("no tables of oncegate; this binary has migrations up to {known}"),
            Some(_) => format!("behind: migrations {pending:?} are missing"),
        };
        return if planned.migrate {
            Finding::warning(found)
                .advise("`oncegate serve` migrates when it starts, or run `oncegate migrate`")
        } else {
            Finding::failed(found).advise("run `oncegate migrate`")
        };
    }
    match applied {
        Some(applied) if applied > known => Finding::warning(format!(
            "ahead: migration {applied} of a newer oncegate, with which this binary \
                 (migration {known}) can work"
        ))
        .advise("use this binary only during an upgrade or after a rollback"),
        _ => Finding::ok(format!("migration {known}, up to date")),
    }
}

/// What is found of a store in memory.
#[must_use]
pub fn memory() -> Vec<Check> {
    let loss = Durability::Memory.loss().unwrap_or_default();
    let finding = Finding::warning(loss).advise("use memory: for unit tests only");
    vec![Check { name: "durability", finding }]
}
