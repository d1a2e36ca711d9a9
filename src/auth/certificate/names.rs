//! How many URIs the subject alternative name of a certificate has.

use crate::der::{element, expect};

const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;
const OCTET_STRING: u8 = 0x04;
/// `[3] EXPLICIT`, the extensions of a certificate.
const EXTENSIONS: u8 = 0xa3;
/// `[6] IMPLICIT`, a name that is a URI.
const URI: u8 = 0x86;
/// The tags of the nine kinds of names.
const NAMES: [u8; 9] = [0xa0, 0x81, 0x82, 0xa3, 0xa4, 0xa5, URI, 0x87, 0x88];
/// 2.5.29.17.
const SUBJECT_ALT_NAME: [u8; 3] = [0x55, 0x1d, 0x11];

/// How many URIs the certificate has; none if it is malformed.
pub(super) fn count_uris(certificate: &[u8]) -> Option<usize> {
    let (certificate, _) = expect(certificate, SEQUENCE)?;
    let (mut body, _) = expect(certificate, SEQUENCE)?;
    while !body.is_empty() {
        let (tag, content, rest) = element(body)?;
        if tag == EXTENSIONS {
            return in_extensions(expect(content, SEQUENCE)?.0);
        }
        body = rest;
    }
    Some(0)
}

fn in_extensions(mut extensions: &[u8]) -> Option<usize> {
    let mut count = 0;
    while !extensions.is_empty() {
        let (extension, rest) = expect(extensions, SEQUENCE)?;
        let (id, mut value) = expect(extension, OBJECT_IDENTIFIER)?;
        if id == SUBJECT_ALT_NAME {
            // Before the value, there may be a boolean: whether it is critical.
            let (tag, _, after) = element(value)?;
            if tag != OCTET_STRING {
                value = after;
            }
            let (names, _) = expect(expect(value, OCTET_STRING)?.0, SEQUENCE)?;
            count += in_names(names)?;
        }
        extensions = rest;
    }
    Some(count)
}

fn in_names(mut names: &[u8]) -> Option<usize> {
    let mut count = 0;
    while !names.is_empty() {
        let (tag, _, rest) = element(names)?;
        if !NAMES.contains(&tag) {
            return None;
        }
        count += usize::from(tag == URI);
        names = rest;
    }
    Some(count)
}
