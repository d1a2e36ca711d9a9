//! Frames of HTTP/2 and requests of HTTP/1.1, valid and not.

use crate::{chance::Chance, server::framed};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const MARK: &str = "/oncegate.v1.IdempotencyService/MarkProcessed";
const PATHS: [&str; 6] = [
    MARK,
    "/oncegate.v1.IdempotencyService/HoldSessionLease",
    "/oncegate.v1.TurnService/RunTurn",
    "/grpc.health.v1.Health/Watch",
    "/unknown",
    "*",
];

/// A request for a mark of team T1.
fn mark() -> Vec<u8> {
    framed(0, b"\x0a\x08\x0a\x02T1\x12\x02e1")
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head[..], payload].concat()
}

/// A field of HPACK, as a literal with this first byte.
fn field(first: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    let text = |text: &[u8]| {
        let text = &text[..text.len().min(126)];
        [&[u8::try_from(text.len()).unwrap_or(0)][..], text].concat()
    };
    [&[first][..], &text(name), &text(value)].concat()
}

/// A list of headers, mostly one that begins a call.
fn headers(chance: &mut Chance) -> Vec<u8> {
    // By index: POST, http.
    let mut block = vec![0x83, 0x86];
    let path = if chance.one_in(3) { *chance.pick(&PATHS) } else { MARK };
    block.extend(field(0, b":path", path.as_bytes()));
    block.extend(field(0x40, b":authority", b"fuzz"));
    block.extend(field(0, b"te", b"trailers"));
    let kinds: [&[u8]; 4] =
        [b"application/grpc", b"application/grpc-web", b"application/grpc-web-text", b"text/html"];
    let kind = if chance.one_in(4) { chance.below(4) } else { 0 };
    block.extend(field(0x10, b"content-type", kinds[kind]));
    for _ in 0..chance.below(4) {
        match chance.below(10) {
            0 => block.push(0x80 | chance.byte()),
            1 => block.extend(field(0x40, b"x", &[b'x'; 100])),
            // A new size of the table.
            2 => block.extend([0x3f, 0xff, 0xff, 0xff, chance.byte()]),
            3 => block.extend(field(0, b":path", b"/again")),
            4 => block.extend(field(0, b"Upper", b"\r\n")),
            5 => block.extend(field(
                0,
                b"grpc-timeout",
                [&b"1n"[..], b"99999999H", b"-1S", b"x"][chance.below(4)],
            )),
            6 => block.extend(field(0, b"content-length", b"18446744073709551616")),
            7 => block.extend(field(0, b"x-request-id", &[0xff; 40])),
            8 => block.extend(field(0, b"traceparent", b"00-0-0-00")),
            // Huffman, which is not.
            _ => block.extend([0, 0x85, 0xff, 0xff, 0xff, 0xff, 0xff, 1, b'x']),
        }
    }
    block
}

fn odd_stream(chance: &mut Chance) -> u32 {
    match chance.below(12) {
        0 => 0,
        1 => 2,
        2 => u32::MAX,
        3 => 0x7fff_ffff,
        _ => u32::try_from(chance.below(5) * 2 + 1).unwrap_or(1),
    }
}

/// One frame, or a few that belong together.
fn frames(chance: &mut Chance, next: &mut u32) -> Vec<u8> {
    let odd = odd_stream(chance);
    match chance.below(16) {
        0..5 => {
            let stream = *next;
            *next += 2;
            let block = headers(chance);
            if chance.one_in(4) {
                let (one, other) = block.split_at(chance.below(block.len()));
                let end = u8::from(!chance.one_in(8)) << 2;
                let head = [frame(1, 0, stream, one), frame(9, end, stream, other)].concat();
                return [head, frame(0, 1, stream, &mark())].concat();
            }
            let body = frame(0, u8::from(!chance.one_in(4)), stream, &mark());
            [frame(1, 4 | u8::from(chance.one_in(16)), stream, &block), body].concat()
        }
        5 => frame(0, chance.byte(), odd, &mark()),
        6 => frame(3, 0, odd, &[0, 0, 0, chance.byte()]),
        7 => {
            let kind = u8::try_from(chance.between(1, 9)).unwrap_or(1);
            let value = [0, 1, 0x7fff_ffff, u32::MAX, 16_384][chance.below(5)];
            let setting = [&[0, kind][..], &value.to_be_bytes()].concat();
            frame(4, 0, 0, &setting.repeat(chance.between(1, 3)))
        }
        8 => frame(4, 1, odd & 1, b""),
        9 => frame(6, chance.byte() & 1, odd & 1, &chance.number().to_be_bytes()),
        10 => {
            let by = [0, 1, 0x7fff_ffff, u32::MAX][chance.below(4)];
            frame(8, 0, odd, &by.to_be_bytes())
        }
        11 => frame(2, 0, odd, &[0, 0, 0, 1, chance.byte()]),
        12 => frame(7, 0, 0, &[0, 0, 0, 1, 0, 0, 0, chance.byte()]),
        13 => frame(5, 4, odd, &[0, 0, 0, 2, 0x82]),
        14 => frame(9, 4, odd, &headers(chance)),
        _ => {
            let count = chance.below(40);
            let payload = chance.bytes(count);
            frame(chance.byte() % 16, chance.byte(), odd, &payload)
        }
    }
}

/// What one connection sends.
pub fn connection(chance: &mut Chance) -> Vec<u8> {
    if chance.one_in(8) {
        return http1(chance);
    }
    let mut sent = if chance.one_in(64) { Vec::new() } else { PREFACE.to_vec() };
    if !chance.one_in(16) {
        sent.extend(frame(4, 0, 0, b""));
    }
    let mut next = 1;
    for _ in 0..chance.between(1, 12) {
        let frames = frames(chance, &mut next);
        let times = if chance.one_in(40) { chance.between(2, 1_500) } else { 1 };
        sent.extend(frames.repeat(times));
    }
    sent
}

fn http1(chance: &mut Chance) -> Vec<u8> {
    let mut sent = Vec::new();
    for _ in 0..chance.between(1, 4) {
        let body = mark();
        let path = *chance.pick(&PATHS);
        let kind = ["application/grpc-web+proto", "application/grpc-web-text", "text/plain"]
            [chance.below(3)];
        sent.extend(
            format!("POST {path} HTTP/1.1\r\nhost: fuzz\r\ncontent-type: {kind}\r\n").bytes(),
        );
        match chance.below(5) {
            0 => {
                sent.extend(
                    format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n", body.len()).bytes(),
                );
                sent.extend([&body[..], b"\r\n0\r\n\r\n"].concat());
            }
            1 => sent.extend(b"upgrade: h2c\r\nconnection: upgrade, http2-settings\r\n\r\n"),
            2 => {
                sent.extend(
                    [b"x: y\r\n".repeat(chance.between(1, 200)), b"\r\n".to_vec()].concat(),
                );
            }
            _ => {
                sent.extend(format!("content-length: {}\r\n\r\n", body.len()).bytes());
                sent.extend(body);
            }
        }
    }
    sent
}
