//! Streams say something now and then, because proxies close idle ones.

use std::time::Duration;

use futures_util::Stream;
use tokio::time::{Instant, interval_at};
use tokio_stream::StreamExt as _;

/// A stream on which nothing was sent for so long reports that it is alive. Common proxies close
/// a stream after 60 s without a message.
const MAX_QUIET: Duration = Duration::from_secs(20);

/// The same events, and `alive` whenever there was none for [`MAX_QUIET`].
pub(super) fn with_signs_of_life<T>(
    events: impl Stream<Item = T>,
    alive: impl Fn() -> T,
) -> impl Stream<Item = T> {
    let quiet = interval_at(Instant::now() + MAX_QUIET, MAX_QUIET);
    events.timeout_repeating(quiet).map(move |event| event.unwrap_or_else(|_| alive()))
}
