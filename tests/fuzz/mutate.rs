//! Mutations that know nothing of a format: bits, lengths, pieces of other inputs.

use crate::chance::Chance;

/// No input is longer, in bytes: a little more than the largest request.
pub const MAX_INPUT: usize = 1_100_000;

/// Bytes that parsers tend to treat in a way of their own.
const TOKENS: [&[u8]; 24] = [
    b"\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\x00\x00\x00",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"\xff\xff\xff\xff\x0f",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\xc0\xaf",
    b"\xf4\x90\x80\x80",
    b"\\ud800",
    b"\\u0000",
    b"\r\n\r\n",
    b"%00",
    b"1e999999",
    b"-9223372036854775808",
    b"18446744073709551616",
    b"{\"a\":",
    b"[[[[[[[[",
    b"}}",
    b"\"",
    b"=",
    b"../",
];

/// Mutates `input` a few times.
pub fn mutate(chance: &mut Chance, input: &mut Vec<u8>, others: &[Vec<u8>]) {
    for _ in 0..chance.between(1, 4) {
        once(chance, input, others);
    }
    input.truncate(MAX_INPUT);
}

fn once(chance: &mut Chance, input: &mut Vec<u8>, others: &[Vec<u8>]) {
    let at = chance.below(input.len() + 1);
    let length = chance.between(1, 16).min(input.len() - at);
    match chance.below(12) {
        0 | 1 if at < input.len() => input[at] ^= 1 << chance.below(8),
        2 if at < input.len() => input[at] = chance.byte(),
        3 => input.truncate(at),
        4 => drop(input.drain(at..at + length)),
        5 => {
            let piece = input[at..at + length].to_vec();
            insert(input, at, &piece);
        }
        6 => insert(input, at, TOKENS[chance.below(TOKENS.len())]),
        // A length that is not true, as protobuf, HTTP/2 and DER write theirs.
        7 => {
            let token = TOKENS[chance.below(TOKENS.len())];
            let end = input.len().min(at + token.len());
            input.splice(at..end, token.iter().copied());
        }
        8 if at < input.len() => {
            let step = u8::try_from(chance.between(1, 3)).unwrap_or(1);
            let is_up = chance.one_in(2);
            input[at] =
                if is_up { input[at].wrapping_add(step) } else { input[at].wrapping_sub(step) };
        }
        9 if !others.is_empty() => {
            let other = chance.pick(others);
            let from = chance.below(other.len() + 1);
            let piece = other[from..other.len().min(from + chance.between(1, 256))].to_vec();
            insert(input, at, &piece);
        }
        10 if !others.is_empty() => {
            let other = chance.pick(others);
            let from = chance.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        // What is repeated often may be nested, or many elements.
        11 if chance.one_in(8) => {
            let times = [3, 30, 300, 3_000][chance.below(4)];
            let piece = input[at..at + length].repeat(times);
            insert(input, at, &piece);
        }
        _ => insert(input, at, &[chance.byte()]),
    }
}

fn insert(input: &mut Vec<u8>, at: usize, piece: &[u8]) {
    input.splice(at..at, piece.iter().copied());
}
