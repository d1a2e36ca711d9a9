//! What is wrong with an input, and where.

use std::borrow::Cow;

/// An input that breaks a rule of the contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// The path of the field at fault, such as `event.slack.ts`.
    pub field: Cow<'static, str>,
    /// What the field must be instead, for a person to read.
    pub problem: Cow<'static, str>,
    /// What kind of fault it is.
    pub fault: Fault,
}

/// A kind of fault in an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The field breaks a rule.
    Field,
    /// Nothing is wrong with the delivery, but it names no event, or no session.
    NoKey,
    /// The field names this team, and its caller may not use it; empty: all teams.
    TeamDenied(String),
}

impl Invalid {
    /// The field `field` breaks the rule that `problem` states.
    pub fn new(field: impl Into<Cow<'static, str>>, problem: impl Into<Cow<'static, str>>) -> Self {
        Self { field: field.into(), problem: problem.into(), fault: Fault::Field }
    }

    /// The delivery in the field `field` names no event, or no session.
    pub fn no_key(
        field: impl Into<Cow<'static, str>>,
        problem: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { fault: Fault::NoKey, ..Self::new(field, problem) }
    }

    /// The caller may not use `team`, which the field `field` names.
    pub(super) fn denied(field: &'static str, problem: &'static str, team: String) -> Self {
        Self { fault: Fault::TeamDenied(team), ..Self::new(field, problem) }
    }

    /// The same fault, seen from the message that holds the field's message as
    /// `parent`.
    #[must_use]
    pub fn within(mut self, parent: &str) -> Self {
        self.field = format!("{parent}.{}", self.field).into();
        self
    }
}
