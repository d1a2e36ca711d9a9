//! A connection: how it is secured, and whether it is set as a server needs it.

use std::time::Duration;

use sqlx::{
    Connection as _, Executor as _, PgConnection, Row as _,
    postgres::{PgConnectOptions, PgSslMode},
};

use tokio::time::timeout;

use super::{super::connect::Connector, classify, is_off_host};
use crate::store::{StoreError, doctor::Finding};

pub(in super::super) const TLS: &str =
    "SELECT ssl, version, cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

/// $1: the names. A unit is of those that a setting of ours has, or none.
pub(in super::super) const SETTINGS: &str = "
SELECT name, setting, current_user::text AS role FROM pg_settings WHERE name = ANY ($1)
";

/// How long a second backend may take to answer, at most.
const PREPARED_TIMEOUT: Duration = Duration::from_secs(2);

/// Prepared under a name, as those of a server are.
pub(in super::super) const PREPARED: &str = "SELECT $1::bigint";

pub(super) async fn tls(
    database: &mut PgConnection,
    options: &PgConnectOptions,
) -> Result<Finding, StoreError> {
    let row = sqlx::query(TLS).persistent(false).fetch_one(database).await.map_err(classify)?;
    let text = |column| row.try_get::<Option<String>, _>(column).map_err(classify);
    let (is_off_host, mode) = (is_off_host(options), options.get_ssl_mode());
    let is_checked = matches!(mode, PgSslMode::VerifyCa | PgSslMode::VerifyFull);
    if !row.try_get::<bool, _>("ssl").map_err(classify)? {
        return Ok(if is_off_host {
            Finding::warning("connections to another host are not encrypted")
                .advise("use sslmode=verify-full")
        } else {
            Finding::ok("not encrypted, and on this machine")
        });
    }
    let (version, cipher) = (text("version")?, text("cipher")?);
    let found = [version, cipher].into_iter().flatten().collect::<Vec<_>>().join(" ");
    Ok(if is_off_host && !is_checked {
        Finding::warning(format!("{found}; the certificate is not verified"))
            .advise("use sslmode=verify-full")
    } else {
        Finding::ok(found)
    })
}

/// Whether the connection has the settings that it was opened with. A proxy may drop them.
pub(super) async fn settings(
    database: &mut PgConnection,
    wanted: &[(&'static str, String)],
) -> Result<Finding, StoreError> {
    // Without a keepalive, only a backend whose client is lost stays for longer.
    let wanted = wanted.iter().filter(|(name, _)| !name.starts_with("tcp_"));
    let wanted = wanted.map(|(name, value)| (*name, value.as_str())).collect::<Vec<_>>();
    let names = wanted.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>();
    let rows = sqlx::query(SETTINGS).bind(&names).persistent(false).fetch_all(database).await;
    let rows = rows.map_err(classify)?;
    let mut role = String::new();
    let mut lost = Vec::new();
    for (name, value) in &wanted {
        let is_it =
            |row: &&sqlx::postgres::PgRow| row.try_get("name").is_ok_and(|n: String| n == *name);
        // A version that does not have it needs none.
        let Some(row) = rows.iter().find(is_it) else { continue };
        role = row.try_get("role").map_err(classify)?;
        let is: String = row.try_get("setting").map_err(classify)?;
        if is != value.trim_end_matches("ms") {
            lost.push((name, value, is));
        }
    }
    if lost.is_empty() {
        return Ok(Finding::ok(format!("{} are as requested", names.join(", "))));
    }
    let found = lost.iter().map(|(name, _, is)| format!("{name} is {is}")).collect::<Vec<_>>();
    let cure =
        lost.iter().map(|(name, value, _)| format!("ALTER ROLE \"{role}\" SET {name} = '{value}'"));
    Ok(Finding::warning(format!("a proxy drops the settings of connections: {}", found.join(", ")))
        .advise(cure.collect::<Vec<_>>().join("; ")))
}

/// Whether a statement that was prepared can be run again. A proxy that pools transactions may
/// run it on another backend: so one is kept in use meanwhile. The check is to end within four times
/// `limit`.
pub(super) async fn prepared(
    database: &mut PgConnection,
    connector: &Connector,
    limit: Duration,
) -> Result<Finding, StoreError> {
    let limit = limit.min(PREPARED_TIMEOUT);
    let mut other = match connector.connect().await {
        Ok(other) => other,
        // The replicas may have all but one of the connections.
        Err(error) => {
            let found = format!("not checked, as there is no second connection: {error}");
            return Ok(Finding::warning(found));
        }
    };
    run_prepared(database).await.map_err(classify)?;
    // The backend that was used last is the first to be used again.
    other.execute("BEGIN").await.map_err(classify)?;
    // A pool of one backend has none for it.
    let again = timeout(limit, run_prepared(database)).await;
    other.execute("ROLLBACK").await.map_err(classify)?;
    let _ = timeout(limit, other.close()).await;
    match again {
        Ok(Ok(())) => Ok(Finding::ok("a prepared statement can be run again")),
        Ok(Err(error)) => match classify(error) {
            StoreError::Misconfigured(why) => Ok(Finding::failed(&*why)),
            error => Err(error),
        },
        Err(_) => Err(StoreError::unavailable(
            "no second connection gets an answer while a transaction is open on the first: does a \
             proxy pool them on one backend?",
        )),
    }
}

async fn run_prepared(database: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query(PREPARED).bind(1_i64).fetch_one(database).await.map(drop)
}
