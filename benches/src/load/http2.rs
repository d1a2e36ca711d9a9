//! The client's end of HTTP/2, no more of it than unary gRPC calls need, so that
//! the client takes as little of the machine as it can from what is measured:
//! one blocking thread a connection, one read and one write for as many calls
//! as are ready. <https://www.rfc-editor.org/rfc/rfc9113.html>,
//! <https://www.rfc-editor.org/rfc/rfc7541.html>.
//!
//! Headers of answers are not decoded: a unary answer with a message is taken
//! for a success, one without for an error, which is what every gRPC server
//! sends.

use std::{collections::VecDeque, time::Duration};

use anyhow::{Context as _, bail, ensure};

use super::{Access, socket::Socket};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
/// What a peer accepts in one frame unless it says otherwise.
const MAX_FRAME: usize = 16_384;
/// What either side may send before it hears of the other's window.
const FIRST_WINDOW: i64 = 65_535;
/// The largest window there is: answers are never held up.
const OPEN_WINDOW: u32 = (1 << 31) - 1;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

const SETTING_INITIAL_WINDOW: u16 = 4;

/// A call that ended.
pub struct Ended<'a> {
    /// The caller's number.
    pub caller: usize,
    /// The answer; none where the call failed.
    pub message: Option<&'a [u8]>,
}

/// One call under way.
#[derive(Default)]
struct Call {
    caller: usize,
    /// The answer as far as it has come, its gRPC prefix included.
    answer: Vec<u8>,
    ended: bool,
}

/// One connection.
pub struct Connection {
    socket: Socket,
    input: Vec<u8>,
    filled: usize,
    output: Vec<u8>,
    /// Calls under way, in the order of their streams, of which the first is
    /// `oldest`.
    calls: VecDeque<Call>,
    oldest: u32,
    headers: HeaderTable,
    /// What may be sent on the whole connection, and on a new stream, in bytes.
    window: i64,
    stream_window: i64,
    /// What has come since the peer was last told that there is room, in bytes.
    consumed: u32,
    spare: Vec<Vec<u8>>,
}

impl Connection {
    /// Connects to `target`, `HOST:PORT`.
    pub fn open(target: &str) -> anyhow::Result<Self> {
        Self::open_with(target, &Access::default())
    }

    /// The same, with a caller's credentials.
    pub fn open_with(target: &str, access: &Access) -> anyhow::Result<Self> {
        let mut connection = Self {
            socket: Socket::connect(target, access.tls.as_ref())?,
            input: vec![0; 256 * 1024],
            filled: 0,
            output: PREFACE.to_vec(),
            calls: VecDeque::new(),
            oldest: 1,
            headers: HeaderTable::new(target, access),
            window: FIRST_WINDOW,
            stream_window: FIRST_WINDOW,
            consumed: 0,
            spare: Vec::new(),
        };
        connection.frame(SETTINGS, 0, 0, 6);
        connection.output.extend(SETTING_INITIAL_WINDOW.to_be_bytes());
        connection.output.extend(OPEN_WINDOW.to_be_bytes());
        connection.grant(OPEN_WINDOW - 65_535);
        // The peer's settings come before its first answer, and say what it takes.
        while connection.window == FIRST_WINDOW && connection.stream_window == FIRST_WINDOW {
            let before = connection.filled;
            connection.exchange(Some(Duration::from_millis(100)))?;
            connection.take(&mut |_, _| bail!("an answer to no call"))?;
            if connection.filled == before {
                break; // It leaves both windows at their defaults.
            }
        }
        Ok(connection)
    }

    /// Calls `path` with `message` in the name of `caller`; it is sent with the
    /// next [`Connection::exchange`].
    pub fn call(
        &mut self,
        caller: usize,
        path: &'static str,
        timeout: Option<&str>,
        message: &[u8],
    ) -> anyhow::Result<()> {
        let length = message.len() + 5;
        let sent = i64::try_from(length)?;
        ensure!(sent <= self.stream_window, "the message is larger than the peer's window");
        ensure!(sent <= self.window, "more is under way than the peer's window holds");
        self.window -= sent;

        let stream = self.oldest + 2 * u32::try_from(self.calls.len())?;
        let answer = self.spare.pop().unwrap_or_default();
        self.calls.push_back(Call { caller, answer, ended: false });
        let start = self.output.len();
        self.frame(HEADERS, END_HEADERS, stream, 0);
        self.headers.encode(path, timeout, &mut self.output);
        let block = self.output.len() - start - FRAME_HEADER;
        self.output[start..start + 3].copy_from_slice(&u24(block));

        let prefix: [u8; 5] = {
            let [a, b, c, d] = u32::try_from(message.len())?.to_be_bytes();
            [0, a, b, c, d] // not compressed
        };
        if length <= MAX_FRAME {
            self.frame(DATA, END_STREAM, stream, length);
            self.output.extend(prefix);
            self.output.extend(message);
            return Ok(());
        }
        self.frame(DATA, 0, stream, prefix.len());
        self.output.extend(prefix);
        let mut chunks = message.chunks(MAX_FRAME).peekable();
        while let Some(chunk) = chunks.next() {
            let flags = if chunks.peek().is_none() { END_STREAM } else { 0 };
            self.frame(DATA, flags, stream, chunk.len());
            self.output.extend(chunk);
        }
        Ok(())
    }

    /// Sends what is to be sent, and waits for something to come; until
    /// `patience` ends, if that is given.
    pub fn exchange(&mut self, patience: Option<Duration>) -> anyhow::Result<()> {
        if self.filled == self.input.len() {
            self.input.resize(self.filled * 2, 0);
        }
        let input = &mut self.input[self.filled..];
        self.filled += self.socket.exchange(&self.output, input, patience)?;
        self.output.clear();
        Ok(())
    }

    /// Tells `heard` of every call that has ended; it may make others.
    pub fn take(
        &mut self,
        heard: &mut impl FnMut(&mut Self, Ended<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let input = std::mem::take(&mut self.input);
        let mut rest = &input[..self.filled];
        while let Some((frame, after)) = Frame::split(rest) {
            self.handle(&frame, heard)?;
            rest = after;
        }
        let (kept, filled) = (rest.len(), self.filled);
        self.input = input;
        self.input.copy_within(filled - kept..filled, 0);
        self.filled = kept;
        if self.consumed > OPEN_WINDOW / 4 {
            let consumed = std::mem::take(&mut self.consumed);
            self.grant(consumed);
        }
        Ok(())
    }

    fn handle(
        &mut self,
        frame: &Frame<'_>,
        heard: &mut impl FnMut(&mut Self, Ended<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let flagged = |flag| frame.flags & flag != 0;
        match frame.kind {
            DATA => {
                self.consumed += u32::try_from(frame.payload.len())?;
                let call = self.of_stream(frame.stream).context("data for no call")?;
                call.answer.extend(frame.payload);
                if flagged(END_STREAM) {
                    self.end(frame.stream, heard)?;
                }
            }
            HEADERS if flagged(END_STREAM) => self.end(frame.stream, heard)?,
            RST_STREAM => {
                if let Some(call) = self.of_stream(frame.stream) {
                    call.answer.clear();
                    self.end(frame.stream, heard)?;
                }
            }
            SETTINGS if !flagged(ACK) => {
                for setting in frame.payload.chunks_exact(6) {
                    let (name, value) = setting.split_at(2);
                    if name == SETTING_INITIAL_WINDOW.to_be_bytes() {
                        self.stream_window = i64::from(u32::from_be_bytes(value.try_into()?));
                    }
                }
                self.frame(SETTINGS, ACK, 0, 0);
            }
            PING if !flagged(ACK) => {
                self.frame(PING, ACK, 0, frame.payload.len());
                self.output.extend(frame.payload);
            }
            WINDOW_UPDATE if frame.stream == 0 => {
                self.window += i64::from(u32::from_be_bytes(frame.payload.try_into()?));
            }
            GOAWAY => bail!("the peer goes away: {}", String::from_utf8_lossy(frame.payload)),
            _ => {}
        }
        Ok(())
    }

    fn of_stream(&mut self, stream: u32) -> Option<&mut Call> {
        let index = stream.checked_sub(self.oldest)? / 2;
        self.calls.get_mut(index as usize).filter(|call| !call.ended)
    }

    fn end(
        &mut self,
        stream: u32,
        heard: &mut impl FnMut(&mut Self, Ended<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let Some(call) = self.of_stream(stream) else { return Ok(()) };
        call.ended = true;
        let caller = call.caller;
        let mut answer = std::mem::take(&mut call.answer);
        while self.calls.front().is_some_and(|call| call.ended) {
            self.calls.pop_front();
            self.oldest += 2;
        }
        heard(self, Ended { caller, message: answer.get(5..) })?;
        answer.clear();
        self.spare.push(answer);
        Ok(())
    }

    /// Lets the peer send `count` bytes more.
    fn grant(&mut self, count: u32) {
        self.frame(WINDOW_UPDATE, 0, 0, 4);
        self.output.extend(count.to_be_bytes());
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, length: usize) {
        self.output.extend(u24(length));
        self.output.extend([kind, flags]);
        self.output.extend(stream.to_be_bytes());
    }
}

fn u24(length: usize) -> [u8; 3] {
    let [.., a, b, c] = length.to_be_bytes();
    [a, b, c]
}

struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The first frame of `bytes`, once it is there whole, and what follows.
    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (&[a, b, c, kind, flags, s, t, u, v], rest) =
            bytes.split_first_chunk::<FRAME_HEADER>()?;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let (payload, rest) = rest.split_at_checked(length)?;
        let stream = u32::from_be_bytes([s & 0x7f, t, u, v]);
        Some((Self { kind, flags, stream, payload }, rest))
    }
}

/// What the peer's decoder remembers: every header is spelled out once and
/// named by its number from then on, as real clients do.
struct HeaderTable {
    /// In the static table.
    scheme: u8,
    authority: String,
    authorization: Option<String>,
    /// Oldest first.
    known: Vec<(&'static str, String)>,
}

impl HeaderTable {
    fn new(authority: &str, Access { token, tls }: &Access) -> Self {
        const HTTP: u8 = 0x86;
        const HTTPS: u8 = 0x87;
        Self {
            scheme: if tls.is_some() { HTTPS } else { HTTP },
            authority: authority.to_owned(),
            authorization: token.as_ref().map(|token| format!("Bearer {token}")),
            known: Vec::new(),
        }
    }

    fn encode(&mut self, path: &str, timeout: Option<&str>, out: &mut Vec<u8>) {
        const POST: u8 = 0x83; // in the static table
        out.extend([POST, self.scheme]);
        let authority = std::mem::take(&mut self.authority);
        self.header(":authority", &authority, out);
        self.authority = authority;
        self.header(":path", path, out);
        self.header("content-type", "application/grpc", out);
        self.header("te", "trailers", out);
        if let Some(authorization) = self.authorization.take() {
            self.header("authorization", &authorization, out);
            self.authorization = Some(authorization);
        }
        if let Some(timeout) = timeout {
            self.header("grpc-timeout", timeout, out);
        }
    }

    fn header(&mut self, name: &'static str, value: &str, out: &mut Vec<u8>) {
        const FIRST_DYNAMIC: usize = 62;
        let known = self.known.iter().rposition(|(n, v)| *n == name && v == value);
        if let Some(place) = known {
            let index = FIRST_DYNAMIC + self.known.len() - 1 - place;
            out.push(0x80 | u8::try_from(index).expect("few headers"));
            return;
        }
        self.known.push((name, value.to_owned()));
        out.push(0x40);
        for text in [name, value] {
            out.push(u8::try_from(text.len()).ok().filter(|length| *length < 0x7f).expect("short"));
            out.extend(text.as_bytes());
        }
    }
}
