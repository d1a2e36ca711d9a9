//! Every bound of the contract, in one place. `--help` and the README show the
//! same numbers.

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
/// The longest result of a turn, in bytes.
pub const MAX_RESULT_BYTES: usize = 64 * 1024;

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

/// How far back `Cleanup` and `ListEvents` may be told to look.
pub const CLEANUP_AGE: RangeInclusive<Duration> = Duration::ZERO..=days(3_650);
/// The most rows one `Cleanup` deletes, where the caller does not say.
pub const DEFAULT_CLEANUP_ROWS: u32 = 100_000;
/// The most rows one `Cleanup` may be told to delete.
pub const MAX_CLEANUP_ROWS: u32 = 1_000_000;

/// How many sessions or events one page lists, where the caller does not say.
pub const DEFAULT_PAGE_SIZE: u32 = 100;
/// The most sessions or events that one page may list: with the longest ids and
/// labels it is within the 4 MiB that clients read by default.
pub const MAX_PAGE_SIZE: u32 = 250;

/// The contract's bounds as `--help` shows them.
#[must_use]
pub fn summary() -> String {
    let span = |duration: &Duration| humantime::format_duration(*duration).to_string();
    let range = |range: &RangeInclusive<Duration>| {
        format!("{} to {}", span(range.start()), span(range.end()))
    };
    format!(
        "Limits of the contract:
  event TTL            {event} (default {event_default})
  claim TTL            {claim} (default {claim_default})
  grace of a stream    0s to the claim TTL (default {grace_default})
  attempts per event   1 to {MAX_ATTEMPTS} (default {DEFAULT_ATTEMPTS})
  result of a turn     {MAX_RESULT_BYTES} bytes
  lease TTL            {lease} (default {lease_default})
  wait for a lease     {wait} (default 0s)
  waiters per session  {MAX_WAITERS_PER_SESSION}
  ids, label names     1 to {MAX_ID_BYTES} bytes of UTF-8, no control characters
  field of a delivery  {MAX_FIELD_BYTES} bytes; long ones are hashed in the id
  payload              {MAX_PAYLOAD_BYTES} bytes
  aliases per event    {MAX_ALIASES}
  payload digest       {MAX_DIGEST_BYTES} bytes
  labels per lease     {MAX_LABELS}
  marks per batch      {MAX_BATCH_ITEMS}
  request message      {MAX_REQUEST_BYTES} bytes
  rows per Cleanup     {MAX_CLEANUP_ROWS} (default {DEFAULT_CLEANUP_ROWS})
  rows per page        {MAX_PAGE_SIZE} (default {DEFAULT_PAGE_SIZE})",
        event = range(&EVENT_TTL),
        event_default = span(&DEFAULT_EVENT_TTL),
        claim = range(&CLAIM_TTL),
        claim_default = span(&DEFAULT_CLAIM_TTL),
        lease = range(&LEASE_TTL),
        grace_default = span(&DEFAULT_GRACE),
        lease_default = span(&DEFAULT_LEASE_TTL),
        wait = range(&WAIT),
    )
}
