//! Opens the store that the settings name, for as long as a server runs or one command takes.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::time::Instant;

use crate::{
    config::StoreConfig,
    domain::FencingToken,
    store::{
        Clock, Durability, Fence, FenceStore, Store, StoreError, StoreInfo,
        doctor::{self, Check, Planned},
        memory::Memory,
        postgres::{Origin, Postgres, Source},
        sqlite::Sqlite,
    },
    telemetry::StoreMetrics,
};

/// How long to wait before the database is tried again at start.
const CONNECT_PAUSE: Duration = Duration::from_millis(500);
/// How long to wait before the tables are locked again: other statements wait behind each try.
const LOCK_PAUSE: Duration = Duration::from_secs(3);

pub(super) enum Opened {
    Postgres(Postgres),
    Sqlite(Sqlite),
    Memory(Memory),
}

impl Opened {
    /// What a server was opened on.
    pub(super) async fn info(&self) -> Result<StoreInfo, StoreError> {
        match self {
            Self::Postgres(store) => {
                store.info().cloned().ok_or_else(|| StoreError::internal("its version is unknown"))
            }
            Self::Sqlite(store) => store.info().await,
            Self::Memory(_) => Ok(StoreInfo {
                kind: "memory",
                version: String::new(),
                durability: Durability::Memory,
            }),
        }
    }
}

/// Where a store is, as the settings have it.
enum StoreLocation {
    /// Its URL.
    Sqlite(String),
    Postgres(Source),
    Memory,
}

impl StoreLocation {
    fn of(config: &StoreConfig) -> anyhow::Result<Self> {
        let url = match &config.database_url_file {
            Some(file) => Origin::File(file.clone()),
            None => Origin::Given(config.database_url.expose().to_owned()),
        };
        let text = url.read()?;
        let Some((scheme @ ("sqlite" | "memory"), _)) = text.split_once(':') else {
            let password_file = config.database_password_file.clone();
            let schema = config.database_schema.clone();
            return Ok(Self::Postgres(Source { url, password_file, schema }));
        };
        for (option, is_given) in [
            ("--database-password-file", config.database_password_file.is_some()),
            ("--database-schema", config.database_schema.is_some()),
        ] {
            ensure!(
                !is_given,
                "{option} applies to PostgreSQL only, but the database URL is {scheme}:"
            );
        }
        if scheme == "sqlite" {
            return Ok(Self::Sqlite(text));
        }
        ensure!(
            text == "memory:",
            "--database-url: memory: takes no further parts, such as a path or parameters"
        );
        Ok(Self::Memory)
    }

    fn describe(&self) -> anyhow::Result<String> {
        match self {
            // No secret is in its path; its parameters are left out.
            Self::Sqlite(url) => Ok(url.split('?').next().unwrap_or_default().to_owned()),
            Self::Postgres(source) => Ok(source.describe()?),
            Self::Memory => Ok("memory:".to_owned()),
        }
    }
}

/// The store's place without what is secret about it.
///
/// # Errors
/// When it cannot be read.
pub fn describe(config: &StoreConfig) -> anyhow::Result<String> {
    StoreLocation::of(config)?.describe()
}

/// A server that is to run on a store.
pub(super) struct Served {
    /// The most connections for each kind of writing.
    pub(super) writers: usize,
    pub(super) metrics: StoreMetrics,
}

/// Opens the store and brings its schema up to date; for a server, if one is to run on it.
pub(super) async fn open(
    config: &StoreConfig,
    clock: Clock,
    migrate: bool,
    served: Option<Served>,
) -> anyhow::Result<Opened> {
    let location = StoreLocation::of(config)?;
    let shown = location.describe()?;
    let mut store = match location {
        StoreLocation::Sqlite(url) => {
            let store = Sqlite::open(&url, clock).await?;
            let ready = if migrate { store.migrate().await } else { store.verify().await };
            if let Err(error) = ready {
                close(store).await;
                return Err(error.into());
            }
            return Ok(Opened::Sqlite(store));
        }
        StoreLocation::Memory => {
            if served.is_some() {
                tracing::warn!(
                    store = shown,
                    "records are kept in memory only; every mark, lease and turn is lost when \
                     the server stops"
                );
            }
            return Ok(Opened::Memory(Memory::new(clock)));
        }
        StoreLocation::Postgres(source) => {
            let metrics = served.as_ref().map(|served| served.metrics.clone());
            Postgres::at(source, config.store_timeout, clock, &metrics.unwrap_or_default())?
        }
    };
    let until = Instant::now() + config.connect_timeout;
    loop {
        let Err(error) =
            prepare(&mut store, migrate, served.as_ref().map(|served| served.writers)).await
        else {
            return Ok(Opened::Postgres(store));
        };
        // Services that start together find each other in any order.
        let (awaited, pause) = match &error {
            StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_) => {
                ("the database", CONNECT_PAUSE)
            }
            StoreError::Conflict => ("another migration", CONNECT_PAUSE),
            StoreError::LockTimeout(_) => ("a lock on the tables", LOCK_PAUSE),
            _ => return Err(error).with_context(|| format!("cannot use {shown}")),
        };
        let now = Instant::now();
        if now >= until {
            let context = format!("cannot use {shown}: timed out waiting for {awaited}");
            return Err(error).context(context);
        }
        tracing::warn!(store = shown, %error, "waiting for {awaited}");
        tokio::time::sleep_until(until.min(now + pause)).await;
    }
}

/// Brings the schema up to date, and plans the connections of a server.
async fn prepare(
    store: &mut Postgres,
    migrate: bool,
    writers: Option<usize>,
) -> Result<(), StoreError> {
    if migrate {
        store.migrate().await?;
    } else {
        store.verify().await?;
    }
    match writers {
        Some(writers) => store.share(writers).await,
        None => Ok(()),
    }
}

/// Closes a store that nothing uses any more.
pub(super) async fn close(store: impl Store) {
    let closed = store.closed();
    drop(store);
    closed.await;
}

/// Brings the schema of a store up to date.
///
/// # Errors
/// When it cannot be.
pub async fn migrate(config: &StoreConfig) -> anyhow::Result<()> {
    match open(config, Clock::Store, true, None).await? {
        Opened::Postgres(store) => close(store).await,
        Opened::Sqlite(store) => close(store).await,
        Opened::Memory(store) => close(store).await,
    }
    Ok(())
}

/// Checks the store as a server that is `planned` would use it.
///
/// # Errors
/// When the settings name no store.
pub async fn doctor(config: &StoreConfig, planned: Planned) -> anyhow::Result<Vec<Check>> {
    Ok(match StoreLocation::of(config)? {
        StoreLocation::Sqlite(url) => Sqlite::examine(&url, planned).await,
        StoreLocation::Postgres(source) => {
            let store =
                Postgres::at(source, config.store_timeout, Clock::Store, &StoreMetrics::default())?;
            let checks = store.examine(planned).await;
            close(store).await;
            checks
        }
        StoreLocation::Memory => doctor::memory(),
    })
}

/// Refuses what would be done to a store of its own, and be lost with it.
fn outlives_this(config: &StoreConfig) -> anyhow::Result<()> {
    ensure!(
        !matches!(StoreLocation::of(config)?, StoreLocation::Memory),
        "--database-url: memory: exists only within the server's process; `oncegate fence` \
         cannot reach it"
    );
    Ok(())
}

/// The floor of fencing tokens in a store, whose schema is up to date.
///
/// # Errors
/// When it cannot be read, or the store is in memory.
pub async fn fence(config: &StoreConfig) -> anyhow::Result<Fence> {
    async fn read(store: impl Store + FenceStore) -> Result<Fence, StoreError> {
        let fence = store.fence().await;
        close(store).await;
        fence
    }
    outlives_this(config)?;
    Ok(match open(config, Clock::Store, false, None).await? {
        Opened::Postgres(store) => read(store).await?,
        Opened::Sqlite(store) => read(store).await?,
        Opened::Memory(store) => read(store).await?,
    })
}

/// Raises the floor of fencing tokens in a store to `floor`, unless it is higher.
///
/// # Errors
/// When it is not known to be raised, or the store is in memory.
pub async fn raise_fence(config: &StoreConfig, floor: FencingToken) -> anyhow::Result<Fence> {
    async fn raise(
        store: impl Store + FenceStore,
        floor: FencingToken,
    ) -> Result<Fence, StoreError> {
        let fence = store.raise_fence(floor).await;
        close(store).await;
        fence
    }
    outlives_this(config)?;
    Ok(match open(config, Clock::Store, false, None).await? {
        Opened::Postgres(store) => raise(store, floor).await?,
        Opened::Sqlite(store) => raise(store, floor).await?,
        Opened::Memory(store) => raise(store, floor).await?,
    })
}
