//! How a bot hands a conversation over with nothing but PostgreSQL.

use std::{thread, time::Duration};

use anyhow::{Context as _, ensure};
use tokio::runtime::Runtime;
use tokio_postgres::{Client, NoTls, Statement};
use uuid::Uuid;

use super::postgres::{GIVE_BACK_LEASE, LOCK, TAKE_LEASE, UNLOCK};
use crate::{handover::Party, load::keys::Keys};

/// How often a bot looks whether the session is free: more often is a load on the
/// database, and less often a wait for whoever wrote.
const POLL: Duration = Duration::from_millis(100);

/// A connection of one party's own, which waits in its thread.
struct Link {
    runtime: Runtime,
    client: Client,
    take: Statement,
    give: Statement,
}

impl Link {
    fn connect(url: &str, take: &str, give: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let connected = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
            tokio::spawn(connection);
            let (take, give) = (client.prepare(take).await?, client.prepare(give).await?);
            anyhow::Ok((client, take, give))
        });
        let (client, take, give) = connected.context("connect")?;
        Ok(Self { runtime, client, take, give })
    }
}

/// Waits for an advisory lock, of its connection: it is nobody's once that is lost,
/// and knows of no end and no fence.
pub struct Advisory {
    link: Link,
    key: i64,
}

impl Advisory {
    pub fn connect(url: &str, seed: u64) -> anyhow::Result<Self> {
        let link = Link::connect(url, LOCK, UNLOCK)?;
        Ok(Self { link, key: seed.cast_signed() })
    }
}

impl Party for Advisory {
    fn take(&mut self) -> anyhow::Result<()> {
        let Link { runtime, client, take, .. } = &self.link;
        runtime.block_on(async { client.query_one(take, &[&self.key]).await })?;
        Ok(())
    }

    fn give(&mut self) -> anyhow::Result<()> {
        let Link { runtime, client, give, .. } = &self.link;
        let row = runtime.block_on(async { client.query_one(give, &[&self.key]).await })?;
        ensure!(row.get::<_, bool>(0), "it was not held");
        Ok(())
    }
}

/// Takes a durable lease by a statement, again and again until it has it.
pub struct Polling {
    link: Link,
    team: &'static str,
    session: String,
    lease: Uuid,
}

impl Polling {
    pub fn connect(url: &str, seed: u64) -> anyhow::Result<Self> {
        let keys = Keys::new(seed, 0);
        let link = Link::connect(url, TAKE_LEASE, GIVE_BACK_LEASE)?;
        Ok(Self { link, team: keys.team(), session: keys.session(0), lease: Uuid::nil() })
    }
}

impl Party for Polling {
    fn take(&mut self) -> anyhow::Result<()> {
        let Link { runtime, client, take, .. } = &self.link;
        self.lease = Uuid::new_v4();
        loop {
            let taken = async {
                client.query(take, &[&self.team, &self.session, &self.lease, &"bot"]).await
            };
            if !runtime.block_on(taken)?.is_empty() {
                return Ok(());
            }
            thread::sleep(POLL);
        }
    }

    fn give(&mut self) -> anyhow::Result<()> {
        let Link { runtime, client, give, .. } = &self.link;
        let given = async { client.execute(give, &[&self.team, &self.session, &self.lease]).await };
        ensure!(runtime.block_on(given)? == 1, "it was not held");
        Ok(())
    }
}
