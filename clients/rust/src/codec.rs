//! How results are stored.

use serde::{Serialize, de::DeserializeOwned};

use crate::errors::{BoxError, Error};

const JSON_TYPE: &str = "application/json";
const BYTES_TYPE: &str = "application/octet-stream";

/// A result as the server stores it. Empty if nothing was returned.
#[derive(Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stored {
    /// At most 64 KiB.
    pub data: Vec<u8>,
    /// The name of its type, such as a media type.
    pub result_type: String,
}

impl Stored {
    /// A result of a [`Codec`].
    #[must_use]
    pub fn new(data: impl Into<Vec<u8>>, result_type: impl Into<String>) -> Self {
        Self { data: data.into(), result_type: result_type.into() }
    }

    /// Whether nothing is stored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.data.is_empty() && self.result_type.is_empty()
    }

    /// The value, by [`Json`]; `None` if nothing is stored.
    ///
    /// # Errors
    ///
    /// [`Error::Undecodable`]: it is not JSON of this type.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        self.decode_by(from_json)
    }

    /// The value, by a codec; `None` if nothing is stored.
    ///
    /// # Errors
    ///
    /// [`Error::Undecodable`]: the codec cannot read it.
    pub fn decode_with<T>(&self, codec: &impl Codec<T>) -> Result<Option<T>, Error> {
        self.decode_by(|stored| codec.decode(stored))
    }

    fn decode_by<T>(
        &self,
        decode: impl Fn(&Self) -> Result<T, BoxError>,
    ) -> Result<Option<T>, Error> {
        if self.is_empty() {
            return Ok(None);
        }
        decode(self).map(Some).map_err(|problem| Error::Undecodable {
            result_type: self.result_type.clone(),
            problem,
        })
    }
}

/// Shows no content, which may be secret.
impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stored({} bytes of {:?})", self.data.len(), self.result_type)
    }
}

/// How a handler's result is stored, so that a duplicate gets the same value.
pub trait Codec<T>: Send + Sync {
    /// The stored form, of at most 64 KiB. An empty one stores nothing.
    ///
    /// # Errors
    ///
    /// If the value has no such form; the turn then fails.
    fn encode(&self, value: &T) -> Result<Stored, BoxError>;

    /// The value of a stored form. An empty one is asked for only where a duplicate has to get a
    /// value.
    ///
    /// # Errors
    ///
    /// If this is not the form of such a value.
    fn decode(&self, stored: &Stored) -> Result<T, BoxError>;
}

/// The default [`Codec`]: compact JSON. Nothing is stored for what is `null` in JSON, such as `()`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Json;

impl<T: Serialize + DeserializeOwned> Codec<T> for Json {
    fn encode(&self, value: &T) -> Result<Stored, BoxError> {
        let data = serde_json::to_vec(value)?;
        if data == b"null" {
            return Ok(Stored::default());
        }
        Ok(Stored::new(data, JSON_TYPE))
    }

    fn decode(&self, stored: &Stored) -> Result<T, BoxError> {
        from_json(stored)
    }
}

fn from_json<T: DeserializeOwned>(stored: &Stored) -> Result<T, BoxError> {
    if stored.is_empty() {
        return Ok(serde_json::from_str("null")?);
    }
    if stored.result_type != JSON_TYPE {
        return Err(format!("it has the type {:?}, and not JSON", stored.result_type).into());
    }
    Ok(serde_json::from_slice(&stored.data)?)
}

/// A [`Codec`] that stores bytes as they are.
#[derive(Debug, Clone, Copy, Default)]
pub struct RawBytes;

impl Codec<Vec<u8>> for RawBytes {
    fn encode(&self, value: &Vec<u8>) -> Result<Stored, BoxError> {
        Ok(Stored::new(value.clone(), BYTES_TYPE))
    }

    fn decode(&self, stored: &Stored) -> Result<Vec<u8>, BoxError> {
        if !stored.is_empty() && stored.result_type != BYTES_TYPE {
            return Err(format!("it has the type {:?}, and not bytes", stored.result_type).into());
        }
        Ok(stored.data.clone())
    }
}
