//! Copies of a cluster: backups, standbys and dumps.

use std::{
    fs::Permissions,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, query_scalar};
use tempfile::TempDir;

use super::postgres::{Cluster, directory, run};

/// How long a database may take to reach a state.
const PATIENCE: Duration = Duration::from_mins(1);

impl Cluster {
    /// Copies the running cluster's files with `pg_basebackup`.
    pub fn back_up(&self) -> TempDir {
        self.copy_files(&[])
    }

    /// Starts a copy that follows this cluster, with `settings`.
    pub fn start_standby(&self, settings: &[&str]) -> Self {
        let mut standby = Self::in_directory(self.copy_files(&["--write-recovery-conf"]), settings);
        standby.resume();
        standby
    }

    /// Makes a standby a primary, and returns once it is.
    pub fn promote(&self) {
        run(self.command("pg_ctl").args(["promote", "-w", "-D"]).arg(self.data()));
    }

    /// Starts a cluster on the files of a backup, which recovers as `settings` say.
    pub fn recover(backup: TempDir, settings: &[&str]) -> Self {
        let mut cluster = Self::in_directory(backup, settings);
        run(cluster.command_of("touch").arg(cluster.data().join("recovery.signal")));
        cluster.resume();
        cluster
    }

    /// Writes its log to `place` as it comes, with `pg_receivewal`.
    pub fn follow_log(&self, place: &Path) -> Child {
        std::fs::set_permissions(place, Permissions::from_mode(0o777)).unwrap();
        let mut receive = self.command("pg_receivewal");
        receive.args(["-d", &self.url(), "--no-sync", "-D"]).arg(place);
        receive.stderr(Stdio::null()).spawn().unwrap()
    }

    fn copy_files(&self, options: &[&str]) -> TempDir {
        let copy = directory();
        run(self
            .command("pg_basebackup")
            .args(["-d", &self.url(), "--checkpoint=fast", "--no-sync", "--no-manifest"])
            .args(options)
            .arg("-D")
            .arg(copy.path().join("data")));
        copy
    }

    /// Dumps its maintenance database with `pg_dump`.
    pub fn dump(&self, options: &[&str]) -> Vec<u8> {
        run(self.command("pg_dump").args(options).arg(self.url()))
    }

    /// Runs a dump in a database of this cluster.
    pub fn load(&self, database: &str, dump: &[u8]) {
        let mut psql = self
            .command("psql")
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &self.url_of(database)])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        psql.stdin.take().unwrap().write_all(dump).unwrap();
        assert!(psql.wait().unwrap().success());
    }
}

/// Waits until the database at `url` answers true.
pub async fn until(url: &str, question: &str) {
    let mut database = PgConnection::connect(url).await.unwrap();
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = query_scalar(AssertSqlSafe(question)).fetch_one(&mut database).await;
        if answer.unwrap() {
            return;
        }
        assert!(Instant::now() < end, "not true: {question}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
