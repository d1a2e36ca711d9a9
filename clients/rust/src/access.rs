//! How a gate proves who it is.

use std::{path::PathBuf, sync::Arc, sync::Mutex};

use http::HeaderValue;
use tonic::Code;

use crate::{
    Error,
    address::{DEFAULT_SERVER, Target},
    errors::{misconfigured, or_else},
    failure::Failure,
    locked,
    rotation::{Certificates, File, Outage, Rotation},
};

/// What the author has set; the environment has the rest.
#[derive(Clone, Default)]
pub(crate) struct AccessOptions {
    pub(crate) server: Option<String>,
    pub(crate) tls_ca: Option<PathBuf>,
    pub(crate) tls_cert: Option<PathBuf>,
    pub(crate) tls_key: Option<PathBuf>,
    pub(crate) tls_server_name: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) insecure: bool,
}

/// Where the server is, and how a gate proves who it is. The settings are read once, their files
/// again and again, so that what they hold can be exchanged while the process runs.
pub(crate) struct Access {
    pub(crate) target: Target,
    pub(crate) server_name: Option<String>,
    tls: Option<Rotation>,
    token: Mutex<Token>,
}

struct Token {
    current: Option<Arc<str>>,
    file: Option<File>,
    outage: Outage,
}

/// What one call or stream proves itself by.
#[derive(Clone)]
pub(crate) struct Credentials {
    token: Option<Arc<str>>,
    pub(crate) certificates: Option<Arc<Certificates>>,
}

type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

#[expect(clippy::disallowed_methods, reason = "the settings of a client library")]
pub(crate) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// What the option says, else the environment, with what said it. An empty option is a mistake, such
/// as a variable that is not set.
fn setting(
    environment: Environment<'_>,
    option: &'static str,
    given: Option<String>,
    variable: &'static str,
) -> Result<Option<(String, &'static str)>, Error> {
    match given {
        Some(value) if value.is_empty() => {
            Err(misconfigured(option, "it is empty; set it, or leave it out"))
        }
        Some(value) => Ok(Some((value, "the option"))),
        None => {
            let found = environment(variable).filter(|value| !value.is_empty());
            Ok(found.map(|value| (value, variable)))
        }
    }
}

fn text(path: Option<PathBuf>) -> Option<String> {
    path.map(|path| path.to_string_lossy().into_owned())
}

impl Access {
    pub(crate) fn new(options: AccessOptions, env: Environment<'_>) -> Result<Self, Error> {
        let server = setting(env, "server", options.server, "ONCEGATE_SERVER")?;
        let target = Target::parse(server.as_ref().map_or(DEFAULT_SERVER, |(value, _)| value))?;

        let with_tls = |option, given, variable| {
            let found = setting(env, option, given, variable)?;
            // A setting without effect is a mistake, also one of the environment of a whole pod.
            match found {
                Some((_, source)) if !target.tls() => Err(misconfigured(
                    option,
                    format!(
                        "{source} needs TLS, and the server {} has none; use https://HOST:PORT",
                        target.name()
                    ),
                )),
                found => Ok(found.map(|(value, _)| value)),
            }
        };
        // A client certificate that is set by options wins over one of the environment.
        let ca = with_tls("tls_ca", text(options.tls_ca), "ONCEGATE_TLS_CA")?;
        let cert = with_tls("tls_cert", text(options.tls_cert), "ONCEGATE_CLIENT_CERT")?;
        let key = with_tls("tls_cert", text(options.tls_key), "ONCEGATE_CLIENT_KEY")?;
        let server_name =
            with_tls("tls_server_name", options.tls_server_name, "ONCEGATE_TLS_SERVER_NAME")?;
        let file = |option, path| File { option, path };
        let pair = match (cert, key) {
            (Some(cert), Some(key)) => Some((file("tls_cert", cert), file("tls_cert", key))),
            (None, None) => None,
            _ => {
                let problem = "a client certificate needs both its certificate and its key";
                return Err(misconfigured("tls_cert", problem));
            }
        };
        let ca = ca.map(|path| file("tls_ca", path));
        let tls = target.tls().then(|| Rotation::new(ca, pair));

        let token = Token::new(options.token, options.token_file, env)?;
        if token.is_set() && !target.tls() && !target.is_local() && !options.insecure {
            let problem = format!(
                "a token must not be sent in plaintext to {}; use https://, or set insecure",
                target.name()
            );
            return Err(misconfigured("server", problem));
        }
        Ok(Self { target, server_name, tls, token: Mutex::new(token) })
    }

    /// What is for the next call or stream. `at_once`: after a look at the files of the certificates.
    pub(crate) fn credentials(&self, at_once: bool) -> Result<Credentials, Error> {
        let token = locked(&self.token).read()?;
        let certificates = match &self.tls {
            Some(tls) => Some(tls.current(at_once)?),
            None => None,
        };
        Ok(Credentials { token, certificates })
    }

    /// Says what a failure means. UNAUTHENTICATED is final only with the newest token and client
    /// certificate: with older ones the call is worth another try.
    pub(crate) fn judge(&self, used: &Credentials, failure: Failure) -> Failure {
        let is_outage = matches!(failure.code, Code::Unavailable | Code::DeadlineExceeded);
        if let Some(tls) = self.tls.as_ref().filter(|_| failure.reason.is_empty() && is_outage) {
            tls.look_soon(); // the server may not accept the old ones any more
        }
        if failure.code != Code::Unauthenticated {
            return failure;
        }
        match self.credentials(true) {
            Ok(newest) if !newest.is_same_identity(used) => {
                let message = "the token or client certificate was replaced";
                let mut replaced = Failure::unavailable(message);
                replaced.outdated = true;
                replaced.source = failure.source;
                replaced
            }
            _ => failure,
        }
    }
}

impl Credentials {
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        let token = self.token.as_ref()?;
        let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    fn is_same_identity(&self, other: &Self) -> bool {
        self.token == other.token
            && match (&self.certificates, &other.certificates) {
                (Some(one), Some(other)) => one.is_same_client(other),
                (None, None) => true,
                _ => false,
            }
    }
}

impl Token {
    fn new(
        token: Option<String>,
        file: Option<PathBuf>,
        env: Environment<'_>,
    ) -> Result<Self, Error> {
        let mut made = Self {
            current: None,
            file: None,
            outage: Outage::new("the token that was read before stays in use"),
        };
        let Some(token) = token else {
            let path = setting(env, "token_file", text(file), "ONCEGATE_TOKEN_FILE")?;
            made.file = path.map(|(path, _)| File { option: "token_file", path });
            return Ok(made);
        };
        if file.is_some() {
            return Err(misconfigured("token", "set either token or token_file"));
        }
        if token.is_empty() {
            return Err(misconfigured("token", "it is empty; set it, or leave it out"));
        }
        made.current = Some(checked("token", token.trim())?);
        Ok(made)
    }

    fn is_set(&self) -> bool {
        self.current.is_some() || self.file.is_some()
    }

    /// The token for the next call. While its file cannot be used, the last one stays in use.
    fn read(&mut self) -> Result<Option<Arc<str>>, Error> {
        let Some(file) = &self.file else {
            return Ok(self.current.clone());
        };
        let found = file
            .read()
            .and_then(|content| checked("token_file", &String::from_utf8_lossy(&content)));
        match found {
            Ok(token) => {
                self.current = Some(token);
                self.outage.over();
            }
            Err(error) if self.current.is_none() => return Err(error),
            Err(error) => self.outage.warn(&error),
        }
        Ok(self.current.clone())
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

    fn none(_: &str) -> Option<String> {
        None
    }

    fn options(set: impl FnOnce(&mut AccessOptions)) -> AccessOptions {
        let mut options = AccessOptions::default();
        set(&mut options);
        options
    }

    #[test]
    fn wrong_settings() {
        let remote = || Some("gate:1".to_owned());
        let secure = || Some("https://gate:1".to_owned());
        let planted = || Some("planted".to_owned());
        for (option, options) in [
            ("server", options(|o| o.server = Some(String::new()))),
            ("token", options(|o| o.token = Some(String::new()))),
            ("token", options(|o| (o.token, o.token_file) = (planted(), Some("f".into())))),
            ("token", options(|o| o.token = Some("planted two".to_owned()))),
            ("token", options(|o| o.token = Some(" ".to_owned()))),
            ("server", options(|o| (o.server, o.token) = (remote(), planted()))),
            ("server", options(|o| (o.server, o.token_file) = (remote(), Some("f".into())))),
            ("tls_ca", options(|o| (o.server, o.tls_ca) = (remote(), Some("f".into())))),
            ("tls_server_name", options(|o| o.tls_server_name = planted())),
            ("tls_cert", options(|o| (o.server, o.tls_cert) = (secure(), Some("".into())))),
            ("tls_cert", options(|o| (o.server, o.tls_cert) = (secure(), Some("c".into())))),
            ("tls_cert", options(|o| o.tls_cert = Some("c".into()))),
        ] {
            let Err(error) = Access::new(options, &none) else { panic!("{option} is taken") };
            let text = error.to_string();
            let Error::Misconfigured { option: found, .. } = error else { panic!("{text}") };
            assert_eq!(found, option, "{text}");
            assert!(!text.contains("planted two"), "{text}");
        }
        for options in [
            options(|o| {
                (o.server, o.token, o.tls_ca) = (secure(), planted(), Some("f".into()));
            }),
            options(|o| o.token = planted()),
            options(|o| (o.server, o.token, o.insecure) = (remote(), planted(), true)),
        ] {
            assert!(Access::new(options, &none).is_ok());
        }
        let of_pod = |name: &str| (name == "ONCEGATE_TLS_CA").then(|| "/ca.pem".to_owned());
        let Err(error) = Access::new(AccessOptions::default(), &of_pod) else {
            panic!("a setting of the environment without effect is taken")
        };
        assert!(error.to_string().contains("ONCEGATE_TLS_CA"), "{error}");
    }

    #[test]
    fn a_token_file_is_read_for_each_call() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        let access = Access::new(options(|o| o.token_file = Some(path.clone())), &none)
            .unwrap_or_else(|error| panic!("{error}"));
        let token = || access.credentials(false).map(|found| found.token);
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
