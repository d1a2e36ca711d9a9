//! How long one call may take.

use std::{future::Future, time::Duration};

use futures_util::FutureExt as _;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;

use super::status::Problem;

/// What a wait leaves of its caller's deadline, at most, for the last look.
const LAST_LOOK: Duration = Duration::from_millis(250);

/// The time one call has: the server's own bound, or the caller's if that ends
/// sooner.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    arrived: Instant,
    server: Duration,
    caller: Option<Duration>,
}

impl Deadline {
    pub(super) fn of(metadata: &MetadataMap, server: Duration) -> Self {
        let header = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok());
        let caller = header.and_then(parse).map(|given| {
            // Answering a moment early, the answer arrives in time.
            given.saturating_sub((given / 10).min(Duration::from_millis(50)))
        });
        Self { arrived: Instant::now(), server, caller }
    }

    /// When the call arrived.
    pub(super) const fn arrived(self) -> Instant {
        self.arrived
    }

    /// How long a caller that asked to `wait` can be kept waiting: not to the
    /// very end, for the answer that the wait was in vain takes a look at the
    /// store.
    pub(super) fn wait(self, wait: Duration) -> Duration {
        self.caller
            .map_or(wait, |caller| wait.min(caller.saturating_sub((caller / 10).min(LAST_LOOK))))
    }

    /// The server's bound begins anew after a wait.
    pub(super) fn after(self, wait: Duration) -> Self {
        Self { server: self.server + wait, ..self }
    }

    /// Half of the time: when work in steps had better not begin another.
    pub(super) fn half(self) -> Duration {
        self.total() / 2
    }

    fn total(self) -> Duration {
        self.caller.map_or(self.server, |caller| caller.min(self.server))
    }

    /// Runs `work` within the deadline. Combinators rather than `async`, which
    /// keeps a future that it awaits twice over: callers may wait for minutes.
    pub(super) fn bound<T, E: Into<Problem>>(
        self,
        work: impl Future<Output = Result<T, E>>,
    ) -> impl Future<Output = Result<T, Problem>> {
        let total = self.total();
        tokio::time::timeout(total, work).map(move |done| match done {
            Ok(done) => done.map_err(Into::into),
            Err(_) => Err(Problem::Deadline(total)),
        })
    }
}

/// Reads a `grpc-timeout`: up to 8 digits and a unit.
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
fn parse(header: &str) -> Option<Duration> {
    let (digits, unit) = header.split_at_checked(header.len().checked_sub(1)?)?;
    let count: u32 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    let unit = match unit {
        "H" => Duration::from_hours(1),
        "M" => Duration::from_mins(1),
        "S" => Duration::from_secs(1),
        "m" => Duration::from_millis(1),
        "u" => Duration::from_micros(1),
        "n" => Duration::from_nanos(1),
        _ => return None,
    };
    Some(unit * count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read() {
        assert_eq!(parse("2S"), Some(Duration::from_secs(2)));
        assert_eq!(parse("99999999m"), Some(Duration::from_millis(99_999_999)));
        for bad in ["", "S", "2", "2s", "123456789S", "-1S", "é"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
