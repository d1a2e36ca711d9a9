//! Signatures of Slack.

use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit as _, Mac as _};
use http::HeaderMap;
use sha2::Sha256;

const OLDEST_SIGNATURE: u64 = 5 * 60;

pub(super) fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// <https://docs.slack.dev/authentication/verifying-requests-from-slack>
pub(super) fn is_signed(headers: &HeaderMap, body: &[u8], secret: &str) -> bool {
    #[expect(clippy::disallowed_methods, reason = "the sender signs the time of its clock")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let check = || {
        let signed_at = number(headers, "x-slack-request-timestamp")?;
        let signature = headers.get("x-slack-signature")?.to_str().ok()?.strip_prefix("v0=")?;
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).ok()?;
        mac.update(format!("v0:{signed_at}:").as_bytes());
        mac.update(body);
        mac.verify_slice(&from_hex(signature)?).ok()?;
        Some(now.abs_diff(signed_at) <= OLDEST_SIGNATURE)
    };
    !secret.is_empty() && check() == Some(true)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<_>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    digits?.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair.get(1)?).ok()).collect()
}
