//! The fields of one table, taken one by one.

use std::{fmt::Display, ops::RangeInclusive};

use toml::{Table, Value};

/// The longest name of a field that an error repeats: a token or a digest is longer.
const MAX_SHOWN_BYTES: usize = 32;

/// The fields of a table that were not taken yet.
pub(super) struct Fields {
    /// What the table is, for errors.
    place: String,
    table: Table,
    /// The names that were asked for.
    known: Vec<&'static str>,
}

impl Fields {
    pub(super) fn new(place: impl Into<String>, table: Table) -> Self {
        Self { place: place.into(), table, known: Vec::new() }
    }

    /// Errors call the table `place` from now on.
    pub(super) fn rename(&mut self, place: String) {
        self.place = place;
    }

    /// What is wrong with the table.
    pub(super) fn problem(&self, problem: impl Display) -> anyhow::Error {
        anyhow::anyhow!("{}: {problem}", self.place)
    }

    /// What is wrong with a field.
    pub(super) fn error(&self, field: impl Display, problem: impl Display) -> anyhow::Error {
        anyhow::anyhow!("{}: {field}: {problem}", self.place)
    }

    fn take(&mut self, field: &'static str) -> Option<Value> {
        self.known.push(field);
        self.table.remove(field)
    }

    /// A field, as `read` reads it.
    pub(super) fn optional<T>(
        &mut self,
        field: &'static str,
        read: impl FnOnce(&Self, &'static str, Value) -> anyhow::Result<T>,
    ) -> anyhow::Result<Option<T>> {
        self.take(field).map(|value| read(self, field, value)).transpose()
    }

    /// A field that must be given.
    pub(super) fn required<T>(
        &mut self,
        field: &'static str,
        read: impl FnOnce(&Self, &'static str, Value) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        self.optional(field, read)?.ok_or_else(|| self.error(field, "is required"))
    }

    /// Reads a text.
    pub(super) fn text(&self, field: &'static str, value: Value) -> anyhow::Result<String> {
        match value {
            Value::String(text) => Ok(text),
            _ => Err(self.error(field, "must be a string")),
        }
    }

    fn entries<T>(
        &mut self,
        field: &'static str,
        what: &str,
        read: impl Fn(Value) -> Option<T>,
    ) -> anyhow::Result<Option<Vec<T>>> {
        let error = format!("must be an array of {what}");
        self.optional(field, |fields, field, value| {
            match value {
                Value::Array(values) => {
                    values.into_iter().map(read).collect::<Option<_>>().ok_or(())
                }
                _ => Err(()),
            }
            .map_err(|()| fields.error(field, error))
        })
    }

    /// A list of texts.
    pub(super) fn texts(&mut self, field: &'static str) -> anyhow::Result<Option<Vec<String>>> {
        self.entries(field, "strings", |value| match value {
            Value::String(text) => Some(text),
            _ => None,
        })
    }

    /// A list of numbers.
    pub(super) fn numbers(&mut self, field: &'static str) -> anyhow::Result<Option<Vec<i64>>> {
        self.entries(field, "integers", |value| value.as_integer())
    }

    /// A number.
    pub(super) fn number(
        &mut self,
        field: &'static str,
        range: RangeInclusive<u32>,
    ) -> anyhow::Result<Option<u32>> {
        self.optional(field, |fields, field, value| {
            let number = value.as_integer().and_then(|number| u32::try_from(number).ok());
            number.filter(|number| range.contains(number)).ok_or_else(|| {
                let problem =
                    format!("must be an integer from {} to {}", range.start(), range.end());
                fields.error(field, problem)
            })
        })
    }

    /// A list of tables, which may be left out.
    pub(super) fn tables(&mut self, field: &'static str) -> anyhow::Result<Vec<Table>> {
        let tables = self.entries(field, "tables: write [[principal]]", |value| match value {
            Value::Table(table) => Some(table),
            _ => None,
        })?;
        Ok(tables.unwrap_or_default())
    }

    /// A table of tables, which may be left out.
    pub(super) fn named_tables(
        &mut self,
        field: &'static str,
    ) -> anyhow::Result<Vec<(String, Table)>> {
        let read = |(name, value)| match value {
            Value::Table(table) => Some((name, table)),
            _ => None,
        };
        let tables = self.optional(field, |fields, field, value| {
            let tables = match value {
                Value::Table(table) => table.into_iter().map(read).collect::<Option<_>>(),
                _ => None,
            };
            tables.ok_or_else(|| fields.error(field, "must be tables: write [jwt.NAME]"))
        })?;
        Ok(tables.unwrap_or_default())
    }

    /// Fails if a field is left.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        let Some(field) = self.table.keys().next() else { return Ok(()) };
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        let shown = if field.len() <= MAX_SHOWN_BYTES && field.bytes().all(is_plain) {
            format!("unknown field {field}")
        } else {
            "an unknown field".to_owned()
        };
        Err(self.problem(format!("{shown}; the fields are {}", self.known.join(", "))))
    }
}
