//! Elements of DER, as far as certificates have them: what rustls and webpki check, and do not
//! return. <https://www.itu.int/rec/T-REC-X.690>

/// The tag and the content of the first element, and what follows it.
pub(crate) fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
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

/// The content of the first element, which must have the tag, and what follows it.
pub(crate) fn expect(bytes: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let (tag, content, rest) = element(bytes)?;
    (tag == wanted).then_some((content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_every_form_are_read() {
        for length in [0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x1_0000] {
            let content = vec![7; length];
            let head = match length {
                ..0x80 => vec![u8::try_from(length).unwrap()],
                _ => {
                    let digits = length.to_be_bytes();
                    let zeros = digits.iter().take_while(|digit| **digit == 0).count();
                    let digits = digits[zeros..].to_vec();
                    [vec![0x80 | u8::try_from(digits.len()).unwrap()], digits].concat()
                }
            };
            let whole = [&[0x04], &*head, &content, b"rest"].concat();
            assert_eq!(element(&whole), Some((0x04, &*content, &b"rest"[..])), "{length}");
            assert_eq!(expect(&whole, 0x04), Some((&*content, &b"rest"[..])), "{length}");
            assert_eq!(expect(&whole, 0x05), None, "{length}");
            let cut = &whole[..whole.len() - 5];
            assert_eq!(element(cut).is_some(), length == 0 && cut.len() == 2, "{length}");
        }
    }

    #[test]
    fn what_is_no_element_is_none() {
        // Without a length, of an indefinite one, of four digits, and of digits that are cut off.
        for bytes in [&b""[..], b"\x04", b"\x04\x80\0\0", b"\x04\x84\0\0\0\0", b"\x04\x82\x01"] {
            assert_eq!(element(bytes), None, "{bytes:?}");
        }
    }
}
