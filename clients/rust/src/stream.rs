//! Streams of messages.

use std::{future::Future, pin::Pin, sync::Arc};

use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Response, Status, Streaming};

use crate::{
    Error,
    clock::{Moment, ring_at},
    failure::{Failure, Problem},
    link::{Link, Transport, Usage},
    pb::RunTurnRequest,
};

type Opening<M> = Pin<Box<dyn Future<Output = Result<Response<Streaming<M>>, Status>> + Send>>;

/// A stream of messages. It is cancelled when it is dropped.
pub(crate) struct Stream<M> {
    // Dropped first: what follows would end the stream by a half-close.
    _cancel: DropGuard,
    source: Source<M>,
    requests: Option<mpsc::Sender<RunTurnRequest>>,
    link: Arc<Link>,
    usage: Usage,
}

enum Source<M> {
    Opening(Opening<M>),
    Open(Box<Streaming<M>>),
}

impl<M> Stream<M> {
    /// Opens a stream by a function, which gets what sends its request.
    pub(crate) async fn open<F>(
        link: &Arc<Link>,
        requests: Option<mpsc::Sender<RunTurnRequest>>,
        start: impl FnOnce(Transport) -> F,
    ) -> Result<Self, Problem>
    where
        F: Future<Output = Result<Response<Streaming<M>>, Status>> + Send + 'static,
    {
        let usage = link.acquire(true).await?;
        let cancelled = CancellationToken::new();
        let mut transport = usage.transport();
        transport.cancelled = Some(cancelled.clone());
        Ok(Self {
            _cancel: cancelled.drop_guard(),
            source: Source::Opening(Box::pin(start(transport))),
            requests,
            link: link.clone(),
            usage,
        })
    }

    /// The next message. If none comes in time, the stream is broken, and is to be dropped, as after
    /// every error. It may be dropped while it waits, without a loss.
    pub(crate) async fn read(&mut self, until: Moment) -> Result<M, Problem> {
        let next = tokio::select! {
            biased;
            next = self.source.next() => next,
            () = self.link.closed.cancelled() => return Err(Error::Closed.into()),
            () = ring_at(until) => {
                self.link.suspect(&self.usage);
                return Err(Failure::unavailable("the server did not answer in time").into());
            }
        };
        match next {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(Failure::unavailable("the server ended the stream").into()),
            Err(status) => Err(self.link.judge(&self.usage, Failure::read(status)).await.into()),
        }
    }

    /// Sends a message. False if the stream has ended.
    pub(crate) fn send(&self, request: RunTurnRequest) -> bool {
        self.requests.as_ref().is_some_and(|requests| requests.try_send(request).is_ok())
    }
}

impl<M> Source<M> {
    async fn next(&mut self) -> Result<Option<M>, Status> {
        loop {
            match self {
                Self::Opening(opening) => *self = Self::Open(Box::new(opening.await?.into_inner())),
                Self::Open(streaming) => return streaming.message().await,
            }
        }
    }
}
