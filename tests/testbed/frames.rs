//! Which bytes a fault counts, however they are split over reads.

use armed::{Armed, Frames};

#[path = "../../clients/conformance/testbed/armed.rs"]
mod armed;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The length of a frame's header.
const HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, 0, 0, 0, 0, 1], payload].concat()
}

/// How many of these bytes pass, if they come in pieces of `size`.
fn passed(armed: &mut Armed, mut frames: Frames, bytes: &[u8], size: usize) -> usize {
    let mut passed = 0;
    for piece in bytes.chunks(size) {
        if let Some(cut) = armed.count(&mut frames, piece) {
            return passed + cut;
        }
        passed += piece.len();
    }
    passed
}

#[test]
fn a_data_frame_is_found_however_it_is_split() {
    // Bytes of a payload look like a frame, and an empty DATA frame is none.
    let headers = frame(HEADERS, &frame(DATA, b"no frame"));
    let (empty, data) = (frame(DATA, b""), frame(DATA, b"message"));
    let sent = [&headers[..], &empty, &data, &headers, &data, &headers].concat();
    let first = headers.len() + empty.len();
    let second = first + data.len() + headers.len();
    let from_client = [PREFACE, &sent].concat();
    for (skip, end) in [(0, Some(first)), (1, Some(second)), (2, None)] {
        for size in 1..=from_client.len() {
            for (frames, sent, before) in [
                (Frames::to_client(), &sent, 0),
                (Frames::to_server(), &from_client, PREFACE.len()),
            ] {
                let mut armed = Armed::default();
                armed.cut_before_data(skip);
                // A part of the header passes if it comes in an earlier piece than its end.
                let expected = end.map_or(sent.len(), |end| {
                    let end = end + before;
                    end.max((end + HEADER - 1) / size * size)
                });
                assert_eq!(passed(&mut armed, frames, sent, size), expected, "{skip}, {size}");
            }
        }
    }
}

#[test]
fn frames_are_counted_over_all_connections() {
    let data = frame(DATA, b"message");
    let mut armed = Armed::default();
    armed.cut_before_data(2);
    let [mut one, mut other] = [Frames::to_client(), Frames::to_client()];
    assert_eq!(armed.count(&mut one, &data), None);
    assert_eq!(armed.count(&mut other, &data), None);
    assert_eq!(armed.count(&mut one, &data), Some(0));
    assert_eq!(armed.count(&mut other, &data), None, "it happens once");

    armed.cut_before_data(0);
    armed.disarm();
    assert_eq!(armed.count(&mut one, &data), None);
}
