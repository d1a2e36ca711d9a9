//! Bearer tokens.
//!
//! A token is found by its digest: the digest of what a caller presents is looked up in a map.
//! No token is compared with another, and none is kept, so the time of a look-up says nothing
//! about how much of a token is right. A fast hash is enough, because a token is 256 random
//! bits.

use std::fmt::{self, Write as _};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    digest::{SHA256, digest},
    rand::{SecureRandom as _, SystemRandom},
};

use super::Unauthenticated;

/// Begins every token, so that scanners for leaked secrets find it.
pub const PREFIX: &str = "once_";
/// The random bytes of a token.
const RANDOM_BYTES: usize = 32;
/// The length of a token: the prefix, and the random bytes in base64.
const TOKEN_BYTES: usize = PREFIX.len() + 43;
/// The longest bearer token, which is a JWT.
pub const MAX_BEARER_BYTES: usize = 16 * 1024;

/// The SHA-256 of a token.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of a token.
    #[must_use]
    pub fn of(token: &[u8]) -> Self {
        let mut bytes = [0; 32];
        for (to, from) in bytes.iter_mut().zip(digest(&SHA256, token).as_ref()) {
            *to = *from;
        }
        Self(bytes)
    }

    /// The digest that 64 hexadecimal digits are.
    #[must_use]
    pub fn from_hex(hex: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        let mut digits = hex.bytes();
        for byte in &mut bytes {
            let high = char::from(digits.next()?).to_digit(16)?;
            let low = char::from(digits.next()?).to_digit(16)?;
            *byte = u8::try_from(high * 16 + low).ok()?;
        }
        digits.next().is_none().then_some(Self(bytes))
    }

    /// The digest as the file has it.
    #[must_use]
    pub fn to_hex(&self) -> String {
        let mut hex = String::with_capacity(2 * self.0.len());
        for byte in self.0 {
            let _ = write!(hex, "{byte:02x}");
        }
        hex
    }
}

/// Without the digest.
impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(…)")
    }
}

/// A new token.
///
/// # Errors
/// If the system returns no random bytes.
pub fn generate() -> anyhow::Result<String> {
    let mut bytes = [0; RANDOM_BYTES];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("the system returned no random bytes"))?;
    Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
}

/// What an `authorization` header holds.
#[derive(Debug)]
pub(super) enum Bearer<'a> {
    /// A token of [`generate`], by its digest.
    Token(Digest),
    /// Text that may be a JWT.
    Jwt(&'a str),
}

/// The bearer token among all values of the `authorization` header; none if there is no value.
pub(super) fn bearer<'a>(values: &[&'a [u8]]) -> Result<Option<Bearer<'a>>, Unauthenticated> {
    let value = match values {
        [] => return Ok(None),
        [value] => *value,
        _ => return Err(Unauthenticated::Malformed),
    };
    let token = value.strip_prefix(b"Bearer ").ok_or(Unauthenticated::Malformed)?;
    if token.len() > MAX_BEARER_BYTES || !is_token_text(token) {
        return Err(Unauthenticated::Malformed);
    }
    if token.starts_with(PREFIX.as_bytes()) {
        // A shorter one is no token of 256 bits, whatever the file says.
        return if token.len() == TOKEN_BYTES {
            Ok(Some(Bearer::Token(Digest::of(token))))
        } else {
            Err(Unauthenticated::Malformed)
        };
    }
    let text = std::str::from_utf8(token).map_err(|_| Unauthenticated::Malformed)?;
    Ok(Some(Bearer::Jwt(text)))
}

/// Whether the text is of base64url and points. Every byte takes the same steps, so that the
/// time does not depend on the text.
#[expect(clippy::needless_bitwise_bool, reason = "a lazy operator is a branch")]
fn is_token_text(text: &[u8]) -> bool {
    // `-` and `.` are neighbours.
    let within = |byte: u8, first: u8, count: u8| byte.wrapping_sub(first) < count;
    text.iter().fold(true, |is_text, &byte| {
        let letter = within(byte | 0x20, b'a', 26);
        let digit = within(byte, b'0', 10);
        let other = within(byte, b'-', 2) | within(byte, b'_', 1);
        is_text & (letter | digit | other)
    })
}
