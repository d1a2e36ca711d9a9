//! Webhooks that follow the Standard Webhooks specification.

use super::{Headers, Named, Unreadable};

/// The header of a message's id.
pub(super) const ID: &str = "webhook-id";

/// The id of a message, which is the same however often it is sent. Whose message it is the
/// address says, and the body is the sender's own.
/// <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md#webhook-headers-sending-metadata-to-consumers>
pub(super) fn read(headers: &Headers<'_>) -> Result<Named, Unreadable> {
    let names = headers.id(ID)?.into_iter().collect();
    Ok(Named { names, ..Named::default() })
}
