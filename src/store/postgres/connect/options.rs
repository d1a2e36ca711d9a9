//! How a target is handed to sqlx.

use std::fmt::Write as _;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::{
    is_code,
    url::{Host, Target, TlsMode},
};

/// The target as sqlx can read it, which is where it looks for a password in `PGPASSFILE`. What
/// the target leaves out comes from libpq's variables.
pub(super) fn canonical(target: &Target, host: Option<&Host>) -> String {
    let environment = PgConnectOptions::new_without_pgpass();
    let name = host.map(|host| host.name.as_str()).filter(|name| !name.is_empty());
    let port = host.and_then(|host| host.port).unwrap_or(environment.get_port());
    let user = target.user.as_deref().unwrap_or(environment.get_username());
    let mut url = String::from("postgres:///?");
    let mut add = |name: &str, value: &str| {
        let value = utf8_percent_encode(value, NON_ALPHANUMERIC);
        // Writing to a String cannot fail.
        let _ = write!(url, "{name}={value}&");
    };
    add("host", name.unwrap_or(environment.get_host()));
    add("port", &port.to_string());
    add("user", user);
    for (name, value) in [("dbname", &target.database), ("password", &target.password)] {
        if let Some(value) = value {
            add(name, value);
        }
    }
    for options in &target.options {
        add("options", options);
    }
    url
}

/// How to begin with TLS, and how to go on if that fails because of it: as libpq does.
pub(super) fn with_tls(
    target: &Target,
    options: PgConnectOptions,
) -> (PgConnectOptions, Option<PgConnectOptions>) {
    let modes = match target.tls.mode {
        // A Unix socket has none, whatever is asked for.
        _ if options.get_socket().is_some() => (PgSslMode::Disable, None),
        Some(TlsMode::Disable) => (PgSslMode::Disable, None),
        Some(TlsMode::Allow) => (PgSslMode::Disable, Some(PgSslMode::Require)),
        None | Some(TlsMode::Prefer) => (PgSslMode::Prefer, Some(PgSslMode::Disable)),
        Some(TlsMode::Require) if target.tls.root.is_some() => (PgSslMode::VerifyCa, None),
        Some(TlsMode::Require) => (PgSslMode::Require, None),
        Some(TlsMode::VerifyCa) => (PgSslMode::VerifyCa, None),
        Some(TlsMode::VerifyFull) => (PgSslMode::VerifyFull, None),
    };
    let fallback = modes.1.map(|mode| options.clone().ssl_mode(mode));
    (options.ssl_mode(modes.0), fallback)
}

/// Whether TLS is to blame, or its absence: 28000 is `pg_hba.conf` refusing the connection.
pub(super) fn is_about_tls(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Tls(_)) || is_code(error, "28000")
}
