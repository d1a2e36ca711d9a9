//! How a target is handed to sqlx.

use std::fmt::Write as _;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sqlx::postgres::PgConnectOptions;

use super::url::{Host, Target};

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
