//! What several goals run.

use std::{cell::OnceCell, rc::Rc};

use anyhow::Context as _;

use super::Subject;
use crate::{
    bench::{Bench, GrpcLoad, RivalLoad},
    cluster::Database,
    peers,
    proxy::Proxy,
    rivals, run,
    run::{Job, Run, Watched},
    server::Server,
};

macro_rules! bots_table {
    () => {
        "
CREATE TABLE processed_events (
    team_id TEXT, event_id TEXT, processed_at TIMESTAMPTZ DEFAULT NOW(),
    PRIMARY KEY (team_id, event_id)
);
CREATE INDEX idx_processed_events_time ON processed_events (processed_at);
"
    };
}

macro_rules! leases_table {
    () => {
        "
CREATE TABLE leases (
    team_id TEXT COLLATE \"C\", session_id TEXT COLLATE \"C\",
    fencing_token BIGINT NOT NULL DEFAULT 1,
    lease_id UUID NOT NULL, holder TEXT NOT NULL, expires_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (team_id, session_id)
) WITH (fillfactor = 70);
"
    };
}

/// The table that a bot has today.
pub const BOTS_TABLE: &str = bots_table!();

/// Where single statements keep leases. A renewal touches no index.
pub const LEASES_TABLE: &str = leases_table!();

/// Both.
const BOTS_TABLES: &str = concat!(bots_table!(), leases_table!());

/// Follows the truncation of a subject's tables, so that all runs begin alike.
/// They are truncated after a run, too, so that no vacuum comes to them later.
pub const CHECKPOINT: &str = "CHECKPOINT";
pub const EMPTY_EVENTS: &str = "TRUNCATE processed_events";
pub const EMPTY_ONCEGATE: &str = "TRUNCATE processed_events, oncegate_sessions";
pub const EMPTY_LEASES: &str = "TRUNCATE leases";
/// Empties a database without tables.
const NOTHING: &str = "SELECT";
const EMPTY_BOTS_TABLES: &str = "TRUNCATE processed_events, leases";

/// No sweep falls into a measurement.
pub const NO_SWEEP: [&str; 2] = ["--sweep-interval", "1h"];

/// A database that is made when it is first needed, and then prepared by
/// `schema`.
pub struct Lazy<'a> {
    bench: &'a Bench,
    schema: &'static str,
    database: OnceCell<Database<'a>>,
    /// The network between the database and what is measured.
    proxy: Option<Rc<Proxy>>,
}

impl<'a> Lazy<'a> {
    pub fn new(bench: &'a Bench, schema: &'static str) -> Self {
        Self { bench, schema, database: OnceCell::new(), proxy: None }
    }

    /// The same, for subjects that reach it through `proxy`.
    pub fn through(mut self, proxy: Rc<Proxy>) -> Self {
        self.proxy = Some(proxy);
        self
    }

    /// Where a subject reaches it.
    pub fn url(&self) -> anyhow::Result<String> {
        let url = &self.get()?.url;
        Ok(self.proxy.as_ref().map_or_else(|| url.clone(), |proxy| proxy.url(url)))
    }

    pub fn get(&self) -> anyhow::Result<&Database<'a>> {
        if let Some(database) = self.database.get() {
            return Ok(database);
        }
        let database = self.bench.cluster.create().context("make a database")?;
        if !self.schema.is_empty() {
            database.execute(self.schema).context("make its tables")?;
        }
        Ok(self.database.get_or_init(|| database))
    }
}

impl Drop for Lazy<'_> {
    /// What a goal has left behind must not be vacuumed during the next.
    fn drop(&mut self) {
        if let Some(Err(error)) = self.database.take().map(Database::remove) {
            eprintln!("  a database stays: {error:#}");
        }
    }
}

/// Starts oncegate on `database` and empties what is there.
pub fn fresh(database: &Lazy<'_>, flags: &[&str]) -> anyhow::Result<Server> {
    let server = database.bench.serve(&database.url()?, flags)?;
    database.get()?.execute(EMPTY_ONCEGATE)?;
    database.get()?.execute(CHECKPOINT)?;
    Ok(server)
}

/// oncegate, on a database of its own that is emptied before each run, under
/// one load.
pub fn oncegate<'a>(bench: &'a Bench, id: &'static str, what: &str, load: GrpcLoad) -> Subject<'a> {
    served(Lazy::new(bench, ""), id, what, load)
}

/// The same, on `database`.
pub fn served<'a>(database: Lazy<'a>, id: &'static str, what: &str, load: GrpcLoad) -> Subject<'a> {
    let run = move || {
        let server = fresh(&database, &NO_SWEEP)?;
        let run = on(database.bench, &server, load);
        database.get()?.execute(EMPTY_ONCEGATE)?;
        run
    };
    Subject { id, what: what.to_owned(), run: Box::new(run) }
}

/// One load on a server over PostgreSQL that runs.
pub fn on(bench: &Bench, server: &Server, load: GrpcLoad) -> anyhow::Result<Run> {
    let watched = Watched { server: Some(server.pid()), cluster: Some(&bench.cluster) };
    bench.grpc(&server.address, load, watched)
}

/// A rival that asks PostgreSQL, on a database that `empty` empties before each run.
pub fn direct<'a>(
    database: Lazy<'a>,
    id: &'static str,
    what: &str,
    empty: &'static str,
    load: RivalLoad,
) -> Subject<'a> {
    let run = move || {
        let bench = database.bench;
        let spec = bench.rival(&database.url()?, load);
        let database = database.get()?;
        database.execute(empty)?;
        database.execute(CHECKPOINT)?;
        let watched = Watched { server: None, cluster: Some(&bench.cluster) };
        let run = if load.work == rivals::Work::AsyncpgInsert {
            run::python(bench.python()?, rivals::ASYNCPG, &spec, watched)
        } else {
            run::load(&Job::Rival(spec), watched)
        };
        database.execute(empty)?;
        run
    };
    Subject { id, what: what.to_owned(), run: Box::new(run) }
}

/// Single inserts into the table that a bot has today.
pub fn inserts<'a>(
    bench: &'a Bench,
    id: &'static str,
    what: &str,
    work: rivals::Work,
    (connections, callers): (usize, usize),
) -> Subject<'a> {
    let load = RivalLoad { work, connections, callers, items: 1 };
    direct(Lazy::new(bench, BOTS_TABLE), id, what, EMPTY_EVENTS, load)
}

/// Leases by single statements, a connection a caller.
pub fn statement_leases<'a>(bench: &'a Bench, id: &'static str, callers: usize) -> Subject<'a> {
    let what = format!("SQL: a statement takes, one gives back; {callers} connections");
    let work = rivals::Work::PostgresLease;
    let load = RivalLoad { work, connections: callers, callers, items: 1 };
    direct(Lazy::new(bench, LEASES_TABLE), id, &what, EMPTY_LEASES, load)
}

/// A lock of PostgreSQL that all callers take in turns, a connection a caller.
pub fn advisory_lock<'a>(bench: &'a Bench, id: &'static str, callers: usize) -> Subject<'a> {
    let what = format!("SQL: pg_advisory_lock, {callers} connections");
    let work = rivals::Work::PostgresAdvisoryLock;
    let load = RivalLoad { work, connections: callers, callers, items: 1 };
    direct(Lazy::new(bench, ""), id, &what, NOTHING, load)
}

/// What a turn does, by four statements, a connection a caller.
pub fn statement_turns<'a>(bench: &'a Bench, id: &'static str, callers: usize) -> Subject<'a> {
    let what = format!("SQL: look, take, insert, give back; {callers} connections");
    let work = rivals::Work::PostgresTurn;
    let load = RivalLoad { work, connections: callers, callers, items: 1 };
    direct(Lazy::new(bench, BOTS_TABLES), id, &what, EMPTY_BOTS_TABLES, load)
}

/// Arrays, into the very table that oncegate has.
pub fn arrays<'a>(bench: &'a Bench, id: &'static str, items: usize) -> Subject<'a> {
    let database = Lazy::new(bench, "");
    let run = move || {
        // The server makes its schema, and leaves.
        drop(fresh(&database, &NO_SWEEP)?);
        let work = rivals::Work::PostgresArrays;
        let load = RivalLoad { work, connections: 2, callers: 2, items };
        let spec = bench.rival(&database.get()?.url, load);
        let watched = Watched { server: None, cluster: Some(&bench.cluster) };
        let run = run::load(&Job::Rival(spec), watched);
        database.get()?.execute(EMPTY_ONCEGATE)?;
        run
    };
    let what = format!("SQL: unnest of {items} rows, 2 connections, oncegate's table");
    Subject { id, what, run: Box::new(run) }
}

/// Redis, emptied before each run.
pub fn redis<'a>(
    bench: &'a Bench,
    id: &'static str,
    what: &str,
    work: rivals::Work,
    callers: usize,
) -> Subject<'a> {
    let run = move || {
        let redis = bench.redis()?;
        peers::flush(redis)?;
        let load = RivalLoad { work, connections: 1, callers, items: 1 };
        let watched = Watched { server: Some(redis.pid()), cluster: None };
        run::load(&Job::Rival(bench.rival(&redis.address, load)), watched)
    };
    Subject { id, what: what.to_owned(), run: Box::new(run) }
}
