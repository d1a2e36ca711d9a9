//! `oncegate serve` and `oncegate migrate`, as an operator meets them.

use std::{
    fs,
    io::{PipeWriter, pipe},
    process::{Child, Command, Stdio},
};

use oncegate::domain::limits::{DEFAULT_EVENT_TTL, DEFAULT_LEASE_TTL, EVENT_TTL, LEASE_TTL};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

use super::{Lines, oncegate, run};
use crate::harness::{Fixture, execute, postgres, sqlite_url};

/// A server that runs as a process of its own.
struct Serving {
    child: Child,
    /// What it printed, to the line that says how to try it.
    told: Vec<String>,
}

impl Serving {
    #[track_caller]
    fn start(command: &mut Command, errors: impl Into<Stdio>) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(errors).spawn().unwrap();
        let lines = Lines::of(child.stdout.take().unwrap());
        let mut told = Vec::new();
        while told.last().is_none_or(|line: &String| !line.starts_with("try: ")) {
            told.push(lines.next().expect("it does not serve"));
        }
        Self { child, told }
    }

    fn address(&self) -> &str {
        self.told[0].split_once(" listens on ").unwrap().1
    }

    /// Asks it to end in good order, and answers how it did.
    fn stop(&mut self) -> Option<i32> {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A pipe that nobody reads.
fn deaf() -> PipeWriter {
    pipe().unwrap().1
}

/// Each store's URL, with a password where it has one, and as it may be shown.
async fn stores(directory: &TempDir) -> [(String, String); 2] {
    let sqlite = sqlite_url(directory);
    let postgres = postgres::new_database().await;
    let (scheme, rest) = postgres.split_once("://").unwrap();
    let (user, host) = rest.split_once('@').unwrap();
    let shown = format!("{scheme}://{}", host.split('?').next().unwrap());
    let user = if user.contains(':') { user.to_owned() } else { format!("{user}:open-sesame") };
    [(sqlite.clone(), sqlite), (format!("{scheme}://{user}@{host}"), shown)]
}

#[tokio::test]
async fn a_server_tells_where_it_is_and_how_to_try_it() {
    let directory = tempdir().unwrap();
    for (url, shown) in stores(&directory).await {
        let (logs, errors) = pipe().unwrap();
        let mut command = oncegate(&["serve", "--listen", "127.0.0.1:0"]);
        command.args(["--ops-listen", "127.0.0.1:0"]).env("ONCEGATE_DATABASE_URL", &url);
        command.env("ONCEGATE_LOG", "trace");
        let logs = Lines::of(logs);
        let mut serving = Serving::start(&mut command, errors);
        drop(command);

        let address = serving.address().to_owned();
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(serving.told[0], format!("oncegate {version} listens on {address}"));
        assert_eq!(serving.told[1], format!("store: {shown}"));
        assert!(serving.told[2].starts_with("metrics: http://127.0.0.1:"), "{:?}", serving.told);
        assert_eq!(
            serving.told[3],
            format!(
                r#"try: grpcurl -plaintext -d '{{"event":{{"team_id":"T1","event_id":"Ev1"}}}}' {address} oncegate.v1.IdempotencyService/MarkProcessed"#
            )
        );
        run(&mut oncegate(&["mark", "T1", "Ev1", "--server", &address]), "")
            .told(0, "first T1 Ev1");

        assert_eq!(serving.stop(), Some(0));
        while let Some(line) = logs.next() {
            assert!(!line.contains("open-sesame"), "{line}");
        }
    }
}

/// Starts a server, and stops it; returns its log.
fn logged(command: &mut Command, errors: PipeWriter, logs: &Lines) -> Vec<String> {
    let mut serving = Serving::start(command, errors);
    assert_eq!(serving.stop(), Some(0));
    // Each end of the pipe that is still open would keep the log from ending.
    *command = oncegate(&[]);
    std::iter::from_fn(|| logs.next()).collect()
}

#[tokio::test]
async fn a_server_logs_its_settings_once_and_no_secret() {
    let directory = tempdir().unwrap();
    for (url, shown) in stores(&directory).await {
        let (logs, errors) = pipe().unwrap();
        let logs = Lines::of(logs);
        let mut command = oncegate(&["serve", "--listen", "127.0.0.1:0", "--writers", "3"]);
        command.args(["--sweep-interval", "30s", "--log-format", "json"]);
        command.env("ONCEGATE_DATABASE_URL", &url).env("ONCEGATE_MAX_HOLD", "2h");
        let logged = logged(&mut command, errors, &logs);
        let lines = logged.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let is_it = |line: &Value| line["message"] == "configuration";
        let lines = lines.filter(is_it).collect::<Vec<_>>();
        let [line] = &lines[..] else { panic!("{logged:?}") };
        assert_eq!(line["level"], "INFO");
        let settings = line["settings"].as_str().unwrap();
        let expected = "--listen=127.0.0.1:0 --writers=3 --max-hold=2h --log-format=json";
        assert_eq!(settings, expected);
        assert_eq!(line["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(line["store"], shown.as_str());
        let kind = if url.starts_with("sqlite") { "SQLite" } else { "PostgreSQL" };
        assert_eq!(line["store_kind"], kind);
        assert!(line["store_version"].as_str().unwrap().contains('.'), "{line}");
        assert!(!logged.iter().any(|line| line.contains("open-sesame")), "{logged:?}");
    }
}

#[tokio::test]
async fn a_server_warns_once_of_a_store_that_is_not_durable() {
    let cluster = tokio::task::spawn_blocking(|| postgres::Cluster::start_with(&[])).await.unwrap();
    let durable = cluster.url();
    let directory = tempdir().unwrap();
    let off = cluster.url_of("off");
    execute(&durable, "CREATE DATABASE off").await;
    execute(&durable, "ALTER DATABASE off SET synchronous_commit = off").await;
    for (url, reason) in [
        (durable.as_str(), None),
        (&sqlite_url(&directory), None),
        (&off, Some("synchronous_commit")),
    ] {
        let (logs, errors) = pipe().unwrap();
        let logs = Lines::of(logs);
        let mut command = oncegate(&["serve", "--listen", "127.0.0.1:0", "--database-url", url]);
        command.args(["--log-format", "json"]);
        let logged = logged(&mut command, errors, &logs);
        let warned = logged.iter().filter(|line| line.contains("the store is not durable"));
        let warned = warned.collect::<Vec<_>>();
        assert_eq!(warned.len(), usize::from(reason.is_some()), "{logged:?}");
        if let (Some(reason), [line]) = (reason, &warned[..]) {
            let line: Value = serde_json::from_str(line).unwrap();
            assert_eq!((&line["level"], &line["reason"]), (&"WARN".into(), &reason.into()));
        }
    }
}

#[tokio::test]
async fn a_server_listens_where_its_environment_says() {
    let directory = tempdir().unwrap();
    let socket = directory.path().join("run/oncegate.sock").display().to_string();
    let address = format!("unix:{socket}");
    let mut command = oncegate(&["serve"]);
    command.env("ONCEGATE_LISTEN", &address).env("ONCEGATE_DATABASE_URL", sqlite_url(&directory));
    let mut serving = Serving::start(&mut command, Stdio::null());
    assert_eq!(serving.address(), address);
    let target = format!("-unix {socket} oncegate.v1.IdempotencyService/MarkProcessed");
    assert!(serving.told[2].ends_with(&target), "{:?}", serving.told);
    run(&mut oncegate(&["health", "--server", &address]), "").told(0, "readiness: SERVING");
    assert_eq!(serving.stop(), Some(0));
    assert!(!fs::exists(&socket).unwrap());
}

#[tokio::test]
async fn a_server_listens_in_several_places() {
    let directory = tempdir().unwrap();
    let socket = format!("unix:{}", directory.path().join("oncegate.sock").display());
    let url = sqlite_url(&directory);
    let mut flags = oncegate(&["serve", "--listen", "127.0.0.1:0", "--listen", &socket]);
    let mut variable = oncegate(&["serve"]);
    variable.env("ONCEGATE_LISTEN", format!("127.0.0.1:0,{socket}"));
    for command in [&mut flags, &mut variable] {
        let mut serving = Serving::start(command.env("ONCEGATE_DATABASE_URL", &url), Stdio::null());
        let addresses = [0, 1]
            .map(|line: usize| serving.told[line].split_once(" listens on ").unwrap().1.to_owned());
        assert!(addresses[0].starts_with("127.0.0.1:"), "{:?}", serving.told);
        assert_eq!(addresses[1], socket);
        for address in &addresses {
            run(&mut oncegate(&["health", "--server", address]), "").told(0, "readiness: SERVING");
        }
        assert_eq!(serving.stop(), Some(0));
    }
    let mut twice = oncegate(&["serve", "--listen", &socket, "--listen", &socket]);
    let ran = run(twice.env("ONCEGATE_DATABASE_URL", &url), "");
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("another oncegate server is listening there"), "{}", ran.err);
}

#[tokio::test]
async fn a_server_lives_with_the_files_that_it_may_open() {
    let directory = tempdir().unwrap();
    let limits = "ulimit -Sn 100; ulimit -Hn 200; exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command.env_clear().args(["-c", limits, env!("CARGO_BIN_EXE_oncegate"), "serve"]);
    command.args(["--listen", "127.0.0.1:0", "--workers", "1"]);
    command.args(["--database-url", &sqlite_url(&directory)]);
    let (logs, errors) = pipe().unwrap();
    let logs = Lines::of(logs);
    let mut serving = Serving::start(&mut command, errors);
    drop(command);
    let address = serving.address().to_owned();
    // More than it may have open, and each says nothing.
    let idle: Vec<_> = (0..250).map(|_| std::net::TcpStream::connect(&address).unwrap()).collect();
    run(&mut oncegate(&["health", "--server", &address]), "").told(0, "readiness: SERVING");
    drop(idle);
    assert_eq!(serving.stop(), Some(0));
    let logs: Vec<_> = std::iter::from_fn(|| logs.next()).collect();
    let said = |what: &str| logs.iter().any(|line| line.contains(what));
    assert!(said("--max-connections lowered"), "{logs:?}");
    assert!(!said("cannot accept a connection"), "{logs:?}");
}

#[tokio::test]
async fn a_server_serves_on_when_nobody_reads_its_log() {
    let directory = tempdir().unwrap();
    let url = sqlite_url(&directory);
    let mut command = oncegate(&["serve", "--listen", "127.0.0.1:0", "--database-url", &url]);
    let mut serving = Serving::start(&mut command, deaf());
    let address = serving.address();
    run(&mut oncegate(&["mark", "T1", "Ev1", "--server", address]), "").told(0, "first T1 Ev1");
    assert_eq!(serving.stop(), Some(0));

    // Nor where it is: known here by the socket that it makes.
    let address = format!("unix:{}", directory.path().join("oncegate.sock").display());
    let mut command = oncegate(&["serve", "--listen", &address, "--database-url", &url]);
    let (logs, errors) = pipe().unwrap();
    let child = command.stdout(deaf()).stderr(errors).spawn().unwrap();
    let mut serving = Serving { child, told: Vec::new() };
    let logs = Lines::of(logs);
    while !logs.next().expect("it does not serve").contains("\"serving\"") {}
    run(&mut oncegate(&["mark", "T1", "Ev1", "--server", &address]), "")
        .told(10, "duplicate T1 Ev1");
    assert_eq!(serving.stop(), Some(0));
}

#[tokio::test]
async fn a_schema_is_migrated_once_and_again() {
    let directory = tempdir().unwrap();
    for (url, shown) in stores(&directory).await {
        let serve = ["serve", "--listen", "127.0.0.1:0", "--migrate", "false"];
        let ran = run(oncegate(&serve).args(["--database-url", &url]), "");
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{}", ran.err);
        assert!(ran.err.contains("error: "), "{}", ran.err);
        assert!(ran.err.contains("oncegate migrate"), "{}", ran.err);

        let migrate = ["migrate", "--database-url", &url];
        for _ in 0..2 {
            run(&mut oncegate(&migrate), "")
                .told(0, &format!("the schema of {shown} is up to date"));
        }
        let mut serve = oncegate(&serve);
        let mut serving = Serving::start(serve.args(["--database-url", &url]), Stdio::null());
        assert_eq!(serving.stop(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_serve_says_why() {
    let fixture = Fixture::sqlite().await;
    let taken = fixture.replica.server.address().to_string();
    let directory = tempdir().unwrap();
    let free = sqlite_url(&directory);
    let refused = |flags: &[&str], code: i32, why: &str| {
        let flags = [&["serve", "--connect-timeout", "10ms"], flags].concat();
        let ran = run(&mut oncegate(&flags), "");
        assert_eq!((ran.code, ran.out.as_str()), (Some(code), ""), "{flags:?}: {}", ran.err);
        let last = ran.err.lines().last().unwrap();
        assert!(last.starts_with("error: ") && last.contains(why), "{why:?}: {}", ran.err);
        assert!(!ran.err.contains("open-sesame"), "{}", ran.err);
    };
    refused(
        &["--listen", &taken, "--database-url", &free],
        1,
        &format!("cannot listen on {taken}"),
    );
    let listen = ["--listen", "127.0.0.1:0", "--database-url"];
    refused(&[&listen[..], &[&fixture.url]].concat(), 1, "another process");
    let nowhere = "postgres://bot:open-sesame@127.0.0.1:1/bots?connect_timeout=5";
    refused(&[&listen[..], &[nowhere]].concat(), 1, "cannot use postgres://127.0.0.1:1/bots: ");
    let unknown = "postgres://bot:open-sesame@127.0.0.1:1/bots?sslpassword=open-sesame";
    refused(&[&listen[..], &[unknown]].concat(), 1, "the parameter sslpassword");
    let other = "mysql://bot:open-sesame@db/bots";
    refused(&[&listen[..], &[other]].concat(), 1, "--database-url must begin with");

    let most = usize::MAX.to_string();
    for (flags, why) in [
        (["--writers", "0"], "--writers must be 1 or more"),
        (["--max-connections", "0"], "--max-connections must be 1 or more"),
        (
            ["--duplicate-cache-max-age", "0s"],
            "--duplicate-cache-max-age must be 10ms or more, is 0s",
        ),
        (["--max-streams", "0"], "--max-streams must be 1 or more"),
        (["--max-calls", "0"], "--max-calls must be 1 or more"),
        (["--queue-capacity", "999"], "--queue-capacity must be 1000 or more"),
        (["--store-timeout", "10s"], "--store-timeout must be shorter than --call-timeout"),
        (["--call-timeout", "5s"], "--store-timeout must be shorter than --call-timeout"),
        (["--store-timeout", "0s"], "--store-timeout must be 10ms or more"),
        (["--preface-timeout", "0s"], "--preface-timeout must be 10ms or more"),
        (["--keepalive-interval", "1ms"], "--keepalive-interval must be 10ms or more"),
        (["--keepalive-timeout", "0s"], "--keepalive-timeout must be 10ms or more"),
        (["--sweep-interval", "0s"], "--sweep-interval must be 10ms or more"),
        (["--probe-interval", "0s"], "--probe-interval must be 10ms or more"),
        (
            ["--max-connections", most.as_str()],
            "--max-connections must be 2305843009213693951 or less",
        ),
        (
            ["--queue-capacity", most.as_str()],
            "--queue-capacity must be 2305843009213693951 or less",
        ),
        (["--workers", "0"], "--workers must be 1 or more"),
        (["--writers", "1025"], "--writers must be 1024 or less, is 1025"),
    ] {
        refused(&flags, 2, &format!("error: wrong arguments: {why}"));
    }
    for (command, flag, span) in [
        ("serve", "--call-timeout", "31days"),
        ("serve", "--drain-timeout", "31days"),
        ("serve", "--lame-duck", "31days"),
        ("serve", "--preface-timeout", "500000000000y"),
        ("serve", "--max-connection-age", "500000000000y"),
        ("serve", "--max-connection-age-grace", "31days"),
        ("migrate", "--connect-timeout", "500000000000y"),
    ] {
        let ran = run(&mut oncegate(&[command, flag, span]), "");
        let value = flag[2..].replace('-', "_").to_uppercase();
        ran.complained(2, &format!("'{flag} <{value}>': must be 30days or less"));
    }
    let listen = run(&mut oncegate(&["serve", "--listen", "localhost:7411"]), "");
    listen.complained(2, "'--listen <LISTEN>': must be an address");
}

/// The `--help` of a command: the part of each flag by the flag's name.
fn help(command: &[&str]) -> String {
    let ran = run(&mut oncegate(&[command, &["--help"]].concat()), "");
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    ran.out
}

fn part<'a>(help: &'a str, flag: &str) -> &'a str {
    let start = help.find(&format!(" {flag} <")).unwrap_or_else(|| panic!("{flag} is not there"));
    let rest = &help[start + 1..];
    rest.split("\n      --").next().unwrap()
}

#[test]
fn help_tells_the_limits_that_hold() {
    let duration = |text: &str| humantime::parse_duration(text).unwrap();
    for (command, limits, default) in [
        (&["mark"][..], EVENT_TTL, DEFAULT_EVENT_TTL),
        (&["lease", "acquire"], LEASE_TTL, DEFAULT_LEASE_TTL),
        (&["lease", "renew"], LEASE_TTL, DEFAULT_LEASE_TTL),
    ] {
        let help = help(command);
        let told = part(&help, "--ttl").lines().nth(1).unwrap().split_once(", ").unwrap().1;
        let (range, unset) = told.split_once("; unset: ").unwrap();
        let (least, most) = range.split_once(" to ").unwrap();
        assert_eq!(duration(least)..=duration(most), limits);
        assert_eq!(duration(unset), default);
    }
}
