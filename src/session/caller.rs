//! The caller of a stream: how it is connected, and until when it may use the stream.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::task_tracker::TaskTrackerToken,
};

use super::SessionError;

/// How the caller of a stream is connected.
#[derive(Debug, Clone, Default)]
pub struct StreamCaller {
    /// Cancelled when the server ends the connection, or the caller may no longer use the
    /// stream: what the stream keeps stays its holder's, as in a drain.
    leaving: CancellationToken,
    /// Whether the caller may no longer use the stream.
    denied: Arc<AtomicBool>,
    /// Ends the watch that [`StreamCaller::until`] began.
    _watch: Option<Arc<DropGuard>>,
    /// The call's place among those under way, until the stream has sent its last event or
    /// has broken.
    pub place: Option<TaskTrackerToken>,
}

impl StreamCaller {
    /// A caller on a connection whose end cancels `leaving`, with `place` among the calls under
    /// way.
    #[must_use]
    pub fn new(leaving: CancellationToken, place: Option<TaskTrackerToken>) -> Self {
        Self { leaving, place, ..Self::default() }
    }

    /// The same, until it is `denied`. The stream ends then even if nobody reads it, as the
    /// events alone could not.
    #[must_use]
    pub fn until(self, denied: impl Future<Output = ()> + Send + 'static) -> Self {
        let (leaving, ended) = (self.leaving.child_token(), CancellationToken::new());
        let (leave, is_denied, until) = (leaving.clone(), self.denied.clone(), ended.clone());
        tokio::spawn(async move {
            if until.run_until_cancelled(denied).await.is_some() {
                is_denied.store(true, Ordering::Release);
                leave.cancel();
            }
        });
        Self { leaving, _watch: Some(Arc::new(ended.drop_guard())), ..self }
    }

    /// Cancelled when the stream is to end whatever its caller does.
    pub(crate) fn leaving(&self) -> &CancellationToken {
        &self.leaving
    }

    /// Waits until the stream is to end whatever its caller does, and answers why.
    pub(crate) async fn left(&self) -> SessionError {
        self.leaving.cancelled().await;
        self.why_left()
    }

    /// Why the stream ends whatever its caller does.
    pub(crate) fn why_left(&self) -> SessionError {
        if self.denied.load(Ordering::Acquire) {
            SessionError::Denied
        } else {
            SessionError::Draining
        }
    }
}
