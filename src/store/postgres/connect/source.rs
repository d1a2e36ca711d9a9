//! What the flags and files say of a database.

use std::{
    env::{self, VarError},
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    parameters,
    url::{BadUrl, Target, Tls, not_empty},
};
use crate::store::StoreError;

/// The longest name of a schema, in bytes: with it the channels have names that PostgreSQL takes.
pub(in super::super) const MAX_SCHEMA_BYTES: usize = 40;

/// Why there is no way to a database: a flag, a variable or a file is wrong. No part of a secret is
/// in it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(super) struct Problem(pub(super) String);

impl From<Problem> for sqlx::Error {
    fn from(problem: Problem) -> Self {
        Self::Configuration(Box::new(problem))
    }
}

/// Where a URL is found.
#[derive(Clone)]
pub enum Origin {
    /// It was given.
    Given(String),
    /// It is in a file, which is read again for every connection.
    File(PathBuf),
}

impl Origin {
    /// The URL, as it is now.
    ///
    /// # Errors
    /// When the file cannot be read; the text says which, and nothing of what it holds.
    pub fn read(&self) -> Result<String, StoreError> {
        self.text().map_err(StoreError::internal)
    }

    fn text(&self) -> Result<String, Problem> {
        match self {
            Self::Given(url) => Ok(url.clone()),
            Self::File(path) => read_file("--database-url-file", path),
        }
    }

    fn flag(&self) -> &'static str {
        match self {
            Self::Given(_) => "--database-url",
            Self::File(_) => "the URL in --database-url-file",
        }
    }
}

/// How to connect to a database.
#[derive(Clone)]
pub struct Source {
    /// The URL.
    pub url: Origin,
    /// A file with the password alone, which is read again for every connection.
    pub password_file: Option<PathBuf>,
    /// The schema with the tables; none: the first in the role's search path.
    pub schema: Option<String>,
}

impl Source {
    /// A database at a URL, and nothing else.
    #[must_use]
    pub fn at(url: &str) -> Self {
        Self { url: Origin::Given(url.to_owned()), password_file: None, schema: None }
    }

    /// What the URL and the files say now.
    pub(super) fn read(&self) -> Result<Target, Problem> {
        let flag = self.url.flag();
        let bad = |BadUrl(problem)| Problem(format!("{flag} {problem}"));
        let mut target = Target::parse(&self.url.text()?, &environment()?).map_err(bad)?;
        if let Some(path) = &self.password_file {
            if target.password.is_some() {
                return Err(Problem(format!(
                    "--database-password-file and a password in {flag}: give one of them"
                )));
            }
            target.password = Some(read_file("--database-password-file", path)?);
        }
        Ok(target)
    }

    pub(super) fn is_a_file(&self) -> bool {
        self.password_file.is_some() || matches!(self.url, Origin::File(_))
    }

    /// The database without what is secret about it.
    ///
    /// # Errors
    /// When the URL or a file cannot be read.
    pub fn describe(&self) -> Result<String, StoreError> {
        let target = self.read().map_err(StoreError::internal)?;
        let schema = self.schema.as_ref().map(|name| format!(" (schema {name})"));
        Ok(format!("{target}{}", schema.unwrap_or_default()))
    }

    /// Checks all that can be checked before anything is opened.
    pub(super) fn check(&self) -> Result<(), Problem> {
        if let Some(schema) = &self.schema {
            let problem = |problem| Problem(format!("--database-schema {problem}"));
            check_schema(schema).map_err(problem)?;
        }
        self.read().map(drop)
    }
}

/// One line of a file, without its end.
fn read_file(flag: &str, path: &Path) -> Result<String, Problem> {
    let problem = |cause: &str| Problem(format!("{flag}: {} {cause}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => problem("is not valid UTF-8"),
        _ => problem(&format!("cannot be read: {error}")),
    })?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() {
        return Err(problem("is empty"));
    }
    if line.contains(['\n', '\r', '\0']) {
        return Err(problem("has more than one line"));
    }
    Ok(line.to_owned())
}

/// A name that needs no quotation marks anywhere, and leaves room for a channel's.
pub(super) fn check_schema(name: &str) -> Result<(), String> {
    let first = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    let all = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if !first || !name.chars().all(all) {
        return Err("must be lower-case letters, digits and _, and not begin with a digit".into());
    }
    if name.len() > MAX_SCHEMA_BYTES {
        return Err(format!("must be at most {MAX_SCHEMA_BYTES} bytes, is {}", name.len()));
    }
    if name.starts_with("pg_") || name == "information_schema" {
        return Err("must not be one of PostgreSQL's own schemas".into());
    }
    Ok(())
}

/// What libpq's variables say of TLS. sqlx takes an unknown `PGSSLMODE` for none, which would be a
/// connection without TLS.
#[expect(clippy::disallowed_methods, reason = "libpq's variables are PostgreSQL's configuration")]
fn environment() -> Result<Tls, Problem> {
    let text = |name: &str| match env::var(name) {
        Ok(text) => Ok(Some(text)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => Err(Problem(format!("{name} is not valid UTF-8"))),
    };
    let path = |name: &str| Ok(text(name)?.and_then(not_empty));
    let mode = match text("PGSSLMODE")? {
        Some(mode) => Some(
            parameters::mode(&mode.to_ascii_lowercase())
                .map_err(|_| Problem("PGSSLMODE has an unknown value".to_owned()))?,
        ),
        None => None,
    };
    let (root, certificate, key) = (path("PGSSLROOTCERT")?, path("PGSSLCERT")?, path("PGSSLKEY")?);
    Ok(Tls { mode, root, certificate, key })
}
