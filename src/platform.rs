//! Payloads as the platforms send them, read as far as they name an event and a conversation.
//!
//! Each platform's rules are in a file of its own, with the platform's documentation beside
//! each. Architecture Invariant: nothing here does I/O, and nothing of a payload is kept or
//! logged but its names; a problem names the place in the payload, never what stands there.

mod body;
mod discord;
mod github;
mod json;
pub mod slack;
mod standard_webhooks;
mod stripe;
mod teams;
mod telegram;

use crate::domain::{
    Conversations, Id, Invalid,
    limits::{MAX_HEADERS, MAX_PAYLOAD_BYTES},
};

/// Who sent a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// <https://docs.slack.dev>
    Slack,
    /// <https://docs.github.com/en/webhooks>
    Github,
    /// <https://discord.com/developers/docs>
    Discord,
    /// <https://core.telegram.org/bots/api>
    Telegram,
    /// <https://learn.microsoft.com/en-us/microsoftteams/platform/bots>
    Teams,
    /// <https://docs.stripe.com/webhooks>
    Stripe,
    /// <https://www.standardwebhooks.com>
    StandardWebhooks,
}

impl Platform {
    /// All that are read.
    pub const ALL: [Self; 7] = [
        Self::Slack,
        Self::Github,
        Self::Discord,
        Self::Telegram,
        Self::Teams,
        Self::Stripe,
        Self::StandardWebhooks,
    ];

    /// Its name in the features of a server.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Slack => "slack",
            Self::Github => "github",
            Self::Discord => "discord",
            Self::Telegram => "telegram",
            Self::Teams => "teams",
            Self::Stripe => "stripe",
            Self::StandardWebhooks => "standard-webhooks",
        }
    }

    /// The header that names the event, where the body does not.
    #[must_use]
    pub const fn id_header(self) -> Option<&'static str> {
        match self {
            Self::Github => Some(github::ID),
            Self::StandardWebhooks => Some(standard_webhooks::ID),
            Self::Slack | Self::Discord | Self::Telegram | Self::Teams | Self::Stripe => None,
        }
    }
}

/// The headers of a delivery. Their names are compared without regard to case.
#[derive(Debug, Clone, Default)]
pub struct Headers<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Headers<'a> {
    /// The headers of a delivery.
    ///
    /// # Errors
    /// [`Unreadable`] when there are too many, or two have the same name.
    pub fn new(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, Unreadable> {
        let headers: Vec<_> = headers.into_iter().collect();
        if headers.len() > MAX_HEADERS {
            let problem = format!("must be at most {MAX_HEADERS}, are {}", headers.len());
            return Err(Unreadable::in_headers(problem));
        }
        for (index, (name, _)) in headers.iter().enumerate() {
            if headers[..index].iter().any(|(other, _)| other.eq_ignore_ascii_case(name)) {
                return Err(Unreadable::in_headers(
                    "must not have two names that differ only by case",
                ));
            }
        }
        Ok(Self(headers))
    }

    fn id(&self, name: &str) -> Result<Option<Id>, Unreadable> {
        let value = self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        let Some((_, value)) = value else { return Ok(None) };
        Id::optional("", value.trim().to_owned())
            .map_err(|invalid| Unreadable::in_headers(format!("{name}: {}", invalid.problem)))
    }
}

/// What one payload names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Named {
    /// The tenant.
    pub team: Option<Id>,
    /// The names of the event, its own first, at most eight further ones. Empty if the
    /// payload names no event.
    pub names: Vec<Id>,
    /// The conversations that the payload belongs to.
    pub conversations: Conversations,
}

/// A payload that cannot be read, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Unreadable {
    /// The part of the delivery.
    part: &'static str,
    problem: String,
}

impl Unreadable {
    fn new(problem: impl Into<String>) -> Self {
        Self { part: "body", problem: problem.into() }
    }

    fn in_headers(problem: impl Into<String>) -> Self {
        Self { part: "headers", problem: problem.into() }
    }

    /// The same, as a fault of the part of the contract's `delivery`.
    #[must_use]
    pub fn in_delivery(self) -> Invalid {
        Invalid::new(format!("delivery.{}", self.part), self.problem)
    }

    /// The same, as a fault of the contract's field that holds the payload.
    #[must_use]
    pub fn in_field(self, field: &'static str) -> Invalid {
        Invalid::new(field, self.problem)
    }
}

/// Reads what `body` names. With `each_use`, each click of a button is an event.
///
/// # Errors
/// [`Unreadable`] when the payload is too long, when it is not what the platform sends, or
/// when a field that is read is invalid.
pub fn read(
    platform: Platform,
    headers: &Headers<'_>,
    body: &[u8],
    each_use: bool,
) -> Result<Named, Unreadable> {
    if body.len() > MAX_PAYLOAD_BYTES {
        let is = body.len();
        return Err(Unreadable::new(format!("must be at most {MAX_PAYLOAD_BYTES} bytes, is {is}")));
    }
    match platform {
        Platform::Slack => slack::read(body, each_use),
        Platform::Github => github::read(headers, body),
        Platform::Discord => discord::read(body),
        Platform::Telegram => telegram::read(body),
        Platform::Teams => teams::read(body),
        Platform::Stripe => stripe::read(body),
        Platform::StandardWebhooks => standard_webhooks::read(headers),
    }
}
