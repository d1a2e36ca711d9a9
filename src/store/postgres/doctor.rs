//! Checks a database as a server would use it, and changes nothing.

use std::time::Duration;

use sqlx::{Connection as _, Executor as _, PgConnection, postgres::PgConnectOptions};
use tokio::time::{Instant, timeout};

use super::{
    Postgres, about::About, classify, connect::is_off_host, maintenance::PING, migrate, namespace,
    notify_channel::Channel, privileges, timed,
};
use crate::store::{
    StoreError,
    doctor::{Check, Finding, Findings, Planned, Unanswered, fence, schema},
};

mod budget;
mod session;
mod state;

/// What a server can do with the schema as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Serve,
    Migrate,
    /// Make it, and its tables.
    Create,
    /// It does not start.
    None,
}

/// Whether nothing can be written, whatever the schema.
pub(super) const READ_ONLY: &str =
    "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean";

/// Whether the role may make a schema.
pub(super) const MAY_CREATE: &str = "SELECT has_database_privilege(current_database(), 'CREATE')";

/// $1: the name of a schema.
pub(super) const SCHEMA_EXISTS: &str =
    "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)";

/// The first version that has all that the statements use.
const OLDEST: i32 = 130_000;

pub(super) use session::{PREPARED, SETTINGS, TLS};
pub(super) use state::{AUTOVACUUM, STANDBYS};

impl Postgres {
    /// Checks the database as a server that is `planned` would use it.
    pub async fn examine(&self, planned: Planned) -> Vec<Check> {
        let mut findings = Findings::new(self.timeout * 2);
        // Of a store that does not answer, what was found until then is all.
        let _ = self.examine_into(&mut findings, planned).await;
        findings.checks
    }

    async fn examine_into(
        &self,
        findings: &mut Findings,
        planned: Planned,
    ) -> Result<(), Unanswered> {
        let connector = self.connector.for_short(self.timeout);
        let mut opened = None;
        let begun = Instant::now();
        let reach = async {
            let (connection, options) = connector.connect_with_options().await.map_err(classify)?;
            let found = format!("{} in {:?}", place(&options), rounded(begun.elapsed()));
            opened = Some((connection, options));
            Ok(Finding::ok(found))
        };
        findings.add("reachable", reach).await?;
        let Some((mut connection, options)) = opened else { return Err(Unanswered) };
        let database = &mut connection;
        findings.add("tls", session::tls(database, &options)).await?;
        let mut about = None;
        let version = async {
            let read = about.insert(About::of(database).await?);
            Ok(version(read))
        };
        findings.add("version", version).await?;
        // Before this opens others.
        findings.add("connections", budget::connections(database, planned)).await?;
        findings.add("settings", session::settings(database, connector.settings())).await?;
        let prepared = session::prepared(database, &connector, self.timeout / 2);
        findings.add("prepared statements", prepared).await?;

        let mut use_of_schema = Use::None;
        let read = async {
            if planned.migrate
                && let Some(name) = missing_schema(database, connector.schema()).await?
            {
                use_of_schema = Use::Create;
                let found = format!("the schema {name:?} does not exist");
                return Ok(Finding::warning(found).advise(
                    "`oncegate serve` makes it when it starts, or run `oncegate migrate`",
                ));
            }
            let state = migrate::state(database).await;
            if let Err(error @ StoreError::Unavailable(_)) = state {
                return Err(error);
            }
            use_of_schema = match &state {
                Ok(state) if state.pending.is_empty() => Use::Serve,
                Ok(_) if planned.migrate => Use::Migrate,
                _ => Use::None,
            };
            Ok(schema(state, planned))
        };
        findings.add("schema", read).await?;
        findings.add("privileges", may(database, use_of_schema)).await?;
        findings.add("writable", is_writable(database, use_of_schema)).await?;
        if let Some(about) = &about {
            findings.add("durability", state::durability(database, about)).await?;
        }
        findings.add("clock", state::clock(database)).await?;
        if use_of_schema == Use::Serve {
            let read = async { Ok(fence(self.read_fence(database).await?)) };
            findings.add("fence", read).await?;
        }
        findings.add("vacuum", state::vacuum(database)).await?;
        findings.add("transaction ids", state::transaction_ids(database)).await?;
        let _ = timeout(self.timeout, connection.close()).await;
        let listen = async {
            if use_of_schema == Use::Create {
                // A channel is named after its schema.
                return Ok(Finding::warning("not checked: there is no schema yet"));
            }
            self.hears().await
        };
        findings.add("listen", listen).await
    }

    /// Listens as a server does, to a channel that only this check notifies.
    async fn hears(&self) -> Result<Finding, StoreError> {
        let channel = namespace::INVALIDATIONS;
        let open = Channel::open(&self.connector, "doctor", channel, self.timeout);
        Ok(match timed(self.timeout.mul_f64(1.5), open).await {
            Ok(_) => Finding::ok("notifications arrive"),
            Err(error) => Finding::warning(error.to_string()).advise(
                "duplicates are looked up in the database, and a waiter on another replica is \
                 found by polling; connect without the proxy, or pool sessions",
            ),
        })
    }
}

/// The schema that is `wanted`, if there is none of that name.
async fn missing_schema<'a>(
    database: &mut PgConnection,
    wanted: Option<&'a str>,
) -> Result<Option<&'a str>, StoreError> {
    let Some(name) = wanted else { return Ok(None) };
    let exists = sqlx::query_scalar(SCHEMA_EXISTS).bind(name).persistent(false);
    let exists: bool = exists.fetch_one(database).await.map_err(classify)?;
    Ok((!exists).then_some(name))
}

/// Where a connection leads, without a secret.
fn place(options: &PgConnectOptions) -> String {
    match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    }
}

fn rounded(span: Duration) -> Duration {
    let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(micros.next_multiple_of(100))
}

fn version(about: &About) -> Finding {
    let found = format!("PostgreSQL {}", about.version);
    if about.number.is_some_and(|number| number < OLDEST) {
        return Finding::failed(found).advise("oncegate needs PostgreSQL 13 or newer");
    }
    Finding::ok(found)
}

/// Whether the role may do what a server does at this schema.
async fn may(database: &mut PgConnection, use_of_schema: Use) -> Result<Finding, StoreError> {
    match use_of_schema {
        Use::None => Ok(Finding::warning("not checked: the schema cannot be used as it is")),
        Use::Create => {
            let may = sqlx::query_scalar(MAY_CREATE).persistent(false).fetch_one(database);
            Ok(if may.await.map_err(classify)? {
                Finding::ok("the role may make the schema")
            } else {
                Finding::failed("the role may not make the schema").advise(
                    "GRANT CREATE ON DATABASE to the role, or make the schema and GRANT CREATE and \
                     USAGE ON SCHEMA",
                )
            })
        }
        Use::Migrate => Ok(match privileges::why_no_migration(database).await? {
            None => Finding::ok("the role may migrate the schema"),
            Some(why) => Finding::failed(why).advise(
                "run `oncegate migrate` as the owner of the tables, and `serve --migrate=false`",
            ),
        }),
        Use::Serve => match privileges::check(database).await {
            Ok(()) => Ok(Finding::ok("the role has all that the service needs")),
            Err(StoreError::Misconfigured(why)) => Ok(Finding::failed(&*why)),
            Err(error) => Err(error),
        },
    }
}

/// Runs the probe of a server.
async fn is_writable(
    database: &mut PgConnection,
    use_of_schema: Use,
) -> Result<Finding, StoreError> {
    if use_of_schema != Use::Serve {
        let read = sqlx::query_scalar::<_, bool>(READ_ONLY).persistent(false).fetch_one(database);
        return Ok(if read.await.map_err(classify)? {
            Finding::failed("the server is a standby or read-only").advise("connect to the primary")
        } else {
            Finding::warning("not checked: the probe needs an up-to-date schema")
        });
    }
    let Err(error) = sqlx::raw_sql(PING).execute(&mut *database).await.map_err(classify) else {
        return Ok(Finding::ok("the probe wrote to each table and rolled back"));
    };
    database.execute("ROLLBACK").await.map_err(classify)?;
    let finding = Finding::failed(error.to_string());
    Ok(if error.to_string().contains("SQLSTATE 25006") {
        finding.advise("connect to the primary")
    } else {
        finding
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Durability, doctor::Severity};

    #[test]
    fn an_old_version_is_refused() {
        let of = |number| About {
            version: "x".to_owned(),
            number: Some(number),
            durability: Durability::Durable,
            synchronous_commit: None,
            standby_names: None,
        };
        for (number, severity) in
            [(120_022, Severity::Failed), (130_000, Severity::Ok), (180_001, Severity::Ok)]
        {
            assert_eq!(version(&of(number)).severity, severity, "{number}");
        }
    }
}
