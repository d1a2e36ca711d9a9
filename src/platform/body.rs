//! Bodies as HTTP carries them: JSON, or a form with JSON in its field `payload`, or a form.

use std::borrow::Cow;

use percent_encoding::percent_decode;

use super::{Unreadable, json::Document};

/// What some editors and proxies write at the start of UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The body of a delivery.
pub(super) enum Body<'a> {
    Json(&'a [u8]),
    Form(Form<'a>),
}

impl<'a> Body<'a> {
    pub(super) fn of(body: &'a [u8]) -> Self {
        let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body).trim_ascii();
        if is_form(body) { Self::Form(Form::decode(body)) } else { Self::Json(body) }
    }

    /// The fields that are called one of `names`.
    ///
    /// # Errors
    /// When it is not an object.
    pub(super) fn document(&self, names: &[&'static str]) -> Result<Document<'_>, Unreadable> {
        let document = match self {
            Self::Json(text) => Document::parse(text, names)?,
            Self::Form(form) => match form.get("payload") {
                Some(payload) => Document::parse(payload, names)?,
                None => Document::of_fields(form.fields(), names),
            },
        };
        if document.root().is_object() {
            Ok(document)
        } else {
            Err(Unreadable::new("not a JSON object"))
        }
    }
}

/// JSON begins with a mark, a digit or a literal; a form has names and `=`.
fn is_form(body: &[u8]) -> bool {
    body.first().is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
        && body.contains(&b'=')
}

/// A name or a value, decoded.
type Bytes<'a> = Cow<'a, [u8]>;

/// The fields of a form.
/// <https://url.spec.whatwg.org/#application/x-www-form-urlencoded>
pub(super) struct Form<'a>(Vec<(Bytes<'a>, Bytes<'a>)>);

impl<'a> Form<'a> {
    fn decode(body: &'a [u8]) -> Self {
        let fields = body.split(|byte| *byte == b'&').filter(|field| !field.is_empty());
        let halves = fields.map(|field| {
            let end = field.iter().position(|byte| *byte == b'=').unwrap_or(field.len());
            (decoded(&field[..end]), decoded(field.get(end + 1..).unwrap_or_default()))
        });
        Self(halves.collect())
    }

    fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// The value of a field. Of equal names the last counts, as in JSON.
    fn get(&self, name: &str) -> Option<&[u8]> {
        self.fields().filter(|(known, _)| *known == name.as_bytes()).last().map(|(_, value)| value)
    }
}

fn decoded(text: &[u8]) -> Bytes<'_> {
    if !text.contains(&b'+') {
        return percent_decode(text).into();
    }
    let spaced: Vec<u8> = text.iter().map(|&byte| if byte == b'+' { b' ' } else { byte }).collect();
    Cow::Owned(percent_decode(&spaced).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_decoded_as_browsers_encode_it() {
        let form = Form::decode(b"a=1+2%2B3&&b&%63=%E6%89%BF=&a=%zz");
        let fields: Vec<_> = form.fields().collect();
        let expected: [(&[u8], &[u8]); 4] =
            [(b"a", b"1 2+3"), (b"b", b""), (b"c", "承=".as_bytes()), (b"a", b"%zz")];
        assert_eq!(fields, expected);
        assert_eq!(form.get("a"), Some(&b"%zz"[..]));
        assert_eq!(form.get("d"), None);
    }
}
