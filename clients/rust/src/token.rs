//! The token of a gate.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use crate::{
    Error,
    access::{Environment, setting},
    errors::{misconfigured, or_else},
    locked,
    rotation::{File, Outage},
};

/// The token of a gate.
pub(crate) struct Token {
    pub(crate) file: Option<File>,
    current: Mutex<Option<Arc<str>>>,
    pub(crate) outage: Mutex<Outage>,
}

impl Token {
    pub(crate) fn new(
        token: Option<String>,
        file: Option<PathBuf>,
        env: Environment<'_>,
    ) -> Result<Self, Error> {
        let mut made = Self {
            file: None,
            current: Mutex::default(),
            outage: Mutex::new(Outage::new("the token that was read before stays in use")),
        };
        let Some(token) = token else {
            let path = setting(env, "token_file", file.map(Into::into), "ONCEGATE_TOKEN_FILE")?;
            made.file = path.map(|(path, _)| File { option: "token_file", path: path.into() });
            return Ok(made);
        };
        if file.is_some() {
            return Err(misconfigured("token", "set either token or token_file"));
        }
        if token.is_empty() {
            return Err(misconfigured("token", "it is empty; set it, or leave it out"));
        }
        made.current = Mutex::new(Some(checked("token", token.trim())?));
        Ok(made)
    }

    pub(crate) fn is_set(&self) -> bool {
        locked(&self.current).is_some() || self.file.is_some()
    }

    /// The token that was read last.
    pub(crate) fn last(&self) -> Option<Arc<str>> {
        locked(&self.current).clone()
    }

    /// The token for the next call. While its file cannot be used, the last one stays in use.
    pub(crate) fn read(&self) -> Result<Option<Arc<str>>, Error> {
        let Some(file) = &self.file else {
            return Ok(self.last());
        };
        let found = file
            .read()
            .and_then(|content| checked("token_file", &String::from_utf8_lossy(&content)));
        match found {
            Ok(token) => {
                *locked(&self.current) = Some(token.clone());
                locked(&self.outage).over();
                Ok(Some(token))
            }
            Err(error) => match self.last() {
                Some(token) => {
                    locked(&self.outage).warn(&error);
                    Ok(Some(token))
                }
                None => Err(error),
            },
        }
    }
}

fn checked(option: &'static str, token: &str) -> Result<Arc<str>, Error> {
    let is_one = or_else(token, " ").bytes().all(|byte| byte.is_ascii_graphic());
    if !is_one || token.len() > 8 * 1024 {
        return Err(misconfigured(option, "this is not one token, of at most 8 KiB"));
    }
    Ok(token.into())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_token_file_is_read_for_each_call() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        let token = Token::new(None, Some(path.clone()), &|_| None)
            .unwrap_or_else(|error| panic!("{error}"));
        let token = || token.read();
        assert!(matches!(token(), Err(Error::Misconfigured { option: "token_file", .. })));
        for (content, expected) in [
            ("first\n", "first"),
            ("second", "second"),
            ("", "second"),
            ("two words", "second"),
            ("third", "third"),
        ] {
            fs::write(&path, content).expect("it is written");
            assert_eq!(token().expect("a token").as_deref(), Some(expected), "{content:?}");
        }
    }
}
