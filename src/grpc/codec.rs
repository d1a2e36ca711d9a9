//! The protobuf codec, with three differences: a message that is not protobuf is
//! the sender's fault, not this server's; a call takes the memory that its
//! messages need; and a message of more fields than any request has is refused
//! before it is decoded.

use std::marker::PhantomData;

use prost::{
    Message,
    bytes::Buf as _,
    encoding::{DecodeContext, decode_key, skip_field},
};
use tonic::{
    Status,
    codec::{
        BufferSettings, Codec as TonicCodec, DecodeBuf, Decoder as TonicDecoder, EncodeBuf,
        Encoder as TonicEncoder,
    },
};
use tonic_prost::{ProstDecoder, ProstEncoder};

use super::status::Problem;
use crate::domain::limits::MAX_BATCH_ITEMS;

/// What a call sets aside for a message before it knows the length, in bytes:
/// most fit. tonic's own codec takes 8 KiB, twice a call, and a call may wait
/// for minutes.
const BUFFER: usize = 256;
/// How much is encoded before it is sent, in bytes; tonic's own figure.
const YIELD_THRESHOLD: usize = 32 * 1024;

/// The most fields of one message, repeated ones counted each time. An empty item of a batch is
/// two bytes on the wire and hundreds in memory, and half a million of them compress to one KiB.
const MAX_FIELDS: usize = 4 * MAX_BATCH_ITEMS;

/// Whether a message has more than [`MAX_FIELDS`]. What is not protobuf is left to the decoder.
fn has_too_many_fields(mut message: &[u8]) -> bool {
    let mut skip = || {
        let (tag, wire_type) = decode_key(&mut message).ok()?;
        skip_field(wire_type, tag, &mut message, DecodeContext::default()).ok()
    };
    (0..=MAX_FIELDS).all(|_| skip().is_some())
}

/// Like [`tonic_prost::ProstCodec`], but answers `INVALID_ARGUMENT` where that
/// one says `INTERNAL`, which is for faults that are logged and looked into.
#[derive(Debug, Clone)]
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> TonicCodec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = Encoder<T>;
    type Decoder = Decoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        Encoder(ProstEncoder::new(settings()))
    }

    fn decoder(&mut self) -> Self::Decoder {
        Decoder(ProstDecoder::new(settings()))
    }
}

fn settings() -> BufferSettings {
    BufferSettings::new(BUFFER, YIELD_THRESHOLD)
}

/// Encodes protobuf messages.
#[derive(Debug, Clone)]
pub struct Encoder<T>(ProstEncoder<T>);

impl<T: Message> TonicEncoder for Encoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, message: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(message.encoded_len());
        self.0.encode(message, buffer)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// Decodes protobuf messages.
#[derive(Debug, Clone)]
pub struct Decoder<U>(ProstDecoder<U>);

impl<U: Message + Default> TonicDecoder for Decoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // The buffer is in one piece, so this is the whole message.
        if has_too_many_fields(buffer.chunk()) {
            let problem = format!("has more than {MAX_FIELDS} fields");
            return Err(Problem::Unreadable(problem.into()).into());
        }
        self.0
            .decode(buffer)
            .map_err(|status| Problem::Unreadable(status.message().to_owned().into()).into())
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_with_their_content_skipped() {
        // A message of fields, one of each kind, and the most that are allowed.
        let kinds: [&[u8]; 5] = [
            b"\x08\xff\x01",
            b"\x11\0\0\0\0\0\0\0\0",
            b"\x1a\x02\x0a\0",
            b"\x25\0\0\0\0",
            b"\x2b\x08\0\x2c",
        ];
        for kind in kinds {
            assert!(!has_too_many_fields(&kind.repeat(MAX_FIELDS)), "{kind:?}");
            assert!(has_too_many_fields(&kind.repeat(MAX_FIELDS + 1)), "{kind:?}");
        }
        let inner = b"\x0a\0".repeat(60);
        assert!(!has_too_many_fields(&[b"\x0a\x78", &inner[..]].concat().repeat(MAX_FIELDS)));
        for cut in [&b""[..], b"\x0a", b"\x0a\x05x", b"\x0f\0", b"\xff"] {
            assert!(!has_too_many_fields(cut), "{cut:?}");
        }
    }
}
