//! How many files the process may open, and so how many connections it can have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit on open files as far as it goes, and answers how many of the
/// connections `asked` for it allows, besides `own` other files.
pub(super) fn connections(asked: usize, own: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let files = match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit on open files; using the current limit");
            limit.current
        }
    };
    let Some(files) = files.and_then(|files| usize::try_from(files).ok()) else { return asked };
    let allowed = files.saturating_sub(own).clamp(1, asked);
    if allowed < asked {
        tracing::warn!(
            files,
            asked,
            allowed,
            "open-file limit is too low; --max-connections lowered"
        );
    } else {
        tracing::info!(files, max_connections = asked, "open-file limit is sufficient");
    }
    allowed
}
