//! The SPIFFE ID of a client certificate.
//!
//! Only a URI of the subject alternative name counts, and only if it is the only one. The common
//! name is never an identity: certificate authorities that issue host certificates let callers
//! choose it.

use rustls_pki_types::CertificateDer;
use webpki::EndEntityCert;

use super::spiffe::SpiffeId;

mod names;

/// A certificate whose names are malformed, or ambiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ambiguous;

/// The ID of a certificate that was verified; none if it has no URI.
pub(super) fn spiffe_id(certificate: &CertificateDer<'_>) -> Result<Option<SpiffeId>, Ambiguous> {
    let parsed = EndEntityCert::try_from(certificate).map_err(|_| Ambiguous)?;
    // `valid_uri_names` leaves out what is no UTF-8, and whatever follows a malformed name. So
    // the names are counted as well.
    let count = names::count_uris(certificate).ok_or(Ambiguous)?;
    let uris: Vec<&str> = parsed.valid_uri_names().take(2).collect();
    match (count, uris.as_slice()) {
        (0, []) => Ok(None),
        (1, [uri]) => SpiffeId::parse(uri).map(Some).ok_or(Ambiguous),
        _ => Err(Ambiguous),
    }
}
