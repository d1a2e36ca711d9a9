//! Checks what no single flag can: that the settings fit each other.

use std::time::Duration;

use anyhow::ensure;
use humantime::format_duration;
use tokio::sync::Semaphore;

use super::{ServeConfig, exposure};
use crate::domain::limits::{MAX_BATCH_ITEMS, MAX_HOLD};

/// The shortest span, unless 0s has a meaning.
const LEAST_SPAN: Duration = Duration::from_millis(10);

/// The most of what is counted by a semaphore.
const MAX_COUNT: usize = Semaphore::MAX_PERMITS;
/// The most threads, and connections to the database of one kind.
const MAX_WORKERS: usize = 1_024;

impl ServeConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// Naming the flags that do not.
    pub fn validate(&self) -> anyhow::Result<()> {
        let Self { store, duplicate_cache: cache, limits, .. } = self;
        exposure::check(&self.listen, self.protection())?;
        self.traces.validate()?;
        ensure!(
            MAX_HOLD.contains(&self.max_hold),
            "--max-hold must be {} to {}: the longest TTL must fit",
            format_duration(*MAX_HOLD.start()),
            format_duration(*MAX_HOLD.end())
        );
        for (flag, count, most) in [
            ("workers", self.workers.unwrap_or(1), MAX_WORKERS),
            ("writers", self.writers, MAX_WORKERS),
            ("max-connections", limits.max_connections, MAX_COUNT),
            ("max-streams", usize::try_from(limits.max_streams)?, MAX_COUNT),
            ("max-calls", limits.max_calls, MAX_COUNT),
            ("queue-capacity", limits.queue_capacity, MAX_COUNT),
            // There may be none.
            ("duplicate-cache-entries", cache.duplicate_cache_entries.max(1), MAX_COUNT),
        ] {
            ensure!(count > 0, "--{flag} must be 1 or more");
            ensure!(count <= most, "--{flag} must be {most} or less, is {count}");
        }
        ensure!(
            limits.queue_capacity >= MAX_BATCH_ITEMS,
            "--queue-capacity must be {MAX_BATCH_ITEMS} or more: one batch must fit"
        );
        ensure!(
            store.store_timeout < limits.call_timeout,
            "--store-timeout must be shorter than --call-timeout; otherwise calls time out before \
             the server detects that the store is unavailable"
        );
        let off_or = |span: Duration| if span.is_zero() { LEAST_SPAN } else { span };
        for (flag, span) in [
            ("connect-timeout", off_or(store.connect_timeout)),
            ("store-timeout", store.store_timeout),
            ("call-timeout", limits.call_timeout),
            ("preface-timeout", limits.preface_timeout),
            ("max-connection-age", off_or(limits.max_connection_age)),
            ("keepalive-interval", limits.keepalive_interval),
            ("keepalive-timeout", limits.keepalive_timeout),
            ("sweep-interval", self.sweep_interval),
            ("probe-interval", self.probe_interval),
            ("reload-interval", self.reload_interval),
            ("duplicate-cache-max-age", cache.duplicate_cache_max_age),
        ] {
            ensure!(
                span >= LEAST_SPAN,
                "--{flag} must be {} or more, is {}",
                format_duration(LEAST_SPAN),
                format_duration(span)
            );
        }
        Ok(())
    }
}
