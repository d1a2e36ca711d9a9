//! The schema's versions, alike on every store.
//!
//! The rule is "expand, then contract one minor version later". A binary works on every schema
//! from its own version up to the newest whose migrations all say that it may: each migration
//! records in `min_reader` the oldest migration number whose binary can still use the schema
//! after it. Its file declares that by a line `-- min_reader: N`; a file without one is
//! incompatible with every older binary.

use std::{borrow::Cow, fmt::Write as _};

use sqlx::{SqlStr, migrate::Migrator};

use super::StoreError;

/// What begins the line in which a migration's file declares its `min_reader`.
const DIRECTIVE: &str = "-- min_reader:";

/// One migration of this binary.
pub(super) struct Step {
    pub(super) version: i64,
    pub(super) description: Cow<'static, str>,
    pub(super) sql: SqlStr,
    pub(super) checksum: Cow<'static, [u8]>,
    pub(super) min_reader: i64,
}

/// A text of a migration that some databases were migrated with and that has been replaced
/// since: what both leave is the same once all migrations have run.
pub(super) struct Superseded {
    pub(super) version: i64,
    /// The SHA-384 of the text, in hexadecimal digits.
    pub(super) checksum: &'static str,
    /// Why the text was replaced.
    pub(super) reason: &'static str,
}

/// A migration that a database has, as its row says.
pub(super) struct AppliedMigration {
    pub(super) version: i64,
    pub(super) success: bool,
    pub(super) checksum: Vec<u8>,
    /// None where a binary that knew nothing of it has migrated.
    pub(super) min_reader: Option<i64>,
}

/// The migrations of this binary for one kind of store.
pub(super) struct Schema {
    steps: Vec<Step>,
    superseded: &'static [Superseded],
}

/// What a database still needs.
#[derive(Default)]
pub(super) struct MigrationPlan<'a> {
    /// Migrations to run, in order.
    pub(super) pending: Vec<&'a Step>,
    /// Migrations that have run, but whose row has another checksum or `min_reader`.
    pub(super) to_record: Vec<&'a Step>,
}

/// Where a database that this binary can use stands.
pub(super) struct SchemaState {
    /// The newest migration that has run; none if it has no tables.
    pub(super) applied: Option<i64>,
    /// The newest that this binary has.
    pub(super) known: i64,
    /// Those that have not run.
    pub(super) pending: Vec<i64>,
}

impl MigrationPlan<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.to_record.is_empty()
    }
}

impl Schema {
    pub(super) fn new(migrator: &Migrator, superseded: &'static [Superseded]) -> Self {
        let step = |migration: &sqlx::migrate::Migration| Step {
            version: migration.version,
            description: migration.description.clone(),
            sql: migration.sql.clone(),
            checksum: migration.checksum.clone(),
            min_reader: declared(migration.sql.as_str()).unwrap_or(migration.version),
        };
        Self { steps: migrator.iter().map(step).collect(), superseded }
    }

    /// What a database with these migrations, in their order, still needs.
    ///
    /// # Errors
    /// [`StoreError::Internal`] when this binary must not use the database.
    pub(super) fn plan(
        &self,
        applied: &[AppliedMigration],
    ) -> Result<MigrationPlan<'_>, StoreError> {
        let newest = self.newest();
        let mut plan = MigrationPlan::default();
        for row in applied {
            let version = row.version;
            if !row.success {
                return Err(StoreError::internal(format!(
                    "migration {version} ran only partly: restore the database from before it"
                )));
            }
            let min_reader = row.min_reader.unwrap_or(version);
            if version > newest && min_reader > newest {
                return Err(StoreError::internal(format!(
                    "this binary (oncegate {}, migrations up to {newest}) is older than its \
                     database: migration {version} there needs a binary that knows migration \
                     {min_reader}. Run a newer oncegate, or restore the database from before that \
                     migration",
                    env!("CARGO_PKG_VERSION")
                )));
            }
        }
        for step in &self.steps {
            match applied.iter().find(|row| row.version == step.version) {
                None => plan.pending.push(step),
                Some(row) => {
                    let same_text = row.checksum == *step.checksum;
                    if !same_text {
                        self.check_superseded(row)?;
                    }
                    if !same_text || row.min_reader.is_none() {
                        plan.to_record.push(step);
                    }
                }
            }
        }
        Ok(plan)
    }

    /// Checks that a database with these migrations can be used as it is.
    ///
    /// # Errors
    /// [`StoreError::Internal`] when it cannot.
    pub(super) fn verify(&self, applied: &[AppliedMigration]) -> Result<(), StoreError> {
        let plan = self.plan(applied)?;
        if plan.pending.is_empty() {
            return Ok(());
        }
        let missing: Vec<i64> = plan.pending.iter().map(|step| step.version).collect();
        Err(StoreError::internal(format!(
            "the schema lacks migrations {missing:?} of this binary (oncegate {}): run \
             `oncegate migrate`",
            env!("CARGO_PKG_VERSION")
        )))
    }

    /// Where a database with these migrations stands.
    ///
    /// # Errors
    /// [`StoreError::Internal`] when this binary must not use the database.
    pub(super) fn state(&self, applied: &[AppliedMigration]) -> Result<SchemaState, StoreError> {
        let pending = self.plan(applied)?.pending.iter().map(|step| step.version).collect();
        let newest = applied.iter().map(|row| row.version).max();
        Ok(SchemaState { applied: newest, known: self.newest(), pending })
    }

    fn newest(&self) -> i64 {
        self.steps.last().map_or(0, |step| step.version)
    }

    fn check_superseded(&self, row: &AppliedMigration) -> Result<(), StoreError> {
        let checksum = hexadecimal(&row.checksum);
        let known =
            |known: &&Superseded| known.version == row.version && known.checksum == checksum;
        let Some(superseded) = self.superseded.iter().find(known) else {
            return Err(StoreError::internal(format!(
                "migration {} ran with a different text than this binary has: a build that is not a \
                 release migrated the database",
                row.version
            )));
        };
        tracing::debug!(row.version, superseded.reason, "migration ran with an older text");
        Ok(())
    }
}

/// The `min_reader` that the text of a migration declares.
fn declared(sql: &str) -> Option<i64> {
    sql.lines().find_map(|line| line.strip_prefix(DIRECTIVE)?.trim().parse().ok())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut digits, byte| {
        // Writing to a String cannot fail.
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    const OLD_TEXT: &[u8] = &[0xab, 0x01];
    const SUPERSEDED: &[Superseded] =
        &[Superseded { version: 2, checksum: "ab01", reason: "a typing error" }];

    /// A binary with migrations 1 to 3.
    fn schema() -> Schema {
        let step = |version| Step {
            version,
            description: "".into(),
            sql: SqlStr::from_static(""),
            checksum: vec![u8::try_from(version).unwrap()].into(),
            min_reader: version,
        };
        Schema { steps: (1..=3).map(step).collect(), superseded: SUPERSEDED }
    }

    fn row(version: i64, min_reader: i64) -> AppliedMigration {
        let checksum = vec![u8::try_from(version).unwrap()];
        AppliedMigration { version, success: true, checksum, min_reader: Some(min_reader) }
    }

    fn planned(rows: &[AppliedMigration]) -> (Vec<i64>, Vec<i64>) {
        let schema = schema();
        let plan = schema.plan(rows).unwrap();
        let versions = |steps: &[&Step]| steps.iter().map(|step| step.version).collect();
        (versions(&plan.pending), versions(&plan.to_record))
    }

    fn refused(rows: &[AppliedMigration]) -> String {
        schema().plan(rows).err().unwrap().to_string()
    }

    #[test]
    fn what_is_missing_is_pending_and_what_is_known_is_left() {
        assert_eq!(planned(&[]), (vec![1, 2, 3], vec![]));
        assert_eq!(planned(&[row(1, 1), row(2, 2)]), (vec![3], vec![]));
        assert_eq!(planned(&[row(1, 1), row(2, 2), row(3, 3)]), (vec![], vec![]));
        assert!(schema().verify(&[row(1, 1)]).unwrap_err().to_string().contains("[2, 3]"));
    }

    #[test]
    fn a_newer_schema_is_used_for_as_long_as_it_says_so() {
        let ours = || vec![row(1, 1), row(2, 2), row(3, 3)];
        let with = |more: &[AppliedMigration]| {
            let copy = more.iter().map(|row| AppliedMigration { checksum: vec![], ..*row });
            ours().into_iter().chain(copy).collect::<Vec<_>>()
        };
        for newer in [&[row(4, 3)][..], &[row(4, 1)], &[row(4, 3), row(5, 2), row(9, 3)]] {
            assert_eq!(planned(&with(newer)), (vec![], vec![]));
            schema().verify(&with(newer)).unwrap();
        }
        for newer in [&[row(4, 4)][..], &[row(4, 3), row(5, 4)], &[row(4, 4), row(5, 3)]] {
            let why = refused(&with(newer));
            assert!(why.contains("migrations up to 3") && why.contains("migration 4"), "{why}");
        }
        // One that a binary without the rule has made.
        let unknown = AppliedMigration { min_reader: None, ..row(4, 4) };
        assert!(refused(&with(&[unknown])).contains("needs a binary that knows migration 4"));
    }

    #[test]
    fn a_superseded_text_is_recorded_anew_and_any_other_is_refused() {
        let old = AppliedMigration { checksum: OLD_TEXT.to_vec(), min_reader: None, ..row(2, 2) };
        assert_eq!(planned(&[row(1, 1), old, row(3, 3)]), (vec![], vec![2]));
        let foreign = AppliedMigration { checksum: OLD_TEXT.to_vec(), ..row(1, 1) };
        assert!(refused(&[foreign]).contains("migration 1 ran with a different text"));
        let partial = AppliedMigration { success: false, ..row(1, 1) };
        assert!(refused(&[partial]).contains("only partly"));
        let unrecorded = AppliedMigration { min_reader: None, ..row(1, 1) };
        assert_eq!(planned(&[unrecorded]), (vec![2, 3], vec![1]));
    }

    /// The same number does the same on both stores, so it declares the same too.
    #[test]
    fn every_migration_declares_what_can_be_read() {
        let folder = |store| Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(store);
        for file in fs::read_dir(folder("postgres")).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            let version: i64 = name.split('_').next().unwrap().parse().unwrap();
            let [here, there] = ["postgres", "sqlite"].map(|store| {
                let text = fs::read_to_string(folder(store).join(&name)).unwrap();
                let lines = text.lines().filter(|line| line.contains("min_reader"));
                assert_eq!(lines.count(), usize::from(declared(&text).is_some()), "{name}");
                declared(&text)
            });
            assert_eq!(here, there, "{name}");
            assert!(here.is_none_or(|min_reader| (1..=version).contains(&min_reader)), "{name}");
        }
    }
}
