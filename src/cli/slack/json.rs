//! JSON read only as far as it is asked for: what is not read may hold what no Rust value can,
//! such as half a surrogate pair or `1e400`.

use std::{collections::HashMap, fmt};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A value as it stands in the text, with the path to it; none where there is none.
pub(super) struct Json<'a> {
    path: String,
    text: Option<&'a RawValue>,
}

impl<'a> Json<'a> {
    /// Reads a whole text.
    pub(super) fn parse(text: &'a [u8]) -> serde_json::Result<Self> {
        Ok(Self { path: String::new(), text: Some(serde_json::from_slice(text)?) })
    }

    fn starts_with(&self, letter: char) -> bool {
        self.text.is_some_and(|text| text.get().starts_with(letter))
    }

    pub(super) fn is_object(&self) -> bool {
        self.starts_with('{')
    }

    pub(super) fn is_array(&self) -> bool {
        self.starts_with('[')
    }

    pub(super) fn is_string(&self) -> bool {
        self.starts_with('"')
    }

    /// The fields of an object; none of anything else. Of equal names the last counts.
    pub(super) fn fields(&self) -> Fields<'a> {
        let text = self.text.filter(|_| self.is_object());
        let fields = text.and_then(|text| serde_json::from_str::<Map>(text.get()).ok());
        Fields { path: self.path.clone(), fields: fields.map(|map| map.0).unwrap_or_default() }
    }

    /// The first item of an array.
    pub(super) fn first(&self) -> Self {
        let text = self.text.filter(|_| self.is_array());
        let items = text.and_then(|text| serde_json::from_str::<Vec<&RawValue>>(text.get()).ok());
        let first = items.and_then(|items| items.first().copied());
        Self { path: format!("{}[0]", self.path), text: first }
    }

    /// A string; empty for anything else.
    ///
    /// # Errors
    /// When it is a string of invalid Unicode, naming the field.
    pub(super) fn string(&self) -> Result<String, String> {
        let Some(text) = self.text.filter(|_| self.is_string()) else {
            return Ok(String::new());
        };
        serde_json::from_str(text.get()).map_err(|error| {
            let problem = error.to_string();
            let problem = problem.split(" at line ").next().unwrap_or_default();
            format!("{}: invalid Unicode: {problem}", self.path)
        })
    }
}

/// The fields of an object.
pub(super) struct Fields<'a> {
    path: String,
    fields: HashMap<Vec<u8>, &'a RawValue>,
}

impl<'a> Fields<'a> {
    pub(super) fn get(&self, name: &str) -> Json<'a> {
        let dot = if self.path.is_empty() { "" } else { "." };
        let text = self.fields.get(name.as_bytes()).copied();
        Json { path: format!("{}{dot}{name}", self.path), text }
    }
}

/// The names as bytes: one that is not read need not be text either.
struct Map<'a>(HashMap<Vec<u8>, &'a RawValue>);

impl<'de> Deserialize<'de> for Map<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Map<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Map<'de>, A::Error> {
                let mut fields = HashMap::new();
                while let Some((Name(name), value)) = map.next_entry()? {
                    fields.insert(name, value);
                }
                Ok(Map(fields))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

struct Name(Vec<u8>);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_bytes<E>(self, name: &[u8]) -> Result<Name, E> {
                Ok(Name(name.to_owned()))
            }

            fn visit_str<E>(self, name: &str) -> Result<Name, E> {
                Ok(Name(name.as_bytes().to_owned()))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}
