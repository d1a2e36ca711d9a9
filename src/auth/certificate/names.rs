//! How many URIs the subject alternative name of a certificate has: just enough DER.

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

/// The content of the first element, which must have the tag, and what follows it.
fn expect(bytes: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let (tag, content, rest) = element(bytes)?;
    (tag == wanted).then_some((content, rest))
}

/// The tag and the content of the first element, and what follows it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, bytes) = bytes.split_first()?;
    let (&first, mut bytes) = bytes.split_first()?;
    let length = if first < 0x80 {
        usize::from(first)
    } else {
        // A certificate is shorter than 2^24 bytes.
        let digits = usize::from(first & 0x7f);
        if !(1..=3).contains(&digits) {
            return None;
        }
        let (number, rest) = bytes.split_at_checked(digits)?;
        bytes = rest;
        number.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    };
    let (content, rest) = bytes.split_at_checked(length)?;
    Some((tag, content, rest))
}
