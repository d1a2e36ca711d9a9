//! JSON read only where it is asked: what is not read may hold what no Rust value can, such
//! as half a surrogate pair, `1e400`, or bytes that are not UTF-8.

mod reader;

use std::{borrow::Cow, ops::Range};

use self::reader::{Reader, plain};
use super::Unreadable;
use crate::domain::Id;

/// The fields of a text that were asked for, with all that leads to them.
#[derive(Debug)]
pub(super) struct Document<'a> {
    /// Each node comes before the nodes within it.
    nodes: Vec<Node<'a>>,
}

#[derive(Debug)]
struct Node<'a> {
    step: Step,
    parent: usize,
    /// Where the nodes within it end.
    end: usize,
    value: Value<'a>,
}

/// How a node is reached from its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Root,
    Field(&'static str),
    Item(usize),
}

#[derive(Debug)]
enum Value<'a> {
    Object,
    Array,
    /// As it stands in the text, within quotation marks.
    String(&'a [u8]),
    /// Text as it is.
    Plain(&'a [u8]),
    /// A number or a literal.
    Bare(&'a [u8]),
    /// What is nested too deep.
    Unread,
}

impl<'a> Document<'a> {
    /// Reads the fields of `text` that are called one of `names`, wherever nothing but such
    /// fields and items of arrays leads to them.
    pub(super) fn parse(text: &'a [u8], names: &[&'static str]) -> Result<Self, Unreadable> {
        Reader::read(text, names)
            .map(|nodes| Self { nodes })
            .map_err(|problem| Unreadable::new(format!("not JSON: {problem}")))
    }

    /// The same of fields that are given one by one.
    pub(super) fn of_fields(
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        names: &[&'static str],
    ) -> Self {
        let root = Node { step: Step::Root, parent: 0, end: 0, value: Value::Object };
        let mut nodes = vec![root];
        for (name, value) in fields {
            if let Some(name) = names.iter().find(|known| known.as_bytes() == name) {
                let (step, end) = (Step::Field(name), nodes.len() + 1);
                nodes.push(Node { step, parent: 0, end, value: Value::Plain(value) });
            }
        }
        nodes[0].end = nodes.len();
        Self { nodes }
    }

    pub(super) const fn root(&self) -> Json<'_, 'a> {
        Json { document: self, at: Some(0) }
    }
}

/// A value, or that there is none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Json<'d, 'a> {
    document: &'d Document<'a>,
    at: Option<usize>,
}

impl<'d, 'a> Json<'d, 'a> {
    fn node(self) -> Option<&'d Node<'a>> {
        self.at.map(|at| &self.document.nodes[at])
    }

    fn value(self) -> Option<&'d Value<'a>> {
        self.node().map(|node| &node.value)
    }

    /// The nodes within this one.
    fn within(self) -> Range<usize> {
        self.at.map_or(0..0, |at| at + 1..self.document.nodes[at].end)
    }

    /// A field of an object. Of equal names the last counts.
    pub(super) fn get(self, name: &str) -> Self {
        let is_it = |node: &Node<'_>| {
            Some(node.parent) == self.at && matches!(node.step, Step::Field(field) if field == name)
        };
        let at = self.within().rev().find(|&at| is_it(&self.document.nodes[at]));
        Self { at, ..self }
    }

    /// The items of an array.
    pub(super) fn items(self) -> impl Iterator<Item = Self> {
        let is_array = matches!(self.value(), Some(Value::Array));
        let mut rest = if is_array { self.within() } else { 0..0 };
        std::iter::from_fn(move || {
            let at = rest.next()?;
            rest.start = self.document.nodes[at].end;
            Some(Self { at: Some(at), ..self })
        })
    }

    pub(super) fn is_object(self) -> bool {
        matches!(self.value(), Some(Value::Object))
    }

    pub(super) fn is_array(self) -> bool {
        matches!(self.value(), Some(Value::Array))
    }

    pub(super) fn is_true(self) -> bool {
        matches!(self.value(), Some(Value::Bare(b"true")))
    }

    /// Whether it is a string, though it may be empty or invalid.
    pub(super) fn is_string(self) -> bool {
        matches!(self.value(), Some(Value::String(_) | Value::Plain(_)))
    }

    /// A string; none for anything else, and for an empty one.
    ///
    /// # Errors
    /// When it is not valid Unicode.
    pub(super) fn text(self) -> Result<Option<Cow<'a, str>>, Unreadable> {
        let invalid =
            |problem: &str| Unreadable::new(format!("{}: invalid Unicode: {problem}", self.path()));
        let text = match self.value() {
            Some(&Value::String(quoted)) if quoted.contains(&b'\\') => {
                let read = serde_json::from_slice::<String>(quoted);
                Cow::Owned(read.map_err(|error| invalid(plain(&error.to_string())))?)
            }
            Some(&Value::String(quoted)) => utf8(&quoted[1..quoted.len() - 1]).map_err(invalid)?,
            Some(&Value::Plain(bytes)) => utf8(bytes).map_err(invalid)?,
            _ => return Ok(None),
        };
        Ok((!text.is_empty()).then_some(text))
    }

    /// A string, or a whole number as it is written.
    ///
    /// # Errors
    /// When it is not valid Unicode.
    pub(super) fn scalar(self) -> Result<Option<Cow<'a, str>>, Unreadable> {
        match self.value() {
            Some(&Value::Bare(bytes)) if is_whole_number(bytes) => Ok(utf8(bytes).ok()),
            _ => self.text(),
        }
    }

    /// The string or whole number as an id.
    ///
    /// # Errors
    /// When it is not valid Unicode, or breaks a rule of ids.
    pub(super) fn id(self) -> Result<Option<Id>, Unreadable> {
        let Some(text) = self.scalar()? else { return Ok(None) };
        Id::optional("", text.into_owned())
            .map_err(|invalid| Unreadable::new(format!("{}: {}", self.path(), invalid.problem)))
    }

    /// Where it stands, such as `actions[0].value`.
    fn path(self) -> String {
        let Some(node) = self.node() else { return String::new() };
        let parent = Self { at: Some(node.parent), ..self };
        match node.step {
            Step::Root => String::new(),
            Step::Item(index) => format!("{}[{index}]", parent.path()),
            Step::Field(name) if node.parent == 0 => name.to_owned(),
            Step::Field(name) => format!("{}.{name}", parent.path()),
        }
    }
}

/// The first of `values` that is a string or a whole number.
///
/// # Errors
/// When one that is looked at is not valid Unicode.
pub(super) fn first_scalar<'a, const N: usize>(
    values: [Json<'_, 'a>; N],
) -> Result<Option<Cow<'a, str>>, Unreadable> {
    for value in values {
        if let Some(text) = value.scalar()? {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

/// The first of `values` that is a text.
///
/// # Errors
/// When one that is looked at is not valid Unicode.
pub(super) fn first<'a, const N: usize>(
    values: [Json<'_, 'a>; N],
) -> Result<Option<Cow<'a, str>>, Unreadable> {
    for value in values {
        if let Some(text) = value.text()? {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

/// The first of `values` that is an id.
///
/// # Errors
/// When one that is looked at is no id.
pub(super) fn first_id<const N: usize>(
    values: [Json<'_, '_>; N],
) -> Result<Option<Id>, Unreadable> {
    for value in values {
        if let Some(id) = value.id()? {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

fn is_whole_number(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
}

fn utf8(bytes: &[u8]) -> Result<Cow<'_, str>, &'static str> {
    std::str::from_utf8(bytes).map(Cow::Borrowed).map_err(|_| "not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 4] = ["a", "b", "id", "list"];

    fn text(text: &str, path: &[&str]) -> Option<String> {
        let document = Document::parse(text.as_bytes(), &NAMES).unwrap();
        let value = path.iter().fold(document.root(), |value, name| value.get(name));
        value.text().unwrap().map(Cow::into_owned)
    }

    fn problem(text: impl AsRef<[u8]>) -> String {
        let document = Document::parse(text.as_ref(), &NAMES);
        let read = document.and_then(|document| {
            document.root().get("a").text()?;
            document.root().get("list").items().try_for_each(|item| item.get("id").id().map(drop))
        });
        read.unwrap_err().to_string()
    }

    #[test]
    fn a_field_is_found_where_it_stands() {
        let json = r#" {"x": [1, {"a": 0}], "a" : {"id":"1", "b":{"id":"2"}} , "id" : "3"} "#;
        assert_eq!(text(json, &["a", "id"]).unwrap(), "1");
        assert_eq!(text(json, &["a", "b", "id"]).unwrap(), "2");
        assert_eq!(text(json, &["id"]).unwrap(), "3");
        assert_eq!(text(json, &["b"]), None);
        assert_eq!(text(json, &["b", "id"]), None);
        assert_eq!(text(json, &["a"]), None);
    }

    #[test]
    fn the_last_of_equal_names_counts_however_it_is_spelled() {
        assert_eq!(text(r#"{"id":"1","\u0069d":"2"}"#, &["id"]).unwrap(), "2");
        assert_eq!(text(r#"{"a":{"id":"1"},"a":{}}"#, &["a", "id"]), None);
    }

    #[test]
    fn only_strings_are_text() {
        for (value, read) in [
            (r#""x\/\u00e9\n""#, Some("x/é\n")),
            ("\"\"", None),
            ("1", None),
            ("1e400", None),
            ("true", None),
            ("null", None),
            ("[\"x\"]", None),
        ] {
            assert_eq!(text(&format!("{{\"a\":{value}}}"), &["a"]).as_deref(), read, "{value}");
        }
        let json = br#"{"list":[-12345678901234567890,1.0,1e2,"x",true]}"#;
        let document = Document::parse(json, &NAMES).unwrap();
        let scalars = document.root().get("list").items().map(|item| item.scalar().unwrap());
        let expected = [Some("-12345678901234567890"), None, None, Some("x"), None];
        assert_eq!(scalars.collect::<Vec<_>>(), expected.map(|text| text.map(Cow::from)));
    }

    #[test]
    fn items_are_counted_whatever_they_are() {
        let json = br#"{"list":[1,{"id":"x"},[{"id":"y"}],{"id":"z"}]}"#;
        let document = Document::parse(json, &NAMES).unwrap();
        let ids = document.root().get("list").items().map(|item| item.get("id").text().unwrap());
        let ids: Vec<_> = ids.collect();
        assert_eq!(ids, [None, Some("x".into()), None, Some("z".into())]);
        assert_eq!(document.root().items().count(), 0);
    }

    #[test]
    fn a_problem_names_its_place() {
        assert_eq!(
            problem("{\"a\":\"\\ud83d\"}"),
            "a: invalid Unicode: unexpected end of hex escape"
        );
        assert_eq!(problem(b"{\"a\":\"\xff\"}"), "a: invalid Unicode: not UTF-8");
        assert_eq!(
            problem(r#"{"list":[0,{"id":"x\u0007"}]}"#),
            "list[1].id: must not contain control characters"
        );
    }

    #[test]
    fn what_is_not_read_need_not_be_a_value() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let objects = format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000));
        let json = format!(
            r#"{{"n":1e400,"\ud83d":"\udfff","deep":{deep},"a":{objects},"b":{deep},"id":"x"}}"#
        );
        assert_eq!(text(&json, &["id"]).unwrap(), "x");
        let bytes = b"{\"\xff\":\"\xff\",\"id\":\"x\",\"list\":\"\\ud83d\"}";
        let document = Document::parse(bytes, &NAMES).unwrap();
        assert_eq!(document.root().get("id").text().unwrap().unwrap(), "x");
    }
}
