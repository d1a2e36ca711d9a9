//! PostgreSQL through tokio-postgres, the driver that was found to cost least.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use tokio_postgres::{Client, NoTls, Statement};
use uuid::Uuid;

use super::{Caller, Spec, drive};
use crate::load::Report;
use crate::load::keys::Keys;

const INSERT: &str =
    "INSERT INTO processed_events (team_id, event_id) VALUES ($1, $2) ON CONFLICT DO NOTHING";

/// The least that tells which events were new, into the table of oncegate's own
/// schema: its rows, its indexes.
const INSERT_ARRAYS: &str = "
INSERT INTO processed_events (team_id, event_id, processed_at, expires_at, request_id)
SELECT * FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::uuid[])
ON CONFLICT DO NOTHING RETURNING event_id
";

/// A session is free when it is not there, given back, or expired.
pub(super) const TAKE_LEASE: &str = "
INSERT INTO leases AS l (team_id, session_id, lease_id, holder, expires_at)
VALUES ($1, $2, $3, $4, now() + interval '30 seconds')
ON CONFLICT (team_id, session_id) DO UPDATE
SET lease_id = EXCLUDED.lease_id, holder = EXCLUDED.holder, expires_at = EXCLUDED.expires_at,
    fencing_token = l.fencing_token + 1
WHERE l.expires_at <= now()
RETURNING fencing_token
";

pub(super) const GIVE_BACK_LEASE: &str = "
UPDATE leases SET expires_at = now()
WHERE team_id = $1 AND session_id = $2 AND lease_id = $3 AND expires_at > now()
";

pub(super) const LOCK: &str = "SELECT pg_advisory_lock($1)";
pub(super) const UNLOCK: &str = "SELECT pg_advisory_unlock($1)";

/// The events' time to live: 24 hours, the default of oncegate.
const TTL: Duration = Duration::from_hours(24);

const LOOK: &str = "SELECT FROM processed_events WHERE team_id = $1 AND event_id = $2";

/// One connection and what it has prepared.
struct Prepared {
    client: Client,
    statements: Vec<Statement>,
}

/// Opens the load's connections, each with `statements` prepared.
async fn connect(spec: &Spec, statements: &[&str]) -> anyhow::Result<Vec<Arc<Prepared>>> {
    let mut connections = Vec::with_capacity(spec.connections);
    for _ in 0..spec.connections {
        let (client, connection) =
            tokio_postgres::connect(&spec.target, NoTls).await.context("connect")?;
        tokio::spawn(connection);
        let mut prepared = Vec::with_capacity(statements.len());
        for statement in statements {
            prepared.push(client.prepare(statement).await?);
        }
        connections.push(Arc::new(Prepared { client, statements: prepared }));
    }
    Ok(connections)
}

struct Inserts {
    connection: Arc<Prepared>,
    keys: Keys,
    id: String,
}

impl Caller for Inserts {
    async fn work(&mut self) -> anyhow::Result<Option<u64>> {
        self.keys.rising(&mut self.id);
        let Prepared { client, statements } = &*self.connection;
        let inserted = client.execute(&statements[0], &[&self.keys.team(), &self.id]).await?;
        Ok((inserted == 1).then_some(1))
    }
}

/// The callers share the connections evenly: the driver sends the statements of
/// those on one connection without waiting for each other.
pub(super) async fn inserts(spec: &Spec) -> anyhow::Result<Report> {
    let connections = connect(spec, &[INSERT]).await?;
    let caller = |number: usize| Inserts {
        connection: Arc::clone(&connections[number % connections.len()]),
        keys: Keys::new(spec.seed, number),
        id: String::new(),
    };
    drive(spec, (0..spec.callers).map(caller)).await
}

struct Arrays {
    connection: Arc<Prepared>,
    keys: Keys,
    teams: Vec<&'static str>,
    ids: Vec<String>,
    processed: Vec<SystemTime>,
    expires: Vec<SystemTime>,
    requests: Vec<Uuid>,
}

impl Arrays {
    fn new(connection: Arc<Prepared>, keys: Keys, items: usize) -> Self {
        Self {
            connection,
            teams: vec![keys.team(); items],
            keys,
            ids: vec![String::new(); items],
            processed: vec![SystemTime::UNIX_EPOCH; items],
            expires: vec![SystemTime::UNIX_EPOCH; items],
            requests: vec![Uuid::nil(); items],
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a rival may take the time from its own clock")]
    fn renew(&mut self) {
        for id in &mut self.ids {
            self.keys.rising(id);
        }
        let now = SystemTime::now();
        self.processed.fill(now);
        self.expires.fill(now + TTL);
        self.requests.fill_with(Uuid::new_v4);
    }
}

impl Caller for Arrays {
    async fn work(&mut self) -> anyhow::Result<Option<u64>> {
        self.renew();
        let Self { connection, teams, ids, processed, expires, requests, .. } = self;
        let Prepared { client, statements } = &**connection;
        let new =
            client.query(&statements[0], &[teams, ids, processed, expires, requests]).await?.len();
        Ok((new == ids.len()).then_some(new as u64))
    }
}

pub(super) async fn arrays(spec: &Spec) -> anyhow::Result<Report> {
    let connections = connect(spec, &[INSERT_ARRAYS]).await?;
    let caller = |number: usize| {
        let connection = Arc::clone(&connections[number % connections.len()]);
        Arrays::new(connection, Keys::new(spec.seed, number), spec.items)
    };
    drive(spec, (0..spec.callers).map(caller)).await
}

struct Leases {
    connection: Arc<Prepared>,
    team: &'static str,
    session: String,
}

impl Caller for Leases {
    async fn work(&mut self) -> anyhow::Result<Option<u64>> {
        let Prepared { client, statements } = &*self.connection;
        let lease = Uuid::new_v4();
        let (team, session, holder) = (self.team, &self.session, "bot-7d9f8b6c5-x2x7v");
        let taken = client.query(&statements[0], &[&team, session, &lease, &holder]).await?;
        if taken.len() != 1 {
            return Ok(None);
        }
        let given_back = client.execute(&statements[1], &[&team, session, &lease]).await?;
        Ok((given_back == 1).then_some(1))
    }
}

pub(super) async fn leases(spec: &Spec) -> anyhow::Result<Report> {
    let connections = connect(spec, &[TAKE_LEASE, GIVE_BACK_LEASE]).await?;
    let caller = |number: usize| {
        let keys = Keys::new(spec.seed, number);
        let connection = Arc::clone(&connections[number % connections.len()]);
        Leases { connection, team: keys.team(), session: keys.session(number) }
    };
    drive(spec, (0..spec.callers).map(caller)).await
}

struct Pings(Arc<Prepared>);

impl Caller for Pings {
    async fn work(&mut self) -> anyhow::Result<Option<u64>> {
        let rows = self.0.client.query(&self.0.statements[0], &[]).await?;
        Ok((rows.len() == 1).then_some(1))
    }
}

pub(super) async fn pings(spec: &Spec) -> anyhow::Result<Report> {
    let connections = connect(spec, &["SELECT"]).await?;
    let caller = |number: usize| Pings(Arc::clone(&connections[number % connections.len()]));
    drive(spec, (0..spec.callers).map(caller)).await
}

struct AdvisoryLocks {
    connection: Arc<Prepared>,
    key: i64,
}

impl Caller for AdvisoryLocks {
    async fn work(&mut self) -> anyhow::Result<Option<u64>> {
        let Prepared { client, statements } = &*self.connection;
        client.query_one(&statements[0], &[&self.key]).await?;
        let row = client.query_one(&statements[1], &[&self.key]).await?;
        Ok(row.get::<_, bool>(0).then_some(1))
    }
}

pub(super) async fn advisory_locks(spec: &Spec) -> anyhow::Result<Report> {
    let connections = connect(spec, &[LOCK, UNLOCK]).await?;
    let caller = |number: usize| AdvisoryLocks {
        connection: Arc::clone(&connections[number]),
        key: spec.seed.cast_signed(),
    };
    drive(spec, (0..spec.callers).map(caller)).await
}

struct Turns {
    lease: Leases,
    keys: Keys,
    id: String,
}

impl Caller for Turns {
    async fn work(&mut self) -> anyhow::Result<Option<u64>> {
        self.keys.rising(&mut self.id);
        let Self { lease: Leases { connection, team, session }, id, .. } = self;
        let Prepared { client, statements } = &**connection;
        if !client.query(&statements[2], &[team, id]).await?.is_empty() {
            return Ok(None);
        }
        let lease = Uuid::new_v4();
        let taken = client.query(&statements[0], &[team, session, &lease, &"bot"]).await?;
        let inserted = client.execute(&statements[3], &[team, id]).await?;
        let given_back = client.execute(&statements[1], &[team, session, &lease]).await?;
        Ok((taken.len() == 1 && inserted == 1 && given_back == 1).then_some(1))
    }
}

pub(super) async fn turns(spec: &Spec) -> anyhow::Result<Report> {
    let statements = [TAKE_LEASE, GIVE_BACK_LEASE, LOOK, INSERT];
    let connections = connect(spec, &statements).await?;
    let caller = |number: usize| {
        let keys = Keys::new(spec.seed, number);
        let connection = Arc::clone(&connections[number % connections.len()]);
        let lease = Leases { connection, team: keys.team(), session: keys.session(number) };
        Turns { lease, keys, id: String::new() }
    };
    drive(spec, (0..spec.callers).map(caller)).await
}
