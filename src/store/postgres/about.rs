//! What a server needs to know of PostgreSQL once: its version, and what a commit is worth.

use sqlx::{PgConnection, Row as _, postgres::PgRow};

use super::classify;
use crate::store::{Durability, StoreError, StoreInfo};

/// A database that only speaks PostgreSQL's protocol may lack a setting.
pub(super) const ABOUT: &str = "
SELECT current_setting('server_version', true) AS version,
    current_setting('server_version_num', true)::integer AS number,
    current_setting('fsync', true) AS fsync,
    current_setting('full_page_writes', true) AS full_page_writes,
    current_setting('synchronous_commit', true) AS synchronous_commit,
    current_setting('synchronous_standby_names', true) AS standby_names
";

/// What PostgreSQL says of itself.
pub(super) struct About {
    pub(super) version: String,
    /// Such as 150018 for 15.18.
    pub(super) number: Option<i32>,
    pub(super) durability: Durability,
    pub(super) synchronous_commit: Option<String>,
    pub(super) standby_names: Option<String>,
}

impl About {
    pub(super) async fn of(connection: &mut PgConnection) -> Result<Self, StoreError> {
        let read = async {
            let row = sqlx::query(ABOUT).persistent(false).fetch_one(connection).await?;
            Self::read(&row)
        };
        read.await.map_err(classify)
    }

    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        let setting = |name| row.try_get::<Option<String>, _>(name);
        let version = setting("version")?.unwrap_or_default();
        let (fsync, pages) = (setting("fsync")?, setting("full_page_writes")?);
        let synchronous_commit = setting("synchronous_commit")?;
        let durability = Durability::of_postgres(
            fsync.as_deref(),
            pages.as_deref(),
            synchronous_commit.as_deref(),
        );
        Ok(Self {
            // What follows is its packager's.
            version: version.split(' ').next().unwrap_or_default().to_owned(),
            number: row.try_get("number")?,
            durability,
            synchronous_commit,
            standby_names: setting("standby_names")?,
        })
    }

    pub(super) fn info(&self) -> StoreInfo {
        let (version, durability) = (self.version.clone(), self.durability);
        StoreInfo { kind: "PostgreSQL", version, durability }
    }
}
