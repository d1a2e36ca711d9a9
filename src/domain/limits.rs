//! Every bound of the contract, in one place. `--help` and docs/reference/limits.md
//! show the same numbers.

use std::{ops::RangeInclusive, time::Duration};

const fn days(count: u64) -> Duration {
    Duration::from_hours(24 * count)
}

/// The longest id, label name or label value, in bytes of UTF-8.
pub const MAX_ID_BYTES: usize = 512;
/// The longest field that an id is derived from, in bytes of UTF-8: the value of a Slack
/// button has up to 2,000 characters.
/// <https://docs.slack.dev/reference/block-kit/block-elements/button-element>
pub const MAX_FIELD_BYTES: usize = 8 * 1024;
/// The longest payload of a platform, in bytes.
pub const MAX_PAYLOAD_BYTES: usize = 256 * 1024;
/// The most headers of one delivery.
pub const MAX_HEADERS: usize = 64;
/// The most further names of one event.
pub const MAX_ALIASES: usize = 8;
/// The longest digest of a payload, in bytes.
pub const MAX_DIGEST_BYTES: usize = 32;
/// The most labels of one lease.
pub const MAX_LABELS: usize = 8;
/// The most marks in one batch request.
pub const MAX_BATCH_ITEMS: usize = 1_000;
/// The largest request message, in bytes.
pub const MAX_REQUEST_BYTES: usize = 1024 * 1024;

/// How long an event stays handled, where the caller does not say.
pub const DEFAULT_EVENT_TTL: Duration = days(1);
/// How long an event may stay handled.
pub const EVENT_TTL: RangeInclusive<Duration> = Duration::from_secs(1)..=days(30);

/// How long a claim runs, where the caller does not say.
pub const DEFAULT_CLAIM_TTL: Duration = Duration::from_mins(5);
/// How long a claim may run without a renewal.
pub const CLAIM_TTL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(1);
/// How long a turn stays its holder's after its stream has broken, where the caller does
/// not say: at most as long as its claim runs, which is the longest that it may say.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(5);
/// For how long after a claim its attempts are counted. A claim's row expires so long after
/// it was last written, which is how that moment is known: a change of this makes claims that
/// are on record look as if they were written earlier or later.
pub const CLAIM_MEMORY: Duration = DEFAULT_EVENT_TTL;
/// How often an event may be claimed, where the caller does not say.
pub const DEFAULT_ATTEMPTS: u32 = 5;
/// How often a caller may let an event be claimed.
pub const MAX_ATTEMPTS: u32 = 100;
/// The longest detail of a turn, in bytes.
pub const MAX_DETAIL_BYTES: usize = 2 * 1024;
/// The longest result of a turn, in bytes.
pub const MAX_RESULT_BYTES: usize = 64 * 1024;
/// The longest type of a result, in bytes of UTF-8.
pub const MAX_RESULT_TYPE_BYTES: usize = 255;

/// How long a lease runs, where the caller does not say.
pub const DEFAULT_LEASE_TTL: Duration = Duration::from_secs(30);
/// How long a lease may run without a renewal.
pub const LEASE_TTL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_mins(15);

/// How long a server may let a lease be held, however often it is renewed.
pub const MAX_HOLD: RangeInclusive<Duration> = *LEASE_TTL.end()..=days(30);

/// How long a caller may queue for a session.
pub const WAIT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_mins(10);
/// The most callers that queue for one session, on all replicas.
pub const MAX_WAITERS_PER_SESSION: usize = 64;

/// Range of the ages that `Cleanup` and `ListEvents` accept.
pub const CLEANUP_AGE: RangeInclusive<Duration> = Duration::ZERO..=days(3_650);
/// The most rows one `Cleanup` deletes, where the caller does not say.
pub const DEFAULT_CLEANUP_ROWS: u32 = 100_000;
/// The most rows that one `Cleanup` may be asked to delete.
pub const MAX_CLEANUP_ROWS: u32 = 1_000_000;

/// How many sessions or events one page lists, where the caller does not say.
pub const DEFAULT_PAGE_SIZE: u32 = 100;
/// The most sessions or events that one page may list: with the longest ids and
/// labels it is within the 4 MiB that clients read by default.
pub const MAX_PAGE_SIZE: u32 = 250;

/// One limit of the contract, as a reader sees it.
pub struct Limit {
    /// What is limited.
    pub what: &'static str,
    /// The values that are accepted.
    pub range: String,
    /// The value of a request that does not set one; empty if there is none.
    pub default: String,
}

/// The limits of the contract, for `--help` and `docs/reference/limits.md`.
#[must_use]
pub fn table() -> Vec<Limit> {
    let span = |duration: &Duration| humantime::format_duration(*duration).to_string();
    let range = |range: &RangeInclusive<Duration>| {
        format!("{} to {}", span(range.start()), span(range.end()))
    };
    let limit = |what, range, default| Limit { what, range, default };
    let fixed = |what, range| limit(what, range, String::new());
    vec![
        limit("event TTL", range(&EVENT_TTL), span(&DEFAULT_EVENT_TTL)),
        limit("claim TTL", range(&CLAIM_TTL), span(&DEFAULT_CLAIM_TTL)),
        limit("grace of a stream", "0s to the claim TTL".to_owned(), span(&DEFAULT_GRACE)),
        limit("attempts per event", format!("1 to {MAX_ATTEMPTS}"), DEFAULT_ATTEMPTS.to_string()),
        fixed(
            "result of a turn",
            format!("{MAX_RESULT_BYTES} bytes, its type {MAX_RESULT_TYPE_BYTES} bytes"),
        ),
        fixed("detail of a turn", format!("{MAX_DETAIL_BYTES} bytes of UTF-8")),
        limit("lease TTL", range(&LEASE_TTL), span(&DEFAULT_LEASE_TTL)),
        limit("wait for a lease", range(&WAIT), span(WAIT.start())),
        fixed("waiters per session", MAX_WAITERS_PER_SESSION.to_string()),
        fixed(
            "ids, label names",
            format!("1 to {MAX_ID_BYTES} bytes of UTF-8, no control characters"),
        ),
        fixed(
            "field of a delivery",
            format!("{MAX_FIELD_BYTES} bytes; long ones are hashed in the id"),
        ),
        fixed("payload of a delivery", format!("{MAX_PAYLOAD_BYTES} bytes")),
        fixed("headers of a delivery", MAX_HEADERS.to_string()),
        fixed("aliases per event", MAX_ALIASES.to_string()),
        fixed("payload digest", format!("{MAX_DIGEST_BYTES} bytes")),
        fixed("labels per lease", MAX_LABELS.to_string()),
        fixed("marks per batch", MAX_BATCH_ITEMS.to_string()),
        fixed("request message", format!("{MAX_REQUEST_BYTES} bytes")),
        limit(
            "rows per Cleanup",
            format!("1 to {MAX_CLEANUP_ROWS}"),
            DEFAULT_CLEANUP_ROWS.to_string(),
        ),
        limit("rows per page", format!("1 to {MAX_PAGE_SIZE}"), DEFAULT_PAGE_SIZE.to_string()),
    ]
}

/// The limits of the contract as `--help` shows them.
#[must_use]
pub fn summary() -> String {
    let lines = table().into_iter().map(|Limit { what, range, default }| {
        let default = if default.is_empty() { default } else { format!(" (default {default})") };
        format!("\n  {what:<21} {range}{default}")
    });
    format!("Limits of the contract:{}", lines.collect::<String>())
}
