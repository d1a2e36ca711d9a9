//! What may follow the `?` of a database URL:
//! <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS>.

use std::{collections::HashSet, mem, time::Duration};

use super::url::{
    BadUrl, Host, Session, Target, Tls, TlsMode, bad, decode, named_host, not_empty, port,
};

/// The parameters that are understood.
const KNOWN: [&str; 16] = [
    "host",
    "hostaddr",
    "port",
    "user",
    "password",
    "dbname",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "target_session_attrs",
    "application_name",
    "fallback_application_name",
    "options",
    "connect_timeout",
    "statement-cache-capacity",
];

/// Parameters of libpq that change nothing here with the values that are listed, where `&[]` is
/// any, and why. With another value one would ask for what oncegate does not do: it is refused.
const WITHOUT_EFFECT: [(&[&str], &[&str], &str); 14] = [
    (&["gssencmode"], &["disable", "prefer"], "GSSAPI is not supported"),
    (&["gssdelegation"], &["0"], "GSSAPI is not supported"),
    (&["gsslib", "krbsrvname"], &[], "GSSAPI is not supported"),
    (
        &["keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"],
        &[],
        "every statement has a timeout",
    ),
    (&["tcp_user_timeout"], &[], "every statement has a timeout"),
    (&["client_encoding"], &["utf8", "utf-8", "auto"], "texts are UTF-8"),
    (&["load_balance_hosts"], &["disable"], "hosts are tried in their order"),
    (&["replication"], &["false", "off", "no", "0"], "replication connections are not supported"),
    (&["channel_binding"], &["disable", "prefer"], "use sslmode=verify-full"),
    (&["sslcompression"], &["0"], "TLS is not compressed"),
    (&["sslsni"], &["1"], "TLS names the host"),
    (&["sslnegotiation"], &["postgres"], "TLS begins on request"),
    (&["ssl_min_protocol_version"], &["TLSv1", "TLSv1.1", "TLSv1.2"], "TLS is 1.2 or 1.3"),
    (&["ssl_max_protocol_version"], &["TLSv1.3"], "TLS is 1.2 or 1.3"),
];

/// Other spellings of these.
const ALIASES: [(&str, &str); 6] = [
    ("ssl-mode", "sslmode"),
    ("ssl-root-cert", "sslrootcert"),
    ("ssl-ca", "sslrootcert"),
    ("ssl-cert", "sslcert"),
    ("ssl-key", "sslkey"),
    ("database", "dbname"),
];

/// Parameters of other drivers, and what to use instead.
const ELSEWHERE: [(&str, &str); 16] = [
    ("ssl", "use sslmode"),
    ("requiressl", "use sslmode=require"),
    ("tls", "use sslmode"),
    ("schema", "use --database-schema"),
    ("currentSchema", "use --database-schema"),
    ("search_path", "use --database-schema"),
    ("sslpassword", "use a key that is not encrypted"),
    ("passfile", "use --database-password-file, or PGPASSFILE"),
    ("sslcrl", "use short-lived certificates"),
    ("sslcrldir", "use short-lived certificates"),
    ("require_auth", "leave it out, and use sslmode=verify-full"),
    ("requirepeer", "leave it out: write permission on the socket's directory decides"),
    ("service", "write the host and the database in the URL"),
    ("connectTimeout", "use connect_timeout"),
    ("pool_timeout", "leave it out: there is no pool"),
    ("connection_limit", "use --writers"),
];

const MODES: [(&str, TlsMode); 6] = [
    ("disable", TlsMode::Disable),
    ("allow", TlsMode::Allow),
    ("prefer", TlsMode::Prefer),
    ("require", TlsMode::Require),
    ("verify-ca", TlsMode::VerifyCa),
    ("verify-full", TlsMode::VerifyFull),
];

/// How many letters a name may be off for another to be suggested.
const NEAR: usize = 3;

/// Whether this can be the name of a parameter.
pub(super) fn is_word(name: &str) -> bool {
    (1..=40).contains(&name.len())
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_' || c == b'-')
}

/// Whether a query holds nothing but parameters that are understood.
pub(super) fn are_known(query: &str) -> bool {
    pairs(query).all(|(name, _)| is_known(canonical(name)) || setting(name).is_some())
}

fn is_known(name: &str) -> bool {
    KNOWN.contains(&name) || without_effect(name).is_some()
}

/// The values with which a parameter changes nothing, and why.
fn without_effect(name: &str) -> Option<(&'static [&'static str], &'static str)> {
    let found = WITHOUT_EFFECT.iter().find(|(names, ..)| names.contains(&name));
    found.map(|(_, accepted, reason)| (*accepted, *reason))
}

fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn canonical(name: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, known)| known)
}

/// The name in `options[name]`.
fn setting(name: &str) -> Option<&str> {
    let name = name.strip_prefix("options[")?.strip_suffix(']')?;
    name.split('.').all(is_word).then_some(name)
}

/// Reads a query into `target`; it goes before what the rest of the URL says, and before what
/// `environment` says of TLS.
pub(super) fn read(target: &mut Target, query: &str, environment: &Tls) -> Result<(), BadUrl> {
    let mut seen = HashSet::new();
    let (mut hosts, mut addresses, mut ports, mut fallback_name) = (None, None, None, None);
    for (given, value) in pairs(query) {
        let given = decode("parameters", given)?;
        let name = canonical(&given);
        if !seen.insert(name.to_owned()) {
            return bad(if is_known(name) {
                format!("has the parameter {name} twice; several hosts are written host=one,two")
            } else {
                "has a parameter twice".to_owned()
            });
        }
        let value = decode("parameters", value)?;
        if let Some(name) = setting(name) {
            target.options.push(format!("-c {name}={}", escape(&value)));
            continue;
        }
        match name {
            "host" => hosts = not_empty(value),
            "hostaddr" => addresses = not_empty(value),
            "port" => ports = not_empty(value),
            "user" => target.user = not_empty(value),
            "password" => target.password = not_empty(value),
            "dbname" => target.database = not_empty(value),
            "sslmode" => target.tls.mode = Some(mode(&value)?),
            "sslrootcert" => target.tls.root = not_empty(value),
            "sslcert" => target.tls.certificate = not_empty(value),
            "sslkey" => target.tls.key = not_empty(value),
            "target_session_attrs" => target.session = Some(session(&value)?),
            "application_name" => target.application_name = not_empty(value),
            "fallback_application_name" => fallback_name = not_empty(value),
            "options" => target.options.extend(not_empty(value)),
            "connect_timeout" => target.connect_timeout = seconds(&value)?,
            "statement-cache-capacity" => target.statement_cache = Some(capacity(&value)?),
            _ => match without_effect(name) {
                Some((accepted, reason)) => check_effect(name, &value, accepted, reason)?,
                None => return bad(unknown(name, query)),
            },
        }
    }
    target.application_name = target.application_name.take().or(fallback_name);
    if hosts.is_some() && addresses.is_some() {
        return bad("has both host and hostaddr: give one of them");
    }
    if let Some(hosts) = hosts.or(addresses) {
        target.hosts = listed_hosts(&hosts)?;
    }
    if let Some(ports) = ports {
        give_ports(&mut target.hosts, &ports)?;
    }
    // The mode and the root count together, wherever each of them is from.
    target.tls = mem::take(&mut target.tls).or(environment);
    check_tls(target)
}

/// Refuses a value with which a parameter would have an effect.
fn check_effect(name: &str, value: &str, accepted: &[&str], reason: &str) -> Result<(), BadUrl> {
    if accepted.is_empty() || accepted.iter().any(|other| other.eq_ignore_ascii_case(value)) {
        return Ok(());
    }
    bad(format!(
        "has a {name} that is not supported ({reason}): leave it out, or give {}",
        accepted.join(" or ")
    ))
}

/// The hosts of `host=one,two`; an IPv6 address has no brackets here, but may have them.
fn listed_hosts(hosts: &str) -> Result<Vec<Host>, BadUrl> {
    let bare = |name: &str| {
        let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        address.unwrap_or(name).to_owned()
    };
    hosts.split(',').map(|name| named_host(bare(name), None)).collect()
}

/// One port for all hosts, or one for each.
fn give_ports(hosts: &mut Vec<Host>, ports: &str) -> Result<(), BadUrl> {
    let ports = ports.split(',').map(port).collect::<Result<Vec<_>, _>>()?;
    if hosts.is_empty() && ports.len() == 1 {
        // The host is up to the environment.
        hosts.push(Host { name: String::new(), port: Some(ports[0]) });
        return Ok(());
    }
    if ports.len() != 1 && ports.len() != hosts.len() {
        return bad("has a number of ports that does not fit: must be one, or one per host");
    }
    for (host, port) in hosts.iter_mut().zip(ports.iter().cycle()) {
        host.port = Some(*port);
    }
    Ok(())
}

pub(super) fn mode(value: &str) -> Result<TlsMode, BadUrl> {
    if let Some((_, mode)) = MODES.iter().find(|(name, _)| *name == value) {
        return Ok(*mode);
    }
    let names = MODES.map(|(name, _)| name);
    let near = suggestion(value, &names);
    bad(format!("has an unknown sslmode{near}: it is one of {}", names.join(", ")))
}

pub(super) fn mode_name(mode: TlsMode) -> &'static str {
    MODES.iter().find(|(_, other)| *other == mode).map_or("", |(name, _)| *name)
}

fn session(value: &str) -> Result<Session, BadUrl> {
    match value {
        "any" => Ok(Session::Any),
        "read-write" => Ok(Session::ReadWrite),
        "primary" => Ok(Session::Primary),
        "read-only" | "standby" | "prefer-standby" => {
            bad(format!("has target_session_attrs={value}, but oncegate writes: use read-write"))
        }
        _ => bad("has an unknown target_session_attrs: it is any, read-write or primary"),
    }
}

/// As libpq has it: no limit for 0 or less.
fn seconds(value: &str) -> Result<Option<Duration>, BadUrl> {
    match value.trim().parse::<i32>() {
        Ok(seconds) => Ok(u64::try_from(seconds).ok().filter(|s| *s > 0).map(Duration::from_secs)),
        Err(_) => bad("has a connect_timeout that is not an integer number of seconds"),
    }
}

fn capacity(value: &str) -> Result<usize, BadUrl> {
    value.parse().or_else(|_| bad("has a statement-cache-capacity that is not an integer"))
}

fn check_tls(target: &mut Target) -> Result<(), BadUrl> {
    let tls = &mut target.tls;
    if tls.root.as_deref() == Some("system") {
        let mode = *tls.mode.get_or_insert(TlsMode::VerifyFull);
        if mode != TlsMode::VerifyFull {
            return bad(
                "has sslrootcert=system with a weaker sslmode than verify-full (defaults come \
                 from PGSSLROOTCERT and PGSSLMODE)",
            );
        }
    }
    if tls.certificate.is_some() != tls.key.is_some() {
        return bad("has one of sslcert and sslkey without the other (defaults come from \
             PGSSLCERT and PGSSLKEY)");
    }
    Ok(())
}

/// A value in `-c name=value`: <https://www.postgresql.org/docs/current/libpq-connect.html>.
fn escape(value: &str) -> String {
    value.replace('\\', r"\\").replace(' ', r"\ ")
}

/// Names the parameter, unless it may be what follows an `&` in a password.
fn unknown(name: &str, query: &str) -> String {
    let mut all = pairs(query);
    let in_password =
        all.any(|(other, _)| other == "password") || !query.contains(&format!("{name}="));
    if let Some((_, instead)) = ELSEWHERE.iter().find(|(other, _)| *other == name) {
        return format!("has the parameter {name}, which is not supported: {instead}");
    }
    if is_word(name) && !in_password {
        return format!("has the unknown parameter {name}{}", suggestion(name, &KNOWN));
    }
    "has an unknown parameter (is a ? or & in a user name or password not percent-encoded?)"
        .to_owned()
}

/// The name that is nearest to one that is unknown.
fn suggestion(name: &str, names: &[&str]) -> String {
    let off = |known: &&&str| strsim::osa_distance(name, known);
    match names.iter().min_by_key(off) {
        Some(near) if off(&near) < NEAR.min(near.len()) => format!(" (did you mean {near}?)"),
        _ => String::new(),
    }
}
