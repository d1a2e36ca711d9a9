//! A real PostgreSQL for the tests: the one that `ONCEGATE_TEST_DATABASE_URL`
//! names, or a private cluster on a free port that dies with this process.

use std::{
    env, fs,
    io::Write as _,
    net::TcpListener,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;

/// Every database on one cluster has a name of its own.
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// A new, empty database on the shared cluster.
pub async fn new_database() -> String {
    new_database_with("").await
}

/// A new, empty database, made with `options` of CREATE DATABASE.
pub async fn new_database_with(options: &str) -> String {
    let server = tokio::task::spawn_blocking(shared_server).await.unwrap();
    let number = DATABASES.fetch_add(1, Ordering::Relaxed);
    let name = format!("oncegate_test_{}_{number}", std::process::id());
    let mut connection = PgConnection::connect(server).await.unwrap();
    let create = format!("CREATE DATABASE {name} {options}");
    connection.execute(AssertSqlSafe(create)).await.unwrap();
    let (base, query) = server.split_once('?').map_or((server, None), |(b, q)| (b, Some(q)));
    let base = base.rsplit_once('/').unwrap().0;
    query.map_or(format!("{base}/{name}"), |query| format!("{base}/{name}?{query}"))
}

/// Cuts the service's connections to a database again and again, with a pause after each time.
pub async fn cut_connections<F: Future<Output = ()>>(url: String, pause: impl Fn() -> F) {
    const CUT: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE application_name = 'oncegate' AND datname = current_database()";
    let mut cutter = PgConnection::connect(&url).await.unwrap();
    loop {
        cutter.execute(CUT).await.unwrap();
        pause().await;
    }
}

/// The URL of a server on which databases may be made.
#[expect(clippy::disallowed_methods, reason = "the harness is where the tests are configured")]
pub fn shared_server() -> &'static str {
    static SERVER: OnceLock<String> = OnceLock::new();
    SERVER.get_or_init(|| {
        env::var("ONCEGATE_TEST_DATABASE_URL").unwrap_or_else(|_| {
            let cluster = Cluster::start();
            let url = cluster.url();
            // It dies with the process, by its guard; see `Cluster`.
            std::mem::forget(cluster);
            url
        })
    })
}

/// How the tests' own cluster differs from the defaults: nothing that they lose
/// in a power cut is missed.
const SETTINGS: &[&str] = &["fsync=off", "max_connections=300", "log_min_messages=fatal"];

/// A private cluster.
pub struct Cluster {
    directory: TempDir,
    binaries: PathBuf,
    user: Option<(u32, u32)>,
    port: u16,
    settings: Vec<String>,
    guard: Option<Child>,
}

impl Cluster {
    /// Makes and starts a cluster.
    pub fn start() -> Self {
        Self::start_with(SETTINGS)
    }

    /// Makes and starts a cluster with `settings`, each of them `name=value`.
    pub fn start_with(settings: &[&str]) -> Self {
        let mut cluster = Self::in_directory(directory(), settings);
        let data = cluster.data();
        run(cluster
            .command("initdb")
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"])
            .arg("--no-sync")
            .arg(&data));
        cluster.resume();
        cluster
    }

    pub(super) fn in_directory(directory: TempDir, settings: &[&str]) -> Self {
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        let (binaries, user, port) = (binaries(), other_user(), free_port());
        Self { directory, binaries, user, port, settings, guard: None }
    }

    /// Starts the stopped cluster again, on its old port.
    pub fn resume(&mut self) {
        // The guard's standard input closes when this process ends, however it
        // ends; then the guard stops the server and removes its files.
        const GUARD: &str = r#"
            files=$1
            shift
            "$@" <&- &
            server=$!
            while read -r _; do :; done
            kill -INT $server 2>/dev/null
            # One that is only starting may not heed that yet.
            (sleep 2; kill -KILL $server) 2>/dev/null &
            wait $server
            rm -rf "$files"
        "#;
        let guard = self
            .command_of("sh")
            .args(["-c", GUARD, "guard"])
            .arg(self.directory.path())
            .arg(self.binaries.join("postgres"))
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string()])
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
            .args(self.settings.iter().flat_map(|setting| ["-c", setting.as_str()]))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        self.guard = Some(guard);
        for _ in 0..600 {
            let ready = self
                .command("pg_isready")
                .args(["-h", "127.0.0.1", "-q", "-p"])
                .arg(self.port.to_string())
                .status()
                .unwrap();
            if ready.success() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("PostgreSQL did not start");
    }

    /// Stops the server at once, as a crash would.
    pub fn stop(&mut self) {
        let data = self.data();
        run(self.command("pg_ctl").args(["stop", "-m", "immediate", "-w", "-D"]).arg(&data));
        // The guard of the stopped server must not remove the files.
        if let Some(mut guard) = self.guard.take() {
            guard.kill().unwrap();
            guard.wait().unwrap();
        }
    }

    /// Its maintenance database.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// A database of it.
    pub fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    pub(super) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub(super) fn command(&self, name: &str) -> Command {
        self.command_of(self.binaries.join(name))
    }

    pub(super) fn command_of(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir("/");
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            drop(guard.stdin.take());
            let _ = guard.wait();
        }
    }
}

/// A directory that a cluster may write to.
pub fn directory() -> TempDir {
    let directory = tempfile::Builder::new().prefix("oncegate-pg-").tempdir().unwrap();
    if let Some((uid, gid)) = other_user() {
        chown(directory.path(), Some(uid), Some(gid)).unwrap();
    }
    directory
}

/// Runs a program, which must succeed, and returns what it printed.
pub(super) fn run(command: &mut Command) -> Vec<u8> {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Where `initdb` and `postgres` are: on the path, where Debian puts them, or
/// where they are once the platform's package is installed.
fn binaries() -> PathBuf {
    static BINARIES: OnceLock<PathBuf> = OnceLock::new();
    BINARIES
        .get_or_init(|| {
            installed().unwrap_or_else(|| {
                install();
                installed().expect("PostgreSQL's package has no initdb")
            })
        })
        .clone()
}

#[expect(clippy::disallowed_methods, reason = "the harness is where the tests are configured")]
fn installed() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = env::split_paths(&path).collect();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<PathBuf> = versions.map(|entry| entry.path().join("bin")).collect();
    versions.sort();
    places.extend(versions.into_iter().rev());
    // A link on the path leads to where the other programs are.
    let initdb =
        places.into_iter().find_map(|place| fs::canonicalize(place.join("initdb")).ok())?;
    initdb.parent().map(Path::to_owned)
}

fn install() {
    let mut progress = std::io::stderr();
    let _ = writeln!(progress, "no PostgreSQL here: installing the package postgresql");
    let root = is_root();
    let run = |arguments: &[&str]| {
        let mut command = if root { Command::new("apt-get") } else { Command::new("sudo") };
        if !root {
            command.args(["-n", "apt-get"]);
        }
        let done = command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").output();
        done.is_ok_and(|done| done.status.success())
    };
    // An old list of packages often suffices.
    let _ = run(&["-qq", "update"]);
    assert!(
        run(&["-qq", "install", "-y", "--no-install-recommends", "postgresql"]),
        "the tests need PostgreSQL: install it so that initdb is on the PATH, or name a server in \
         ONCEGATE_TEST_DATABASE_URL"
    );
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Whom to run the server as: PostgreSQL refuses to be root.
pub fn other_user() -> Option<(u32, u32)> {
    if !is_root() {
        return None;
    }
    let users = fs::read_to_string(Path::new("/etc/passwd")).unwrap();
    let find = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    Some(find("postgres").or_else(|| find("nobody")).expect("no user to run PostgreSQL as"))
}

/// SQL that makes statements wait while they read the clock, as long as somebody else has locked
/// the row of the table `gate`: those for which `condition` holds.
#[must_use]
pub fn gate(condition: &str) -> String {
    format!(
        "CREATE TABLE gate (closed boolean);
        INSERT INTO gate VALUES (true);
        CREATE SCHEMA slow;
        CREATE FUNCTION slow.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS $$
        BEGIN
            IF {condition} THEN PERFORM FROM public.gate FOR UPDATE; END IF;
            RETURN pg_catalog.clock_timestamp();
        END $$;
        DO $$ BEGIN
            EXECUTE format('ALTER DATABASE %I SET search_path = public, slow, pg_catalog',
                current_database());
        END $$"
    )
}
