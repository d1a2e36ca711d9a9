//! Any `:authority` on a Unix socket.
//!
//! gRPC for C++, Python and Java name the socket's path there, percent-encoded or
//! not, which is no authority, and which h2 answers with `PROTOCOL_ERROR`
//! (<https://github.com/hyperium/h2/issues/487>). Nobody reads it here, so each is
//! replaced by one of the same length before h2 sees it: header compression counts
//! lengths, and so goes on as the caller believes.
//!
//! What cannot be read passes as it is: it is for h2 to refuse. So does an authority that
//! is not whole in the HEADERS frame but goes on, or comes first, in a CONTINUATION.

use std::{
    mem::MaybeUninit,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{self, AsyncRead, ReadBuf};

use super::PREFACE;

/// <https://www.rfc-editor.org/rfc/rfc9113.html#section-4.1>
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: usize = 5;
/// The longest frame that h2 takes, as it is set here.
const MAX_FRAME: usize = 16 * 1024;
/// How much is read at once, in bytes.
const READ: usize = 8 * 1024;

/// How much memory an idle connection keeps of each buffer, in bytes.
const KEPT: usize = 1024;

const NAME: &[u8] = b":authority";
/// Its place in the static table.
const NAME_INDEX: usize = 1;
/// How many symbols have a code of each length, from 0 bits to 30:
/// <https://www.rfc-editor.org/rfc/rfc7541.html#appendix-B>.
const HUFFMAN_CODES: [u32; 31] = [
    0, 0, 0, 0, 0, 10, 26, 32, 6, 0, 5, 3, 2, 6, 2, 3, 0, 0, 0, 3, 8, 13, 26, 29, 12, 4, 15, 19,
    29, 0, 4,
];

/// What a connection's bytes pass through as they are read.
pub(super) struct AnyAuthority {
    /// How many bytes of the preface have passed.
    preface: usize,
    /// How many bytes are to pass as they are.
    through: usize,
    /// A frame that has begun.
    frame: Vec<u8>,
    /// What has passed and is to be read, from `taken` on.
    passed: Vec<u8>,
    taken: usize,
}

impl AnyAuthority {
    pub(super) fn new() -> Self {
        Self { preface: 0, through: 0, frame: Vec::new(), passed: Vec::new(), taken: 0 }
    }

    /// Reads from `stream`.
    pub(super) fn poll_read(
        &mut self,
        mut stream: Pin<&mut impl AsyncRead>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.taken == self.passed.len() {
            self.passed.clear();
            self.taken = 0;
            let mut bytes = [MaybeUninit::uninit(); READ];
            let mut bytes = ReadBuf::uninit(&mut bytes);
            let read = stream.as_mut().poll_read(context, &mut bytes);
            if read.is_pending() {
                self.frame.shrink_to(KEPT);
                self.passed.shrink_to(KEPT);
            }
            ready!(read)?;
            if bytes.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.pass(bytes.filled());
        }
        let left = &self.passed[self.taken..];
        let count = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..count]);
        self.taken += count;
        Poll::Ready(Ok(()))
    }

    fn pass(&mut self, mut bytes: &[u8]) {
        if let Some(missing) = PREFACE.get(self.preface..).filter(|missing| !missing.is_empty()) {
            let (now, later) = bytes.split_at(missing.len().min(bytes.len()));
            if !missing.starts_with(now) {
                // HTTP/1.1, which passes as it is.
                self.through = usize::MAX;
            }
            self.preface += now.len();
            self.passed.extend_from_slice(now);
            bytes = later;
        }
        while !bytes.is_empty() {
            let is_through = self.through > 0;
            let missing = if is_through { self.through } else { self.missing() };
            let (now, later) = bytes.split_at(missing.min(bytes.len()));
            bytes = later;
            if is_through {
                self.passed.extend_from_slice(now);
                if self.through < usize::MAX {
                    self.through -= now.len();
                }
                continue;
            }
            self.frame.extend_from_slice(now);
            if self.missing() > 0 {
                continue;
            }
            if self.frame.len() == FRAME_HEAD {
                self.through = length(&self.frame);
                self.passed.append(&mut self.frame);
            } else {
                let rewritten = rewritten(&self.frame);
                self.passed.extend_from_slice(rewritten.as_deref().unwrap_or(&self.frame));
                self.frame.clear();
            }
        }
    }

    /// How much of a frame must still come: of headers all, of others the head.
    fn missing(&self) -> usize {
        let whole = match self.frame.get(3) {
            Some(&HEADERS) if self.frame.len() >= FRAME_HEAD => match length(&self.frame) {
                length @ ..=MAX_FRAME => FRAME_HEAD + length,
                _ => FRAME_HEAD,
            },
            _ => FRAME_HEAD,
        };
        whole - self.frame.len()
    }
}

/// The length of a frame's payload.
fn length(frame: &[u8]) -> usize {
    frame[..3].iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
}

/// A frame of headers with another authority; none if it has none that can be read.
fn rewritten(frame: &[u8]) -> Option<Vec<u8>> {
    let flags = frame[4];
    let (mut start, mut end) = (FRAME_HEAD, frame.len());
    if flags & PADDED != 0 {
        end = end.checked_sub(usize::from(*frame.get(start)?))?;
        start += 1;
    }
    if flags & PRIORITY != 0 {
        start += PRIORITY_BYTES;
    }
    let mut block = Block { bytes: frame.get(..end)?, at: start };
    let (mut written, mut kept) = (Vec::new(), 0);
    while let Some((value, length)) = block.next_authority() {
        written.extend_from_slice(&frame[kept..value.start]);
        push_number(&mut written, length);
        written.resize(written.len() + length, b'x');
        kept = value.end;
    }
    if kept == 0 {
        return None;
    }
    written.extend_from_slice(&frame[kept..]);
    let length = written.len() - FRAME_HEAD;
    let [.., high, middle, low] = length.to_be_bytes();
    written[..3].copy_from_slice(&[high, middle, low]);
    (length <= MAX_FRAME).then_some(written)
}

/// Compressed headers: <https://www.rfc-editor.org/rfc/rfc7541.html#section-6>.
struct Block<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Block<'a> {
    /// Where the next authority's value is, and how long it is decoded.
    fn next_authority(&mut self) -> Option<(Range<usize>, usize)> {
        loop {
            let name = match self.bytes.get(self.at)? {
                // A whole field, or a table's size.
                0x80.. => {
                    self.number(7)?;
                    continue;
                }
                0x20..0x40 => {
                    self.number(5)?;
                    continue;
                }
                0x40.. => self.number(6)?,
                _ => self.number(4)?,
            };
            let is_authority = match name {
                0 => self.text()? == (false, NAME),
                index => index == NAME_INDEX,
            };
            let start = self.at;
            let (is_huffman, value) = self.text()?;
            if is_authority {
                let length = if is_huffman { symbols(value)? } else { value.len() };
                if length > 0 {
                    return Some((start..self.at, length));
                }
            }
        }
    }

    /// A number that begins with the lowest `bits` of a byte.
    fn number(&mut self, bits: u32) -> Option<usize> {
        let most = (1 << bits) - 1;
        let mut number = usize::from(*self.bytes.get(self.at)?) & most;
        self.at += 1;
        if number < most {
            return Some(number);
        }
        for shift in [0, 7, 14, 21] {
            let byte = *self.bytes.get(self.at)?;
            self.at += 1;
            number += usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    /// A text, and whether it is Huffman-coded.
    fn text(&mut self) -> Option<(bool, &'a [u8])> {
        let is_huffman = *self.bytes.get(self.at)? >= 0x80;
        let length = self.number(7)?;
        let text = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some((is_huffman, text))
    }
}

/// Writes the length of a text that is not Huffman-coded.
fn push_number(written: &mut Vec<u8>, mut number: usize) {
    if number < 0x7f {
        written.push(low_bits(number));
        return;
    }
    written.push(0x7f);
    number -= 0x7f;
    while number >= 0x80 {
        written.push(low_bits(number) | 0x80);
        number >>= 7;
    }
    written.push(low_bits(number));
}

fn low_bits(number: usize) -> u8 {
    number.to_le_bytes()[0] & 0x7f
}

/// How many symbols a Huffman-coded text has. The codes of one length are
/// consecutive numbers, and follow those of the shorter lengths.
fn symbols(text: &[u8]) -> Option<usize> {
    let (mut count, mut bits, mut code, mut first) = (0, 0, 0, 0);
    for bit in text.iter().flat_map(|byte| (0..8).rev().map(move |place| byte >> place & 1)) {
        bits += 1;
        code = code << 1 | u32::from(bit);
        first <<= 1;
        let codes = *HUFFMAN_CODES.get(bits)?;
        if code - first < codes {
            count += 1;
            (bits, code, first) = (0, 0, 0);
        } else {
            first += codes;
        }
    }
    // The rest of the last byte is filled up.
    (bits < 8).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// <https://www.rfc-editor.org/rfc/rfc7541.html#appendix-C.4>
    const WWW_EXAMPLE_COM: [u8; 12] =
        [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];

    fn framed(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let [.., high, middle, low] = payload.len().to_be_bytes();
        [&[high, middle, low, kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// What passes of `frames` that come in pieces of `size`.
    fn passed(frames: &[u8], size: usize) -> Vec<u8> {
        let mut filter = AnyAuthority::new();
        for piece in [PREFACE.as_slice(), frames].concat().chunks(size) {
            filter.pass(piece);
        }
        filter.passed.split_off(PREFACE.len())
    }

    #[test]
    fn another_protocol_passes_as_it_is() {
        // The rest of it is shorter than the head of a frame.
        let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        for size in [1, 7, 10_000] {
            let mut filter = AnyAuthority::new();
            request.chunks(size).for_each(|piece| filter.pass(piece));
            assert_eq!(filter.passed, request);
        }
        let mut filter = AnyAuthority::new();
        let begins_alike = b"PRI * HTTP/1.1\r\nhost: x\r\n\r\n";
        filter.pass(begins_alike);
        assert_eq!(filter.passed, begins_alike);
    }

    #[test]
    fn symbols_are_counted() {
        assert_eq!(symbols(&WWW_EXAMPLE_COM), Some(15));
        assert_eq!(symbols(&[]), Some(0));
        assert_eq!(symbols(&[0xff, 0xff]), None, "filled up by more than a byte");
    }

    #[test]
    fn an_authority_is_replaced_however_it_is_spelled_and_cut() {
        let path = b"%2Frun%2Fx";
        let literal = [&[0x82, 0x40, 10], NAME, &[10], path, &[0x87]].concat();
        let indexed = [&[0x3f, 0xe1, 0x1f, 0x83, 0x01, 10], path.as_slice(), &[0x86]].concat();
        let huffman = [&[0x41, 0x8c], WWW_EXAMPLE_COM.as_slice(), &[0x86]].concat();
        let long = [&[0x41, 0x7f, 0x49], [b'/'; 200].as_slice(), &[0x86]].concat();
        let expected = [
            [&[0x82, 0x40, 10], NAME, &[10], &[b'x'; 10], &[0x87]].concat(),
            [&[0x3f, 0xe1, 0x1f, 0x83, 0x01, 10], [b'x'; 10].as_slice(), &[0x86]].concat(),
            [&[0x41, 15], [b'x'; 15].as_slice(), &[0x86]].concat(),
            [&[0x41, 0x7f, 0x49], [b'x'; 200].as_slice(), &[0x86]].concat(),
        ];
        for (block, expected) in [literal, indexed, huffman, long].iter().zip(expected) {
            let prefix = [2, 0, 0, 0, 0, 9];
            let with = |block: &[u8]| [&prefix, block, &[0, 0]].concat();
            let frames = [
                framed(0, 1, b"data"),
                framed(HEADERS, 4, block),
                framed(HEADERS, 4 | PADDED | PRIORITY, &with(block)),
                framed(4, 0, &[]),
            ];
            let wanted = [
                framed(0, 1, b"data"),
                framed(HEADERS, 4, &expected),
                framed(HEADERS, 4 | PADDED | PRIORITY, &with(&expected)),
                framed(4, 0, &[]),
            ];
            for size in [1, 7, 10_000] {
                assert_eq!(passed(&frames.concat(), size), wanted.concat());
            }
        }
    }

    #[test]
    fn what_cannot_be_read_passes_as_it_is() {
        let cut = [&[0x41, 10], b"%2Frun".as_slice()].concat();
        for payload in [&cut[..], &[], &[0x41], &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff], &[0x41, 0]] {
            for flags in [0, PADDED, PRIORITY, PADDED | PRIORITY] {
                let frame = framed(HEADERS, flags, payload);
                assert_eq!(passed(&frame, 3), frame);
            }
        }
        let long = framed(HEADERS, 4, &vec![0x41; MAX_FRAME + 1]);
        assert_eq!(passed(&long, 1_000), long);
    }
}
