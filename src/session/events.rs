//! The events of a stream, on their way to its reader: of each kind only the latest is kept, so
//! that a slow reader takes no memory and finds nothing stale.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{Stream, stream};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{SessionError, StreamCaller};

/// How long a request may look for a grant that has just come, and keep its place otherwise, once
/// the server ends the connection.
const LEAVING_LOOK: Duration = Duration::from_millis(200);

/// What a stream reports while it waits for a grant `K`, keeps it, and ends with `L`.
#[derive(Debug, PartialEq, Eq)]
pub enum StreamEvent<K, L> {
    /// The caller's position in the queue, from 1.
    Queued(usize),
    /// It was granted.
    Granted(K),
    /// It was renewed.
    Renewed(K),
    /// So many callers wait for the session behind this holder.
    Waiting(usize),
    /// The last event.
    Last(L),
}

/// The events that were not read yet.
struct Unread<K, L> {
    queued: Option<usize>,
    granted: Option<K>,
    renewed: Option<K>,
    waiting: Option<usize>,
    last: Option<Result<L, SessionError>>,
    /// Whether nothing more comes.
    ended: bool,
}

impl<K, L> Unread<K, L> {
    fn take(&mut self) -> Option<Result<StreamEvent<K, L>, SessionError>> {
        if let Some(position) = self.queued.take() {
            return Some(Ok(StreamEvent::Queued(position)));
        }
        if let Some(granted) = self.granted.take() {
            return Some(Ok(StreamEvent::Granted(granted)));
        }
        if let Some(renewed) = self.renewed.take() {
            return Some(Ok(StreamEvent::Renewed(renewed)));
        }
        if let Some(waiters) = self.waiting.take() {
            return Some(Ok(StreamEvent::Waiting(waiters)));
        }
        self.last.take().map(|last| last.map(StreamEvent::Last))
    }
}

struct Mailbox<K, L> {
    unread: Mutex<Unread<K, L>>,
    changed: Notify,
}

impl<K, L> Mailbox<K, L> {
    fn unread(&self) -> MutexGuard<'_, Unread<K, L>> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Unread<K, L>)) {
        change(&mut self.unread());
        self.changed.notify_one();
    }
}

/// The events of one stream, until an error or the last event ends it. Dropping them breaks the
/// stream.
pub struct Events<K, L> {
    mailbox: Arc<Mailbox<K, L>>,
    _broken: DropGuard,
}

impl<K, L> Events<K, L> {
    /// The events as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<StreamEvent<K, L>, SessionError>> {
        stream::unfold(self, async |events| Some((events.next().await?, events)))
    }

    async fn next(&self) -> Option<Result<StreamEvent<K, L>, SessionError>> {
        loop {
            {
                let mut unread = self.mailbox.unread();
                let event = unread.take();
                if event.is_some() || unread.ended {
                    return event;
                }
            }
            self.mailbox.changed.notified().await;
        }
    }
}

/// Where a stream's events are sent.
pub(crate) struct EventSender<K, L> {
    mailbox: Arc<Mailbox<K, L>>,
    broken: CancellationToken,
}

impl<K, L> EventSender<K, L> {
    pub(crate) fn channel() -> (Self, Events<K, L>) {
        let unread = Unread {
            queued: None,
            granted: None,
            renewed: None,
            waiting: None,
            last: None,
            ended: false,
        };
        let (unread, changed) = (Mutex::new(unread), Notify::new());
        let mailbox = Arc::new(Mailbox { unread, changed });
        let broken = CancellationToken::new();
        let events = Events { mailbox: Arc::clone(&mailbox), _broken: broken.clone().drop_guard() };
        (Self { mailbox, broken }, events)
    }

    /// The caller has this position in the queue.
    pub(crate) fn queued(&self, position: usize) {
        self.mailbox.change(|unread| unread.queued = Some(position));
    }

    /// It was granted, and has no position any more.
    pub(crate) fn granted(&self, granted: K) {
        self.mailbox.change(|unread| {
            unread.queued = None;
            unread.granted = Some(granted);
        });
    }

    /// It was renewed.
    pub(crate) fn renewed(&self, renewed: K) {
        self.mailbox.change(|unread| unread.renewed = Some(renewed));
    }

    /// So many callers wait behind it.
    pub(crate) fn waiting(&self, waiters: usize) {
        self.mailbox.change(|unread| unread.waiting = Some(waiters));
    }

    /// The last event, or the error that ends the stream.
    pub(crate) fn end(&self, last: Result<L, SessionError>) {
        self.mailbox.change(|unread| unread.last = Some(last));
    }

    /// Waits until the stream has broken: nobody reads its events any more.
    pub(crate) async fn closed(&self) {
        self.broken.cancelled().await;
    }

    /// The answer to `request`, within `limit`; none if the stream has broken. The request is
    /// dropped, which withdraws it, if the stream breaks; or if the server ends the connection,
    /// and it has not ended by itself soon after.
    pub(crate) async fn answer<T>(
        &self,
        caller: &StreamCaller,
        limit: Duration,
        request: impl Future<Output = Result<T, SessionError>>,
    ) -> Option<Result<T, SessionError>> {
        tokio::select! {
            biased;
            () = self.closed() => None,
            why = async {
                let why = caller.left().await;
                sleep(LEAVING_LOOK).await;
                why
            } => Some(Err(why)),
            answer = timeout(limit, request) => {
                Some(answer.unwrap_or(Err(SessionError::Timeout(limit))))
            }
        }
    }
}

impl<K, L> Drop for EventSender<K, L> {
    fn drop(&mut self) {
        self.mailbox.change(|unread| unread.ended = true);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    async fn all(events: Events<u8, u8>) -> Vec<StreamEvent<u8, u8>> {
        events.into_stream().map(Result::unwrap).collect().await
    }

    #[tokio::test]
    async fn a_slow_reader_finds_the_latest_of_each_kind() {
        let (sender, events) = EventSender::channel();
        for count in 1..1_000 {
            sender.queued(count);
        }
        sender.granted(1);
        for count in 2..=u8::MAX {
            sender.renewed(count);
            sender.waiting(count.into());
        }
        sender.end(Ok(0));
        drop(sender);
        let latest = [
            StreamEvent::Granted(1),
            StreamEvent::Renewed(u8::MAX),
            StreamEvent::Waiting(u8::MAX.into()),
            StreamEvent::Last(0),
        ];
        assert_eq!(all(events).await, latest);
    }

    #[tokio::test]
    async fn a_stream_breaks_when_its_events_are_dropped() {
        let (sender, events) = EventSender::<u8, u8>::channel();
        let reading = tokio::spawn(all(events));
        tokio::task::yield_now().await;
        reading.abort();
        sender.closed().await;
    }
}
