//! Reads a database URL as libpq does, and as people have them.
//!
//! Architecture Invariant: no error here, and nothing that is shown, contains a part of the URL
//! that could be a part of its password: only what was recognized, by names that are known.

use std::{borrow::Cow, fmt, time::Duration};

use percent_encoding::percent_decode_str;

use super::parameters;

/// The form to use instead of one that is refused.
pub(super) static FORM: &str = "postgres://USER:PASSWORD@HOST:PORT/DATABASE";

/// Drivers that other languages name in the scheme, as in `postgresql+asyncpg`.
const DRIVERS: [&str; 8] = [
    "asyncpg",
    "psycopg",
    "psycopg2",
    "psycopg2cffi",
    "psycopg_async",
    "pg8000",
    "pypostgresql",
    "aiopg",
];

/// What is wrong with a URL; goes on from the name of what holds it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct BadUrl(pub(super) Cow<'static, str>);

pub(super) fn bad<T>(problem: impl Into<Cow<'static, str>>) -> Result<T, BadUrl> {
    Err(BadUrl(problem.into()))
}

/// What a URL says; what it leaves out is up to the environment, or to PostgreSQL.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) hosts: Vec<Host>,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: Option<String>,
    pub(super) tls: Tls,
    pub(super) session: Option<Session>,
    pub(super) application_name: Option<String>,
    /// As on the command line of the server: `-c name=value …`.
    pub(super) options: Vec<String>,
    /// For one host; none: no limit but the caller's.
    pub(super) connect_timeout: Option<Duration>,
    pub(super) statement_cache: Option<usize>,
}

/// A server, or a folder with its socket where the name begins with `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) port: Option<u16>,
}

impl Host {
    pub(super) fn is_socket(&self) -> bool {
        self.name.starts_with('/')
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tls {
    /// None: `verify-full` for a server on another host, `prefer` for one on this host.
    pub(super) mode: Option<TlsMode>,
    /// A file, or `system`.
    pub(super) root: Option<String>,
    pub(super) certificate: Option<String>,
    pub(super) key: Option<String>,
}

impl Tls {
    /// The same; what it leaves out is as in `environment`.
    pub(super) fn or(self, environment: &Self) -> Self {
        let or = |own: Option<String>, other: &Option<String>| own.or_else(|| other.clone());
        Self {
            mode: self.mode.or(environment.mode),
            root: or(self.root, &environment.root),
            certificate: or(self.certificate, &environment.certificate),
            key: or(self.key, &environment.key),
        }
    }
}

/// `sslmode`, <https://www.postgresql.org/docs/current/libpq-ssl.html>.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TlsMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// `target_session_attrs`, as far as a service that writes has a use for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Session {
    Any,
    ReadWrite,
    Primary,
}

impl Target {
    /// Reads a URL; what it leaves out of TLS is as in `environment`.
    pub(super) fn parse(url: &str, environment: &Tls) -> Result<Self, BadUrl> {
        let rest = after_scheme(url)?;
        if rest.contains('#') {
            return bad("contains a #: write %23 for a # in a name or password");
        }
        let (before, query) = rest.split_once('?').map_or((rest, None), |(b, q)| (b, Some(q)));
        let (authority, path) = before.split_once('/').map_or((before, ""), |(a, p)| (a, p));
        let misplaced = path.contains('@')
            || query.is_some_and(|query| {
                query.contains('@') && (authority.contains('@') || !parameters::are_known(query))
            });
        if misplaced {
            return bad(
                "contains an @ where no name or password can be: write / as %2F, ? as %3F and @ as \
                 %40 in a user name, password or database name",
            );
        }
        let mut target = Self::default();
        let hosts = match authority.rsplit_once('@') {
            None => authority,
            Some((credentials, hosts)) => {
                let (user, password) =
                    credentials.split_once(':').map_or((credentials, None), |(u, p)| (u, Some(p)));
                target.user = not_empty(decode("user name", user)?);
                if let Some(password) = password {
                    target.password = not_empty(decode("password", password)?);
                }
                hosts
            }
        };
        if !hosts.is_empty() {
            target.hosts = split_hosts(hosts)?.into_iter().map(host).collect::<Result<_, _>>()?;
        }
        if path.contains('/') {
            return bad(
                "has more than a database name after the host: write %2F for a / in a name or \
                 password",
            );
        }
        target.database = not_empty(decode("database name", path)?);
        parameters::read(&mut target, query.unwrap_or_default(), environment)?;
        Ok(target)
    }
}

/// No secret, and nothing that the URL did not name as what it is.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let socket = self.hosts.iter().any(Host::is_socket);
        f.write_str("postgres://")?;
        let write = |f: &mut fmt::Formatter<'_>| {
            for (number, host) in self.hosts.iter().enumerate() {
                f.write_str(if number > 0 { "," } else { "" })?;
                host.fmt(f)?;
            }
            Ok(())
        };
        if !socket {
            write(f)?;
        }
        if let Some(database) = &self.database {
            write!(f, "/{}", database.escape_debug())?;
        }
        if socket {
            f.write_str("?host=")?;
            write(f)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.contains(':') {
            write!(f, "[{}]", self.name)?;
        } else {
            f.write_str(&self.name)?;
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// What follows `postgres://`.
fn after_scheme(url: &str) -> Result<&str, BadUrl> {
    let trimmed = url.trim();
    if trimmed.is_empty() {
        return bad("is empty");
    }
    if trimmed.len() < url.len() {
        return bad(if url.ends_with(['\n', '\r']) {
            "ends with a line break: remove it"
        } else {
            "begins or ends with white space: remove it"
        });
    }
    if url.starts_with(['"', '\'', '`']) || url.ends_with(['"', '\'', '`']) {
        return bad("is in quotation marks: remove them");
    }
    let (scheme, rest) = url.split_once(':').unwrap_or((url, ""));
    let scheme = scheme.to_ascii_lowercase();
    let named = match scheme.split_once('+') {
        Some(("postgres" | "postgresql", driver)) if DRIVERS.contains(&driver) => {
            return bad(format!("names a driver: leave +{driver} out, {FORM}"));
        }
        Some(("postgres" | "postgresql", _)) => {
            return bad(format!("names a driver: leave what follows the + out, {FORM}"));
        }
        _ => scheme.as_str(),
    };
    match named {
        "postgres" | "postgresql" => {}
        "jdbc" => return bad(format!("is a JDBC URL: write {FORM}")),
        // host=… port=…
        _ if url.split_once('=').is_some_and(|(key, _)| parameters::is_word(key.trim())) => {
            return bad(format!("is a connection string of key=value pairs: write {FORM}"));
        }
        _ => return bad(format!("must begin with sqlite:// or postgres://, as in {FORM}")),
    }
    let Some(rest) = rest.strip_prefix("//") else {
        return bad(format!("lacks the // after {named}: write {FORM}"));
    };
    if rest.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return bad("contains white space: write %20 for a space in a name or password");
    }
    Ok(rest)
}

/// Splits at the commas.
fn split_hosts(hosts: &str) -> Result<Vec<&str>, BadUrl> {
    let hosts: Vec<&str> = hosts.split(',').collect();
    if hosts.contains(&"") {
        return bad("has an empty name in its list of hosts");
    }
    Ok(hosts)
}

/// One `host`, `host:port` or `[address]:port`.
fn host(text: &str) -> Result<Host, BadUrl> {
    let (name, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((address, rest)) = rest.split_once(']') else {
            return bad("has a [ without its ] in a host: an IPv6 address is written [::1]");
        };
        let address = decode("host", address)?;
        // A zone, as in fe80::1%eth0, is the resolver's affair.
        let literal = address.split('%').next().unwrap_or_default();
        if literal.parse::<std::net::Ipv6Addr>().is_err() {
            return bad("has brackets around something that is not an IPv6 address");
        }
        match (rest, rest.strip_prefix(':')) {
            ("", _) => (address, ""),
            (_, Some(port)) => (address, port),
            _ => return bad("has something other than a port after an IPv6 address"),
        }
    } else {
        if text.matches(':').count() > 1 {
            return bad("has a host with several colons: an IPv6 address is written [::1]");
        }
        let (name, port) = text.split_once(':').unwrap_or((text, ""));
        (decode("host", name)?, port)
    };
    let port = if port.is_empty() { None } else { Some(self::port(port)?) };
    named_host(name, port)
}

pub(super) fn port(text: &str) -> Result<u16, BadUrl> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => {
            bad("has a port that is not a number from 1 to 65535 (is a user name or password not \
             percent-encoded?)")
        }
    }
}

/// A host whose name is one.
pub(super) fn named_host(name: String, port: Option<u16>) -> Result<Host, BadUrl> {
    let host = Host { name, port };
    let plain = |c: char| c.is_alphanumeric() || ".-_:%".contains(c);
    if !host.is_socket() && (host.name.is_empty() || !host.name.chars().all(plain)) {
        return bad("has a host that is not a name or address (is a user name or password not \
             percent-encoded?)");
    }
    Ok(host)
}

/// What a part of a URL stands for.
pub(super) fn decode(what: &str, text: &str) -> Result<String, BadUrl> {
    let mut escapes = text.split('%').skip(1);
    let complete =
        |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|digit| digit.is_ascii_hexdigit());
    if !escapes.all(complete) {
        return bad(format!("has a % in the {what} that does not start an escape: write %25"));
    }
    match percent_decode_str(text).decode_utf8() {
        Ok(decoded) if !decoded.contains('\0') => Ok(decoded.into_owned()),
        _ => bad(format!("has a {what} that is not valid UTF-8")),
    }
}

pub(super) fn not_empty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}
