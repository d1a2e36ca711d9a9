//! Calls whose message is still on its way: each has a bound on its time, and
//! all of them on their number and their memory, so that callers that begin calls
//! and send nothing more take nothing from others.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::Request;
use http_body::{Body as HttpBody, Frame, SizeHint};
use prost::bytes::{Bytes, BytesMut};
use tokio::time::Sleep;

use super::status::Problem;
use crate::domain::limits::MAX_REQUEST_BYTES;

/// The length of what precedes a message: whether it is compressed, and its length.
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
const PREFIX: usize = 5;
/// How much of messages that are not whole all workers keep, in bytes.
const MAX_PARTS_BYTES: usize = 64 * 1024 * 1024;
/// How much each worker keeps at least: some messages of the greatest length.
const LEAST_SHARE: usize = 4 * (PREFIX + MAX_REQUEST_BYTES);

/// How much of a call is read before it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reads {
    /// Nothing: the method is not known.
    Nothing,
    /// The first message of a stream.
    FirstMessage,
    /// The one message that there is, to the end of the request.
    OnlyMessage,
}

/// The calls of one worker whose message is not whole yet. Cheap to clone.
#[derive(Clone)]
pub struct HalfOpen(Arc<Bounds>);

struct Bounds {
    timeout: Duration,
    most: usize,
    most_bytes: usize,
    waiting: Mutex<HalfOpenCalls>,
}

#[derive(Default)]
struct HalfOpenCalls {
    next: u64,
    bytes: usize,
    /// By their tickets: the oldest is the first.
    calls: BTreeMap<u64, Part>,
}

/// What has come of a call.
struct Part {
    /// Its metadata's included.
    bytes: usize,
    waker: Waker,
}

impl Bounds {
    /// The call to end, if there are too many or they have too many bytes.
    fn one_too_many(&self, waiting: &HalfOpenCalls) -> Option<u64> {
        if waiting.calls.len() > self.most {
            return waiting.calls.keys().next().copied();
        }
        let calls = (waiting.bytes > self.most_bytes).then(|| waiting.calls.iter())?;
        let largest = calls.max_by_key(|(ticket, part)| (part.bytes, Reverse(**ticket)));
        largest.map(|(ticket, _)| *ticket)
    }
}

impl HalfOpen {
    /// Lets each call take `timeout` until its message is whole, and a worker of
    /// `workers` have its share of `most` such calls: one more ends the oldest.
    #[must_use]
    pub fn new(timeout: Duration, most: usize, workers: usize) -> Self {
        let most = most.div_ceil(workers);
        let most_bytes = (MAX_PARTS_BYTES / workers).max(LEAST_SHARE);
        Self(Arc::new(Bounds { timeout, most, most_bytes, waiting: Mutex::default() }))
    }

    fn waiting(&self) -> MutexGuard<'_, HalfOpenCalls> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a call.
    fn enter(&self, waker: &Waker) -> Ticket {
        let mut waiting = self.waiting();
        let number = waiting.next;
        waiting.next += 1;
        waiting.calls.insert(number, Part { bytes: 0, waker: waker.clone() });
        drop(waiting);
        let clock = Box::pin(tokio::time::sleep(self.0.timeout));
        Ticket { half_open: self.clone(), number, clock }
    }

    /// Notes how much has come of a call. While there are too many calls, this ends the
    /// oldest; while they have too many bytes, the one that has most, of several the
    /// oldest. Answers whether this call may go on.
    fn goes_on(&self, number: u64, bytes: usize, waker: &Waker) -> bool {
        let mut waiting = self.waiting();
        let Some(part) = waiting.calls.get_mut(&number) else { return false };
        part.waker.clone_from(waker);
        let before = std::mem::replace(&mut part.bytes, bytes);
        waiting.bytes = waiting.bytes - before + bytes;
        while let Some(ticket) = self.0.one_too_many(&waiting)
            && let Some(ended) = waiting.calls.remove(&ticket)
        {
            waiting.bytes -= ended.bytes;
            ended.waker.wake();
        }
        waiting.calls.contains_key(&number)
    }
}

/// A call's place among those whose message is not whole.
struct Ticket {
    half_open: HalfOpen,
    number: u64,
    clock: Pin<Box<Sleep>>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut waiting = self.half_open.waiting();
        if let Some(part) = waiting.calls.remove(&self.number) {
            waiting.bytes -= part.bytes;
        }
    }
}

/// What has come of a message, with its prefix.
#[derive(Default)]
struct Message {
    /// The first frame: mostly all there is, and not copied then.
    first: Bytes,
    /// All of them, where there are several.
    joined: BytesMut,
    /// Whether the request has ended.
    ended: bool,
}

impl Message {
    fn bytes(&self) -> &[u8] {
        if self.joined.is_empty() { &self.first } else { &self.joined }
    }

    fn push(&mut self, data: Bytes) {
        if self.bytes().is_empty() {
            self.first = data;
        } else {
            self.detach();
            self.joined.extend_from_slice(&data);
        }
    }

    /// Keeps no more memory than what has come: a frame keeps the whole buffer
    /// that it was read into.
    fn detach(&mut self) {
        if self.joined.is_empty() {
            self.joined.extend_from_slice(&self.first);
            self.first = Bytes::new();
        }
    }

    /// How long it will be, once that is known.
    fn length(&self) -> Option<usize> {
        let (_, length) = self.bytes().first_chunk::<PREFIX>()?.split_first()?;
        let length = u32::from_be_bytes(length.try_into().ok()?);
        Some(PREFIX.saturating_add(usize::try_from(length).ok()?))
    }

    /// Whether what a method reads has come.
    fn is_whole(&self, reads: Reads) -> Result<bool, Problem> {
        if reads == Reads::Nothing {
            return Ok(true);
        }
        let (came, length) = (self.bytes().len(), self.length());
        let is_whole = match length {
            // Refused by its length, without being read.
            Some(length) if length > PREFIX + MAX_REQUEST_BYTES => return Ok(true),
            Some(length) if came > length && reads == Reads::OnlyMessage => {
                return Err(Problem::Unreadable(
                    "there is more than the one message that the method takes".into(),
                ));
            }
            length => length.is_some_and(|length| came >= length),
        };
        // A stream that ends before it begins is for its method to refuse.
        let may_be_none = reads == Reads::FirstMessage && came == 0;
        if self.ended && !is_whole && !may_be_none {
            return Err(Problem::Unreadable("the request ended before its message did".into()));
        }
        Ok(self.ended || is_whole && reads == Reads::FirstMessage)
    }
}

/// Reads a call until its message is whole.
pub(super) struct Arriving<B> {
    /// None once it is.
    request: Option<Request<B>>,
    reads: Reads,
    /// The length of the call's metadata.
    metadata: usize,
    message: Message,
    half_open: HalfOpen,
    /// Taken when there is something to wait for.
    ticket: Option<Ticket>,
}

impl<B> Arriving<B> {
    pub(super) fn new(
        request: Request<B>,
        reads: Reads,
        metadata: usize,
        half_open: HalfOpen,
    ) -> Self {
        let (request, message) = (Some(request), Message::default());
        Self { request, reads, metadata, message, half_open, ticket: None }
    }

    /// Waits for more, unless that has taken too long or too much.
    fn wait(&mut self, context: &mut Context<'_>) -> Result<(), Problem> {
        self.message.detach();
        let waker = context.waker();
        let ticket = self.ticket.get_or_insert_with(|| self.half_open.enter(waker));
        let bytes = self.metadata + self.message.bytes().len();
        if !self.half_open.goes_on(ticket.number, bytes, waker) {
            return Err(Problem::HalfOpen);
        }
        if ticket.clock.as_mut().poll(context).is_ready() {
            return Err(Problem::Slow(self.half_open.0.timeout));
        }
        Ok(())
    }
}

impl<B> Future for Arriving<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<tonic::codegen::StdError>,
{
    type Output = Result<Request<Arrived<B>>, Problem>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let me = &mut *self;
        while !me.message.is_whole(me.reads)? {
            let Some(request) = &mut me.request else { return Poll::Pending };
            match Pin::new(request.body_mut()).poll_frame(context) {
                // Trailers are the last that comes.
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => me.message.push(data),
                    Err(_) => me.message.ended = true,
                },
                Poll::Ready(Some(Err(error))) => {
                    return Poll::Ready(Err(Problem::of_body(&*error.into())));
                }
                Poll::Ready(None) => me.message.ended = true,
                Poll::Pending => {
                    me.wait(context)?;
                    return Poll::Pending;
                }
            }
        }
        me.ticket = None;
        let Some(request) = me.request.take() else { return Poll::Pending };
        let Message { first, joined, ended } = std::mem::take(&mut me.message);
        let came = if joined.is_empty() { first } else { joined.freeze() };
        Poll::Ready(Ok(request.map(|body| Arrived { came, rest: (!ended).then_some(body) })))
    }
}

/// The body of a call whose message is whole.
pub(super) struct Arrived<B> {
    came: Bytes,
    rest: Option<B>,
}

impl<B> HttpBody for Arrived<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if !self.came.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.came)))));
        }
        match &mut self.rest {
            Some(rest) => Pin::new(rest).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.came.is_empty() && self.rest.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match self.rest {
            Some(_) => SizeHint::default(),
            None => SizeHint::with_exact(self.came.len() as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half_open(workers: usize) -> HalfOpen {
        HalfOpen::new(Duration::from_secs(1), 10 * workers, workers)
    }

    /// A call of which so much has come.
    fn part(half_open: &HalfOpen, bytes: usize) -> Ticket {
        let ticket = half_open.enter(Waker::noop());
        assert!(half_open.goes_on(ticket.number, bytes, Waker::noop()), "{bytes}");
        ticket
    }

    #[tokio::test]
    async fn the_longest_message_fits_however_many_workers_there_are() {
        for workers in [1, 64, 1_000] {
            drop(part(&half_open(workers), PREFIX + MAX_REQUEST_BYTES));
        }
    }

    #[tokio::test]
    async fn of_too_many_bytes_the_longest_part_gives_way() {
        let half_open = half_open(1);
        let small = part(&half_open, 0);
        let [first, second] = [(); 2].map(|()| part(&half_open, MAX_PARTS_BYTES / 2));
        let last = part(&half_open, 1);
        for (ticket, bytes, goes_on) in [
            (small, 0, true),
            (first, MAX_PARTS_BYTES / 2, false),
            (second, MAX_PARTS_BYTES / 2, true),
            (last, 1, true),
        ] {
            let goes = half_open.goes_on(ticket.number, bytes, Waker::noop());
            assert_eq!(goes, goes_on, "{bytes} bytes of call {}", ticket.number);
        }
    }
}
