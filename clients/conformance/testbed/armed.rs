//! A fault that waits for an HTTP/2 DATA frame of one direction.

/// What a client sends before its first frame:
/// <https://www.rfc-editor.org/rfc/rfc9113.html#section-3.4>.
const PREFACE: usize = 24;
/// <https://www.rfc-editor.org/rfc/rfc9113.html#section-4.1>
const FRAME_HEADER: usize = 9;
const DATA: u8 = 0;

/// The frames of one direction of one connection, as its bytes pass.
pub struct Frames {
    /// How many bytes are not read: of the preface, or of a frame's payload.
    skip: usize,
    header: Vec<u8>,
}

impl Frames {
    /// Those that a client sends.
    pub fn to_server() -> Self {
        Self { skip: PREFACE, header: Vec::new() }
    }

    /// Those that a server sends.
    pub fn to_client() -> Self {
        Self { skip: 0, header: Vec::new() }
    }

    /// Reads `bytes` up to the next DATA frame that is not empty, and returns how many bytes come
    /// before it; none if there is none.
    fn next_data(&mut self, bytes: &[u8], from: &mut usize) -> Option<usize> {
        while *from < bytes.len() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len() - *from);
                self.skip -= skipped;
                *from += skipped;
                continue;
            }
            self.header.push(bytes[*from]);
            *from += 1;
            if self.header.len() == FRAME_HEADER {
                let &[high, middle, low, kind, ..] = &self.header[..] else { unreachable!() };
                self.skip = u32::from_be_bytes([0, high, middle, low]) as usize;
                self.header.clear();
                // An empty one only ends a stream, which not every library sends.
                if kind == DATA && self.skip > 0 {
                    return Some(from.saturating_sub(FRAME_HEADER));
                }
            }
        }
        None
    }
}

/// A cut of one direction, over all connections.
#[derive(Default)]
pub struct Armed {
    /// How many DATA frames still pass. None: it is not armed.
    frames: Option<u64>,
}

impl Armed {
    pub fn cut_before_data(&mut self, skip: u64) {
        self.frames = Some(skip);
    }

    pub fn disarm(&mut self) {
        self.frames = None;
    }

    /// Counts bytes that are about to pass. Returns after how many of them everything is cut.
    pub fn count(&mut self, frames: &mut Frames, bytes: &[u8]) -> Option<usize> {
        let mut from = 0;
        while let Some(start) = frames.next_data(bytes, &mut from) {
            match self.frames {
                None => {}
                Some(0) => {
                    self.disarm();
                    return Some(start);
                }
                Some(left) => self.frames = Some(left - 1),
            }
        }
        None
    }
}
