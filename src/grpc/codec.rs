//! The protobuf codec, with two differences: a message that is not protobuf is
//! the sender's fault, not this server's; and a call takes the memory that its
//! messages need.

use std::marker::PhantomData;

use prost::Message;
use tonic::{
    Status,
    codec::{
        BufferSettings, Codec as TonicCodec, DecodeBuf, Decoder as TonicDecoder, EncodeBuf,
        Encoder as TonicEncoder,
    },
};
use tonic_prost::{ProstDecoder, ProstEncoder};

use super::status::Problem;

/// What a call sets aside for a message before it knows the length, in bytes:
/// most fit. tonic's own codec takes 8 KiB, twice a call, and a call may wait
/// for minutes.
const BUFFER: usize = 256;
/// How much is encoded before it is sent, in bytes; tonic's own figure.
const YIELD_THRESHOLD: usize = 32 * 1024;

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
        self.0
            .decode(buffer)
            .map_err(|status| Problem::Unreadable(status.message().to_owned().into()).into())
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}
