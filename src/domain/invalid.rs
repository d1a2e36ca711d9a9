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
    /// Whether nothing is wrong with the delivery, but it names no event, or no session.
    pub is_no_key: bool,
}

impl Invalid {
    /// The field `field` breaks the rule that `problem` states.
    pub fn new(field: impl Into<Cow<'static, str>>, problem: impl Into<Cow<'static, str>>) -> Self {
        Self { field: field.into(), problem: problem.into(), is_no_key: false }
    }

    /// The delivery in the field `field` names no event, or no session.
    pub fn no_key(
        field: impl Into<Cow<'static, str>>,
        problem: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { is_no_key: true, ..Self::new(field, problem) }
    }

    /// The same fault, seen from the message that holds the field's message as
    /// `parent`.
    #[must_use]
    pub fn within(mut self, parent: &str) -> Self {
        self.field = format!("{parent}.{}", self.field).into();
        self
    }
}
