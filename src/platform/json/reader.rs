//! One pass over a text.

use serde::de::IgnoredAny;
use serde_json::Deserializer;

use super::{Node, Step, Value};

/// How deep fields are looked for: what is nested deeper is passed over.
const MAX_DEPTH: usize = 8;

/// An error of the library's without the position, which it counts from another start.
pub(super) fn plain(error: &str) -> &str {
    error.split(" at line ").next().unwrap_or_default()
}

/// Walks the objects and arrays that lead to a field; the library reads everything else.
pub(super) struct Reader<'a, 'n> {
    text: &'a [u8],
    at: usize,
    names: &'n [&'static str],
    nodes: Vec<Node<'a>>,
}

impl<'a, 'n> Reader<'a, 'n> {
    /// The nodes that lead to the fields of `text` that are called one of `names`, or what is
    /// wrong with it.
    pub(super) fn read(text: &'a [u8], names: &'n [&'static str]) -> Result<Vec<Node<'a>>, String> {
        let mut reader = Self { text, at: 0, names, nodes: Vec::with_capacity(64) };
        reader.value(Step::Root, 0, 0)?;
        match reader.peek() {
            Some(_) => Err(reader.broken("trailing characters")),
            None => Ok(reader.nodes),
        }
    }

    fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.text.get(self.at) {
            self.at += 1;
        }
        self.text.get(self.at).copied()
    }

    fn broken(&self, problem: &str) -> String {
        format!("{problem} at byte {}", self.at)
    }

    /// Passes over one value.
    fn skip(&mut self) -> Result<&'a [u8], String> {
        let next = self.peek();
        let rest = &self.text[self.at..];
        // Most names and ids are strings without escapes.
        let ends_string = |byte: &u8| matches!(byte, b'"' | b'\\' | ..b' ');
        if next == Some(b'"')
            && let Some(bytes) = rest[1..].iter().take(64).position(ends_string)
            && rest[1 + bytes] == b'"'
        {
            self.at += bytes + 2;
            return Ok(&rest[..bytes + 2]);
        }
        let mut values = Deserializer::from_slice(rest).into_iter::<IgnoredAny>();
        match values.next() {
            Some(Ok(_)) => {
                let bytes = values.byte_offset();
                self.at += bytes;
                Ok(&rest[..bytes])
            }
            Some(Err(error)) => {
                // The lines before it, and the columns of its own.
                let lines = rest
                    .split_inclusive(|byte| *byte == b'\n')
                    .take(error.line().saturating_sub(1));
                self.at += lines.map(<[u8]>::len).sum::<usize>() + error.column();
                Err(self.broken(plain(&error.to_string())))
            }
            None => Err(self.broken("EOF while parsing a value")),
        }
    }

    fn value(&mut self, step: Step, parent: usize, depth: usize) -> Result<(), String> {
        let at = self.nodes.len();
        self.nodes.push(Node { step, parent, end: at + 1, value: Value::Unread });
        let value = match self.peek() {
            Some(b'{') if depth < MAX_DEPTH => {
                self.object(at, depth + 1)?;
                Value::Object
            }
            Some(b'[') if depth < MAX_DEPTH => {
                self.array(at, depth + 1)?;
                Value::Array
            }
            Some(b'{' | b'[') => {
                self.skip()?;
                Value::Unread
            }
            Some(b'"') => Value::String(self.skip()?),
            _ => Value::Bare(self.skip()?),
        };
        self.nodes[at].value = value;
        self.nodes[at].end = self.nodes.len();
        Ok(())
    }

    fn object(&mut self, parent: usize, depth: usize) -> Result<(), String> {
        let mut is_first = true;
        while self.goes_on(b'}', is_first, "an object")? {
            is_first = false;
            if self.peek() != Some(b'"') {
                return Err(self.broken("key must be a string"));
            }
            let name = self.name()?;
            if self.peek() != Some(b':') {
                return Err(self.broken("expected `:`"));
            }
            self.at += 1;
            match name {
                Some(name) => self.value(Step::Field(name), parent, depth)?,
                None => self.skip().map(drop)?,
            }
        }
        Ok(())
    }

    fn array(&mut self, parent: usize, depth: usize) -> Result<(), String> {
        let mut index = 0;
        while self.goes_on(b']', index == 0, "a list")? {
            self.value(Step::Item(index), parent, depth)?;
            index += 1;
        }
        Ok(())
    }

    /// Takes the mark before the next field or item; false at the end.
    fn goes_on(&mut self, end: u8, is_first: bool, of: &str) -> Result<bool, String> {
        if is_first {
            self.at += 1;
        }
        let next = self.peek();
        match next {
            Some(mark) if mark == end => {
                self.at += 1;
                Ok(false)
            }
            Some(_) if is_first => Ok(true),
            Some(b',') => {
                self.at += 1;
                Ok(true)
            }
            Some(_) => Err(self.broken(&format!("expected `,` or `{}`", char::from(end)))),
            None => Err(self.broken(&format!("EOF while parsing {of}"))),
        }
    }

    /// A field's name, if it is one that is asked for. Another need not be text.
    fn name(&mut self) -> Result<Option<&'static str>, String> {
        let quoted = self.skip()?;
        let known = |name: &[u8]| self.names.iter().copied().find(|known| known.as_bytes() == name);
        if !quoted.contains(&b'\\') {
            return Ok(known(&quoted[1..quoted.len() - 1]));
        }
        Ok(serde_json::from_slice::<String>(quoted).ok().and_then(|name| known(name.as_bytes())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_json_is_found_wherever_it_is() {
        for (text, place) in [
            ("", "EOF while parsing a value at byte 0"),
            ("{\"a\":{}", "EOF while parsing an object at byte 7"),
            ("{\"x\":\n{\"y\":tru}}", "expected ident at byte 15"),
            ("{\"a\":1,}", "key must be a string at byte 7"),
            ("{\"a\" 1}", "expected `:` at byte 5"),
            ("{\"a\":1 \"b\":2}", "expected `,` or `}` at byte 7"),
            ("{\"list\":[1 2]}", "expected `,` or `]` at byte 11"),
            ("{\"list\":[1,]}", "expected value at byte 12"),
            ("{} {}", "trailing characters at byte 3"),
            (
                "{\"x\":\"\n\"}",
                "control character (\\u0000-\\u001F) found while parsing a string at byte 6",
            ),
        ] {
            let problem = Reader::read(text.as_bytes(), &["a", "list"]).unwrap_err();
            assert_eq!(problem, place, "{text}");
        }
    }
}
