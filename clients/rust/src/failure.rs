//! A call that ended with an error, in terms of the contract.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt as _;

use crate::errors::{Cause, Error, LossReason};

/// A call that ended with an error.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) reason: String,
    pub(crate) field: String,
    metadata: HashMap<String, String>,
    pub(crate) retry_after: Option<Duration>,
    /// There is a newer token or client certificate: it is worth a try at once.
    pub(crate) outdated: bool,
    /// Empty if the library found the failure itself.
    pub(crate) source: Cause,
}

/// Why something internal has not worked.
#[derive(Debug)]
pub(crate) enum Problem {
    /// It may be worth a repetition.
    Failed(Box<Failure>),
    /// It is what the author of a bot sees.
    Final(Error),
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self::Failed(Box::new(failure))
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl Problem {
    /// The error that the author of a bot sees.
    pub(crate) fn public(self) -> Error {
        match self {
            Self::Failed(failure) => failure.public(),
            Self::Final(error) => error,
        }
    }
}

/// What rustls says of certificates. Otherwise its messages are those of an outage.
const EXPLANATIONS: [(&str, &str); 3] = [
    (
        "invalid peer certificate",
        "its certificate is not from a CA of tls_ca, not valid for its name, or expired",
    ),
    // Alerts. With TLS 1.3 they come after the handshake.
    ("received fatal alert", "it does not accept the client certificate of tls_cert, or needs one"),
    ("CertificateRequired", "it does not accept the client certificate of tls_cert, or needs one"),
];

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            reason: String::new(),
            field: String::new(),
            metadata: HashMap::new(),
            retry_after: None,
            outdated: false,
            source: Cause::default(),
        }
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    /// Reads a gRPC status and its details.
    pub(crate) fn read(status: Status) -> Self {
        let mut failure = Self::new(status.code(), status.message());
        if failure.message.is_empty() {
            status.code().description().clone_into(&mut failure.message);
        }
        let details = status.get_error_details();
        if let Some(info) = details.error_info().filter(|info| info.domain == "oncegate") {
            failure.reason.clone_from(&info.reason);
            failure.metadata.clone_from(&info.metadata);
        }
        if let Some(violation) = details.bad_request().and_then(|bad| bad.field_violations.first())
        {
            failure.field.clone_from(&violation.field);
        }
        failure.retry_after = details.retry_info().and_then(|info| info.retry_delay);
        // Zero says nothing; it would be a loop without a pause.
        failure.retry_after = failure.retry_after.filter(|delay| !delay.is_zero());
        if failure.reason.is_empty() {
            failure.read_transport(&status);
        }
        failure.source = Cause::new(status);
        failure
    }

    /// The server has not said it: what did?
    fn read_transport(&mut self, status: &Status) {
        let mut chain = String::new();
        let mut cause = std::error::Error::source(status);
        let mut is_timeout = false;
        while let Some(error) = cause {
            is_timeout |= error.is::<TimeoutExpired>();
            chain = format!("{chain}: {error}");
            cause = error.source();
        }
        if self.code == Code::Cancelled && is_timeout {
            self.code = Code::DeadlineExceeded;
        }
        let explanation = EXPLANATIONS.iter().find(|(sign, _)| chain.contains(sign));
        if let Some((_, meaning)) = explanation {
            self.code = Code::Unavailable;
            self.message = format!("{meaning} ({}{chain})", self.message);
        } else if self.code == Code::Unavailable {
            self.message += &chain;
        }
    }

    /// The turn or lease has ended.
    pub(crate) fn lost(&self) -> Option<LossReason> {
        match self.reason.as_str() {
            "CLAIM_LOST" => Some(LossReason::ClaimLost),
            "LEASE_LOST" => Some(LossReason::LeaseLost),
            "MAX_HOLD" => Some(LossReason::MaxHold),
            _ => None,
        }
    }

    /// The server does not accept the caller.
    fn denied(&self) -> bool {
        matches!(self.code, Code::Unauthenticated | Code::PermissionDenied)
    }

    /// Why something that is held is lost by this; `None` if nothing is.
    pub(crate) fn loss(&self) -> Option<LossReason> {
        self.lost().or_else(|| self.denied().then_some(LossReason::Denied))
    }

    /// The same request may succeed later. An error without a reason is the transport's.
    pub(crate) fn retryable(&self) -> bool {
        match self.code {
            Code::ResourceExhausted => self.retry_after.is_some(),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => true,
            Code::Internal | Code::Unknown | Code::Aborted => self.reason.is_empty(),
            _ => self.reason == "STREAM_REPLACED",
        }
    }

    /// What the author of a bot sees.
    pub(crate) fn public(self) -> Error {
        let retryable = self.retryable();
        let denied = self.denied();
        let Self { code, message, reason, field, mut metadata, retry_after, source, .. } = self;
        if let (Code::ResourceExhausted, Some(retry_after)) = (code, retry_after) {
            return Error::Overloaded { retry_after, message, source };
        }
        match reason.as_str() {
            "EPIC_MISMATCH" => {
                let bound = metadata.remove("epic_id").unwrap_or_default();
                return Error::EpicMismatch { bound, source };
            }
            "PAYLOAD_MISMATCH" => return Error::PayloadMismatch { source },
            _ => {}
        }
        if denied {
            let reason = match (reason.is_empty(), code) {
                (false, _) => reason,
                (true, Code::Unauthenticated) => "UNAUTHENTICATED".to_owned(),
                (true, _) => "PERMISSION_DENIED".to_owned(),
            };
            return Error::Denied { reason, message, source };
        }
        if retryable {
            let retry_after = retry_after.unwrap_or(Duration::from_secs(1));
            return Error::Unavailable { retry_after, message, source };
        }
        match code {
            Code::InvalidArgument | Code::OutOfRange | Code::ResourceExhausted | Code::NotFound => {
                Error::Invalid { field, message, source }
            }
            _ => Error::Internal { message: format!("{code:?}: {message}"), source },
        }
    }
}
