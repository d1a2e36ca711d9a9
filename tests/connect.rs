//! Connections to PostgreSQL: where they lead, how they are secured, and passwords that change.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use oncegate::{
    server::{self, Server},
    store::Clock,
};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;
use tokio::sync::RwLock;

use crate::harness::{
    Client, Replica, config, mark,
    postgres::{Cluster, other_user},
    secrets::plant,
};

mod off_host;

/// A setting that lives for as long as the tests.
fn setting(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

fn settings(list: Vec<String>) -> &'static [&'static str] {
    Box::leak(list.into_iter().map(setting).collect::<Vec<_>>().into_boxed_slice())
}

/// A folder that the cluster's user can read and write.
fn open_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    folder
}

fn port(cluster: &Cluster) -> String {
    let url = cluster.url();
    url.rsplit(':').next().unwrap().split('/').next().unwrap().to_owned()
}

async fn execute(url: &str, sql: &str) {
    let mut database = PgConnection::connect(url).await.unwrap();
    database.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
}

async fn first(client: &mut Client, event: &str) -> bool {
    client.mark_processed(mark("T", event)).await.unwrap().into_inner().first
}

/// Marks an event as a caller does that repeats what is unavailable.
async fn mark_patiently(client: &mut Client, event: &str) -> bool {
    for _ in 0..600 {
        match client.mark_processed(mark("T", event)).await {
            Ok(marked) => return marked.into_inner().first,
            Err(error) if error.code() == tonic::Code::Unavailable => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{event}: {error}"),
        }
    }
    panic!("{event}: unavailable")
}

async fn why_not(url: &str, flags: &[&str]) -> String {
    let flags = [&["--connect-timeout", "10ms"], flags].concat();
    match Server::start(config(url, &flags), Clock::Store).await {
        Ok(_) => panic!("a server started on {url}"),
        Err(error) => format!("{error:#}"),
    }
}

#[tokio::test]
async fn an_address_of_version_6_and_a_socket_lead_to_the_database() {
    let folder = open_folder();
    let sockets = format!("unix_socket_directories={}", folder.path().display());
    let cluster =
        Cluster::start_with(settings(vec!["listen_addresses=127.0.0.1,::1".into(), sockets]));
    let (port, path) = (port(&cluster), folder.path().display().to_string());
    let encoded = path.replace('/', "%2F");
    for (number, url) in [
        format!("postgres://postgres@[::1]:{port}/postgres"),
        format!("postgres://postgres@/postgres?host=::1&port={port}"),
        format!("postgres://postgres@{encoded}:{port}/postgres"),
        format!("postgres://postgres@{encoded}:{port}/postgres?sslmode=require"),
        format!("postgres:///postgres?host={path}&port={port}&user=postgres"),
        format!("postgres://postgres@nowhere.invalid/?hostaddr=::1&port={port}&dbname=postgres"),
    ]
    .into_iter()
    .enumerate()
    {
        let replica = Replica::start(&url, Clock::Store, &[]).await;
        assert!(first(&mut replica.client().await, &format!("Ev{number}")).await, "{url}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_hosts_one_that_takes_writes_is_used_and_another_one_after_it() {
    let mut first_cluster = Cluster::start();
    let second_cluster = Cluster::start();
    let (one, two) = (port(&first_cluster), port(&second_cluster));
    // The second is not ready for writes, as a standby is not.
    server::migrate(&config(&second_cluster.url(), &[]).store).await.unwrap();
    let read_only = "ALTER SYSTEM SET default_transaction_read_only = ";
    let set = async |cluster: &Cluster, on: &str| {
        let url = cluster.url();
        let mut database = PgConnection::connect(&url).await.unwrap();
        database.execute("SET default_transaction_read_only = off").await.unwrap();
        database.execute(AssertSqlSafe(format!("{read_only}{on}"))).await.unwrap();
        database.execute("SELECT pg_reload_conf()").await.unwrap();
    };
    set(&second_cluster, "on").await;

    // The first place is nobody's, the second takes no writes.
    let url = format!("postgres://postgres@127.0.0.1:1,127.0.0.1:{two},127.0.0.1:{one}/postgres");
    let replica = Replica::start(&url, Clock::Store, &[]).await;
    let mut client = replica.client().await;
    assert!(first(&mut client, "Ev1").await);

    // The connection is lost, and the other one has been promoted.
    set(&second_cluster, "off").await;
    first_cluster.stop();
    assert!(mark_patiently(&mut client, "Ev1").await, "the other database has no such mark");
    assert!(!mark_patiently(&mut client, "Ev1").await);

    // It becomes read only under its connections.
    first_cluster.resume();
    set(&second_cluster, "on").await;
    assert!(!mark_patiently(&mut client, "Ev1").await, "the first database has it");
    assert!(mark_patiently(&mut client, "Ev2").await);

    let standby = format!("postgres://postgres@127.0.0.1:{two}/postgres");
    let why = why_not(&format!("{standby}?target_session_attrs=read-write"), &[]).await;
    assert!(why.contains("the server is read only"), "{why}");
    let both = format!("postgres://postgres@127.0.0.1:1,127.0.0.1:{two}/postgres");
    let why = why_not(&both, &[]).await;
    assert!(why.contains("127.0.0.1:1: ") && why.contains(": the server is read only"), "{why}");
    // Whatever answers will do.
    Replica::start(&format!("{both}?target_session_attrs=any"), Clock::Store, &[]).await;
}

/// Names a file among the tests' data.
fn data(name: &str) -> String {
    format!("{}/tests/data/tls/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_sslmode_is_honoured() {
    let folder = open_folder();
    let copy = |name: &str| {
        let path = folder.path().join(name);
        fs::copy(data(name), &path).unwrap();
        if let Some((uid, gid)) = other_user() {
            chown(&path, Some(uid), Some(gid)).unwrap();
        }
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    };
    let hba = folder.path().join("hba");
    let rules = "hostssl all secured all trust\nhostnossl all plain all trust\nhost all postgres all trust\n";
    fs::write(&hba, rules).unwrap();
    let tls = Cluster::start_with(settings(vec![
        "ssl=on".into(),
        format!("ssl_cert_file={}", copy("server.crt")),
        format!("ssl_key_file={}", copy("server.key")),
        format!("hba_file={}", hba.display()),
    ]));
    execute(&tls.url(), "CREATE ROLE secured SUPERUSER LOGIN; CREATE ROLE plain SUPERUSER LOGIN")
        .await;
    let plain = Cluster::start();
    let (tls, plain) = (port(&tls), port(&plain));
    let (ours, theirs) = (data("ca.crt"), data("other_ca.crt"));
    for (user, host, port, parameters, served) in [
        ("postgres", "localhost", &plain, "sslmode=disable".to_owned(), true),
        ("postgres", "localhost", &plain, "sslmode=allow".into(), true),
        ("postgres", "localhost", &plain, "sslmode=prefer".into(), true),
        ("postgres", "localhost", &plain, "sslmode=require".into(), false),
        ("postgres", "localhost", &plain, "sslmode=verify-ca".into(), false),
        ("postgres", "localhost", &plain, "sslmode=verify-full".into(), false),
        ("secured", "localhost", &tls, "sslmode=disable".into(), false),
        ("secured", "localhost", &tls, "sslmode=allow".into(), true),
        ("secured", "localhost", &tls, "sslmode=prefer".into(), true),
        ("plain", "localhost", &tls, "sslmode=prefer".into(), true),
        ("plain", "localhost", &tls, "sslmode=allow".into(), true),
        ("plain", "localhost", &tls, "sslmode=require".into(), false),
        ("secured", "127.0.0.1", &tls, "sslmode=require".into(), true),
        ("secured", "127.0.0.1", &tls, format!("sslmode=require&sslrootcert={ours}"), true),
        ("secured", "127.0.0.1", &tls, format!("sslmode=require&sslrootcert={theirs}"), false),
        ("secured", "127.0.0.1", &tls, format!("sslmode=verify-ca&sslrootcert={ours}"), true),
        ("secured", "127.0.0.1", &tls, format!("sslmode=verify-ca&sslrootcert={theirs}"), false),
        ("secured", "localhost", &tls, format!("sslmode=verify-full&sslrootcert={ours}"), true),
        ("secured", "127.0.0.1", &tls, format!("sslmode=verify-full&sslrootcert={ours}"), false),
        ("secured", "localhost", &tls, "sslrootcert=system".into(), false),
    ] {
        let url = format!("postgres://{user}@{host}:{port}/postgres?{parameters}");
        let settings = config(&url, &["--connect-timeout", "10ms"]).store;
        let migrated = server::migrate(&settings).await;
        assert_eq!(migrated.is_ok(), served, "{user} {host} {parameters}: {migrated:?}");
    }
    // The mode and the root count together, wherever each of them is from.
    for (variable, value, parameters, served) in [
        ("PGSSLMODE", "require", format!("sslrootcert={ours}"), true),
        ("PGSSLMODE", "require", format!("sslrootcert={theirs}"), false),
        ("PGSSLROOTCERT", ours.as_str(), "sslmode=require".to_owned(), true),
        ("PGSSLROOTCERT", theirs.as_str(), "sslmode=require".to_owned(), false),
    ] {
        let url = format!("postgres://secured@127.0.0.1:{tls}/postgres?{parameters}");
        let migrated = Command::new(env!("CARGO_BIN_EXE_oncegate"))
            .args(["migrate", "--connect-timeout", "10ms", "--database-url", &url])
            .env(variable, value)
            .output()
            .unwrap();
        let succeeded = migrated.status.success();
        assert_eq!(succeeded, served, "{variable}={value} {parameters}: {migrated:?}");
    }
}

/// A cluster on which the role `app` needs its password.
async fn guarded_cluster(folder: &TempDir) -> Cluster {
    let hba = folder.path().join("hba");
    fs::write(&hba, "host all postgres all trust\nhost all all all scram-sha-256\n").unwrap();
    let cluster = Cluster::start_with(settings(vec![format!("hba_file={}", hba.display())]));
    execute(&cluster.url(), "CREATE ROLE app SUPERUSER LOGIN PASSWORD 'planted-old'").await;
    plant("planted-old");
    cluster
}

/// Changes the password, and ends all connections that were opened with the former one.
async fn rotate(cluster: &Cluster, password: &str) {
    let change = format!("ALTER ROLE app PASSWORD '{}'", plant(password));
    execute(&cluster.url(), &change).await;
}

async fn end_connections(cluster: &Cluster) {
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'";
    execute(&cluster.url(), end).await;
}

/// Marks events until `done`, but not while `pause` is locked. None may fail; returns how many.
async fn load(
    mut client: Client,
    caller: usize,
    pause: Arc<RwLock<()>>,
    done: Arc<AtomicBool>,
) -> usize {
    let mut number = 0;
    while !done.load(Ordering::Relaxed) || number == 0 {
        let _calling = pause.read().await;
        let event = format!("Ev{caller}-{number}");
        assert!(first(&mut client, &event).await, "{event}");
        number += 1;
    }
    number
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_is_changed_under_load_costs_no_call() {
    let folder = open_folder();
    let cluster = guarded_cluster(&folder).await;
    let (password, url_file) = (folder.path().join("password"), folder.path().join("url"));
    let url = format!("postgres://app@127.0.0.1:{}/postgres", port(&cluster));
    let with_password = |password: &str| url.replace("app@", &format!("app:{password}@"));
    fs::write(&password, "planted-old\n").unwrap();
    fs::write(&url_file, format!("{}\n", with_password("planted-old"))).unwrap();

    let by_password = ["--database-password-file", password.to_str().unwrap(), "--writers", "1"];
    let by_password = Replica::start(&url, Clock::Store, &by_password).await;
    let by_url = ["--database-url-file", url_file.to_str().unwrap(), "--writers", "1"];
    let by_url = Server::start(without_url(&by_url), Clock::Store).await.unwrap();
    let by_url = Replica { server: by_url };

    let (done, pause) = (Arc::new(AtomicBool::new(false)), Arc::new(RwLock::new(())));
    let mut callers = Vec::new();
    for caller in 0..4 {
        let client = if caller % 2 == 0 { by_password.client() } else { by_url.client() }.await;
        callers.push(tokio::spawn(load(client, caller, Arc::clone(&pause), Arc::clone(&done))));
    }
    for next in ["planted-n/e%w", "planted-3", "planted-4"] {
        // A connection that is opened between the two changes is refused, so no call may need one:
        // all connections are open, and calls begin only after the second change.
        for replica in [&by_password, &by_url] {
            mark_patiently(&mut replica.client().await, next).await;
        }
        let paused = pause.write().await;
        rotate(&cluster, next).await;
        fs::write(&password, next).unwrap();
        let encoded = next.replace('%', "%25").replace('/', "%2F");
        fs::write(&url_file, with_password(&encoded)).unwrap();
        drop(paused);
        end_connections(&cluster).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    done.store(true, Ordering::Relaxed);
    for caller in callers {
        assert!(caller.await.unwrap() > 0);
    }
}

/// The flags of a server that has no `--database-url`.
fn without_url(flags: &[&str]) -> oncegate::config::ServeConfig {
    #[derive(clap::Parser)]
    struct Flags {
        #[command(flatten)]
        serve: oncegate::config::ServeConfig,
    }
    let listen = ["test", "--listen", "127.0.0.1:0", "--sweep-interval", "1h"];
    <Flags as clap::Parser>::parse_from(listen.iter().chain(flags)).serve
}

#[tokio::test]
async fn what_contradicts_itself_is_named() {
    let folder = open_folder();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (password, empty) = (file("password", "s3cret"), file("empty", "\n"));
    let lines = file("lines", "s3cretA\ns3cretB\n");
    let missing = folder.path().join("missing");
    let missing = missing.to_str().unwrap();
    let postgres = "postgres://u@127.0.0.1:1/d";
    for (url, flags, part) in [
        (
            "postgres://u:s3cret@127.0.0.1:1/d",
            ["--database-password-file", &password],
            "give one of them",
        ),
        (postgres, ["--database-password-file", missing], "missing cannot be read"),
        (postgres, ["--database-password-file", &empty], "empty is empty"),
        (postgres, ["--database-password-file", &lines], "more than one line"),
        (postgres, ["--database-schema", "Bots"], "--database-schema must be lower-case"),
        (postgres, ["--database-schema", "pg_bots"], "PostgreSQL's own"),
        (
            "sqlite://x.db",
            ["--database-schema", "bots"],
            "--database-schema applies to PostgreSQL only",
        ),
        ("sqlite://x.db", ["--database-password-file", &password], "applies to PostgreSQL only"),
    ] {
        let why = why_not(url, &flags).await;
        assert!(why.contains(part) && !why.contains("s3cret"), "{part:?} is not in {why}");
    }
    assert!(!Path::new("x.db").exists());
}
