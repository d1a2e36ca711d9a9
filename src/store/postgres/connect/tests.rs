//! Every shape of a URL that people were seen to give, each with secrets planted in it.

use std::{fs, path::Path, time::Duration};

use sqlx::postgres::PgConnectOptions;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{
    Connector, MAX_SCHEMA_BYTES, Session, Source, canonical,
    source::check_schema,
    tls::Security,
    url::{BadUrl, Host, Target, Tls, TlsMode},
};
use crate::telemetry::StoreMetrics;

/// A URL, and as it is shown.
const READ: &[(&str, &str)] = &[
    ("postgres://u:s3cret@db/bots", "postgres://db/bots"),
    ("postgresql://u:s3cret@db:5433/bots", "postgres://db:5433/bots"),
    ("POSTGRES://u:s3cret@db/bots", "postgres://db/bots"),
    ("postgres://u:p@s3cret@db/bots", "postgres://db/bots"),
    ("postgres://u:s3cret%2F%3F%23%40@db/bots", "postgres://db/bots"),
    ("postgres://u:[s3cret]@db/bots", "postgres://db/bots"),
    ("postgres://u:a:s3cret@db/bots", "postgres://db/bots"),
    ("postgres://u:s3cret@[::1]:5432/bots", "postgres://[::1]:5432/bots"),
    ("postgres://u:s3cret@[::1]/bots", "postgres://[::1]/bots"),
    ("postgres://u:s3cret@[fe80::1%25eth0]/bots", "postgres://[fe80::1%eth0]/bots"),
    ("postgres://u:s3cret@one:5432,two:5433/bots", "postgres://one:5432,two:5433/bots"),
    ("postgres://u:s3cret@[::1]:5432,two/bots", "postgres://[::1]:5432,two/bots"),
    ("postgres://u:s3cret@%2Fvar%2Frun%2Fpg/bots", "postgres:///bots?host=/var/run/pg"),
    ("postgres:///bots?host=/var/run/pg&password=s3cret", "postgres:///bots?host=/var/run/pg"),
    ("postgres://?host=%2Fpg&port=7&user=u&password=s3cret", "postgres://?host=/pg:7"),
    ("postgres://u@/bots?host=one,two&port=1,2&password=s3cret", "postgres://one:1,two:2/bots"),
    ("postgres://u@/bots?host=one,two&port=7&password=s3cret", "postgres://one:7,two:7/bots"),
    ("postgres://u@/bots?host=::1&password=s3cret", "postgres://[::1]/bots"),
    ("postgres://u@/bots?hostaddr=127.0.0.1&password=s3cret", "postgres://127.0.0.1/bots"),
    ("postgres://u:s3cret@db/other?dbname=bots", "postgres://db/bots"),
    ("postgres://db/bots?user=app@server&password=s3cret@x", "postgres://db/bots"),
    ("postgres://u:s3cret@db", "postgres://db"),
    ("postgres://u:s3cret@db/", "postgres://db"),
    ("postgres://u:s3cret@db:/bots", "postgres://db/bots"),
    ("postgres://", "postgres://"),
    ("postgres:///bots", "postgres:///bots"),
    ("postgres://:s3cret@db/bots", "postgres://db/bots"),
    ("postgres://u:s3cret@db/bots?sslmode=verify-full&sslrootcert=/ca.pem", "postgres://db/bots"),
    ("postgres://u:s3cret@db/bots?channel_binding=prefer", "postgres://db/bots"),
    ("postgres://u:s3cret@db/bots?gssencmode=disable&sslcompression=0", "postgres://db/bots"),
    ("postgres://u:s3cret@db/bots?keepalives=1&keepalives_idle=5", "postgres://db/bots"),
    ("postgres://u:s3cret@db/bots?tcp_user_timeout=9&krbsrvname=pg", "postgres://db/bots"),
    ("postgres://u:s3cret@db/bots?client_encoding=UTF8&sslsni=1", "postgres://db/bots"),
    ("postgres://u:s3cret@db/bots?load_balance_hosts=disable", "postgres://db/bots"),
    ("postgres://u:s3cret@db/bots?ssl_min_protocol_version=TLSv1.2", "postgres://db/bots"),
    ("postgres://u:s3cret@db/bots?options[statement_timeout]=5s", "postgres://db/bots"),
    ("postgres://u:s3cret@db/bots?statement-cache-capacity=10", "postgres://db/bots"),
    ("postgres://u:s3cret@db/b%0Aots", "postgres://db/b\\nots"),
];

/// A URL, and a part of what is said of it.
const REFUSED: &[(&str, &str)] = &[
    ("", "is empty"),
    ("postgres://u:s3cret@db/bots\n", "ends with a line break"),
    ("postgres://u:s3cret@db/bots\r\n", "ends with a line break"),
    (" postgres://u:s3cret@db/bots", "begins or ends with white space"),
    ("\"postgres://u:s3cret@db/bots\"", "in quotation marks"),
    ("'postgres://u:s3cret@db/bots'", "in quotation marks"),
    ("postgres://u:s3 cret@db/bots", "contains white space"),
    ("postgres://u:s3cret@db/bots?application_name=my bot", "contains white space"),
    ("postgres://u:s3cret\t@db/bots", "contains white space"),
    ("postgres://u:/s3cretA+r?s3cretB@db:1/d", "contains an @"),
    ("postgres://u:s3cretA/s3cretB@db/bots", "contains an @"),
    ("postgres://u:s3cretA?s3cretB@db/bots", "contains an @"),
    ("postgres://u:1?s3cretA=s3cretB@db/bots", "contains an @"),
    ("postgres://u:p@s3cretA?s3cretB=1@db/bots", "contains an @"),
    ("postgres://u:p@s3cretA/s3cretB@db/bots", "contains an @"),
    ("postgres://u:s3cretA#s3cretB@db/bots", "contains a #"),
    ("postgres://u:s3cret%@db/bots", "does not start an escape"),
    ("postgres://u:s3cret%zz@db/bots", "does not start an escape"),
    ("postgres://u:s3cret%ff@db/bots", "not valid UTF-8"),
    ("postgres://u:s3cret%00@db/bots", "not valid UTF-8"),
    ("postgres://u:s3cret/bots", "not a number from 1 to 65535"),
    ("postgres://u:s3cret", "not a number from 1 to 65535"),
    ("postgres://u:s3cret@db:0/bots", "not a number from 1 to 65535"),
    ("postgres://u:s3cret@db:65536/bots", "not a number from 1 to 65535"),
    ("postgres://u:s3cret@::1/bots", "an IPv6 address is written [::1]"),
    ("postgres://u:s3cret@[::1/bots", "without its ]"),
    ("postgres://u:s3cret@[s3cret]/bots", "not an IPv6 address"),
    ("postgres://u:s3cret@[::1]s3cret/bots", "other than a port"),
    ("postgres://u:s3cret@one,,two/bots", "an empty name in its list"),
    ("postgres://u:s3cret@d!b/bots", "not a name or address"),
    ("postgres://u:s3cret@db/bots/s3cret", "more than a database name"),
    (
        "postgres://u:s3cret@db/bots?sslmod=require",
        "unknown parameter sslmod (did you mean sslmode?)",
    ),
    ("postgres://u:s3cret@db/bots?colour=s3cret", "unknown parameter colour"),
    ("postgres://u@db/bots?password=s3cretA&s3cretB=1", "has an unknown parameter"),
    ("postgres://u@db/bots?password=s3cretA&s3cretB", "has an unknown parameter"),
    ("postgres://u:5?s3cret", "has an unknown parameter"),
    ("postgres://u:s3cret@db/bots?ssl=true", "ssl, which is not supported: use sslmode"),
    ("postgres://u:s3cret@db/bots?schema=x", "use --database-schema"),
    ("postgres://u:s3cret@db/bots?sslpassword=s3cret", "sslpassword, which is not supported"),
    ("postgres://u:s3cret@db/bots?sslmode=verify_full", "(did you mean verify-full?)"),
    ("postgres://u:s3cret@db/bots?sslmode=s3cret", "unknown sslmode: it is one of disable, allow"),
    ("postgres://u:s3cret@db/bots?sslmode=", "unknown sslmode"),
    ("postgres://u:s3cret@db/bots?sslrootcert=system&sslmode=require", "weaker sslmode"),
    ("postgres://u:s3cret@db/bots?sslcert=/c.pem", "without the other"),
    ("postgres://u:s3cret@db/bots?channel_binding=require", "not supported"),
    ("postgres://u:s3cret@db/bots?gssencmode=require", "a gssencmode that is not supported"),
    ("postgres://u:s3cret@db/bots?client_encoding=LATIN1", "or give utf8 or utf-8 or auto"),
    ("postgres://u:s3cret@db/bots?load_balance_hosts=random", "a load_balance_hosts that is not"),
    ("postgres://u:s3cret@db/bots?sslsni=s3cret", "a sslsni that is not supported"),
    ("postgres://u:s3cret@db/bots?ssl_min_protocol_version=TLSv1.3", "not supported (TLS is 1.2"),
    ("postgres://u:s3cret@db/bots?sslcrl=/crl.pem", "sslcrl, which is not supported"),
    ("postgres://u:s3cret@db/bots?require_auth=s3cret", "require_auth, which is not supported"),
    ("postgres://u:s3cret@db/bots?gssencmode=prefer&gssencmode=prefer", "gssencmode twice"),
    ("postgres://u:s3cret@db/bots?target_session_attrs=standby", "but oncegate writes"),
    ("postgres://u:s3cret@db/bots?target_session_attrs=s3cret", "unknown target_session_attrs"),
    ("postgres://u:s3cret@db/bots?connect_timeout=s3cret", "not an integer number of seconds"),
    ("postgres://u:s3cret@db/bots?port=s3cret", "not a number from 1 to 65535"),
    ("postgres://u:s3cret@/bots?host=one,two&port=1,2,3", "must be one, or one per host"),
    ("postgres://u:s3cret@/bots?host=one&hostaddr=::1", "both host and hostaddr"),
    ("postgres://u:s3cret@/bots?host=one&host=two", "host twice"),
    ("postgres://u:s3cret@db/bots?password=s3cret&password=s3cret", "password twice"),
    ("postgresql+asyncpg://u:s3cret@db/bots", "leave +asyncpg out, postgres://USER"),
    ("postgres+psycopg2://u:s3cret@db/bots", "leave +psycopg2 out"),
    ("postgres+s3cret://u:s3cret@db/bots", "leave what follows the + out"),
    ("jdbc:postgresql://db/bots?user=u&password=s3cret", "is a JDBC URL: write postgres://USER"),
    ("host=db port=1 user=u dbname=bots password=s3cret", "key=value pairs: write postgres://USER"),
    ("password='s3cret' host=db", "key=value pairs"),
    ("user=u:s3cret host=db", "key=value pairs"),
    ("postgres:u:s3cret@db/bots", "lacks the //"),
    ("postgres:/u:s3cret@db/bots", "lacks the //"),
    ("mysql://u:s3cret@db/bots", "must begin with sqlite:// or postgres://"),
    ("s3cret://u:s3cret@db/bots", "must begin with sqlite:// or postgres://"),
    ("u:s3cret@db/bots", "must begin with sqlite:// or postgres://"),
    ("db.s3cret.example", "must begin with sqlite:// or postgres://"),
];

/// Reads a URL where the environment says nothing.
fn parse(url: &str) -> Result<Target, BadUrl> {
    Target::parse(url, &Tls::default())
}

fn read(url: &str) -> Target {
    parse(url).unwrap_or_else(|problem| panic!("{url}: {problem}"))
}

#[test]
fn what_can_be_read_is_shown_without_its_secrets() {
    for (url, shown) in READ {
        let target = read(url);
        assert_eq!(target.to_string(), *shown, "{url}");
        assert!(!format!("{target:?}").contains("s3cret"), "{url}");
    }
}

#[test]
fn what_cannot_be_read_is_explained_without_a_part_of_it() {
    for (url, part) in REFUSED {
        let Err(problem) = parse(url) else { panic!("{url}: it was read") };
        let problem = format!("{problem} {problem:?}");
        assert!(problem.contains(part), "{url}: {part:?} is not in {problem:?}");
        assert!(!problem.contains("s3cret"), "{url}: {problem:?}");
    }
    assert!(READ.len() + REFUSED.len() >= 90);
}

#[test]
fn everything_that_a_url_says_is_read() {
    let target = read(
        "postgres://us%40er:pass%2Fword@one,[::1]:5433/da%2Fta?sslmode=verify-ca&sslrootcert=/ca\
         &sslcert=/c&sslkey=/k&application_name=bots&options=-c%20geqo=off&options[a.b]=x%20y\
         &connect_timeout=3&target_session_attrs=primary",
    );
    let host = |name: &str, port| Host { name: name.to_owned(), port };
    assert_eq!(target.hosts, [host("one", None), host("::1", Some(5433))]);
    assert_eq!(target.user.as_deref(), Some("us@er"));
    assert_eq!(target.password.as_deref(), Some("pass/word"));
    assert_eq!(target.database.as_deref(), Some("da/ta"));
    assert_eq!(target.tls.mode, Some(TlsMode::VerifyCa));
    assert_eq!(target.tls.root.as_deref(), Some("/ca"));
    assert_eq!(target.tls.certificate.as_deref(), Some("/c"));
    assert_eq!(target.tls.key.as_deref(), Some("/k"));
    assert_eq!(target.application_name.as_deref(), Some("bots"));
    assert_eq!(target.options, ["-c geqo=off", r"-c a.b=x\ y"]);
    assert_eq!(target.connect_timeout.map(|limit| limit.as_secs()), Some(3));
    assert_eq!(target.session, Some(Session::Primary));

    // A plus sign is one, as for libpq.
    assert_eq!(read("postgres://u:a+b@db").password.as_deref(), Some("a+b"));
    assert_eq!(read("postgres://db?password=a+b").password.as_deref(), Some("a+b"));
    assert_eq!(read("postgres://db?connect_timeout=0").connect_timeout, None);
    assert_eq!(read("postgres://db?sslrootcert=system").tls.mode, Some(TlsMode::VerifyFull));
}

#[test]
fn a_fallback_for_the_name_of_the_application_is_a_default() {
    for (query, name) in [
        ("application_name=a&fallback_application_name=b", "a"),
        ("fallback_application_name=b&application_name=a", "a"),
        ("fallback_application_name=b", "b"),
    ] {
        let target = read(&format!("postgres://db?{query}"));
        assert_eq!(target.application_name.as_deref(), Some(name), "{query}");
    }
}

/// How connecting to the first host begins, and how it goes on if TLS fails.
fn begun(target: &Target) -> String {
    let options = PgConnectOptions::new_without_pgpass().host(&target.hosts[0].name);
    let (first, fallback) = Security::of(target, &options).modes();
    format!("{first:?} {fallback:?}")
}

#[test]
fn a_server_on_another_host_is_verified_unless_the_mode_says_otherwise() {
    let (here, elsewhere) = ("Prefer Some(Disable)", "VerifyFull None");
    for (host, default) in [
        ("localhost", here),
        ("LOCALHOST", here),
        ("127.0.0.1", here),
        ("127.8.9.10", here),
        ("[::1]", here),
        ("[::ffff:127.0.0.1]", here),
        ("%2Frun%2Fpostgresql", "Disable None"),
        ("db", elsewhere),
        ("localhost.", elsewhere),
        ("localhost.example", elsewhere),
        ("db.localhost", elsewhere),
        ("127.0.0.1.example", elsewhere),
        ("127.1", elsewhere),
        ("0.0.0.0", elsewhere),
        ("10.0.0.1", elsewhere),
        ("[::]", elsewhere),
        ("[fd00::1]", elsewhere),
        ("[fe80::1%25eth0]", elsewhere),
        ("[::ffff:10.0.0.1]", elsewhere),
    ] {
        let target = read(&format!("postgres://{host}/bots"));
        assert_eq!(begun(&target), default, "{host}");
        if !target.hosts[0].is_socket() {
            let target = read(&format!("postgres://{host}/bots?sslmode=disable"));
            assert_eq!(begun(&target), "Disable None", "{host}");
            let target = read(&format!("postgres://{host}/bots?sslmode=require"));
            assert_eq!(begun(&target), "Require None", "{host}");
        }
    }
}

#[test]
fn the_mode_and_the_root_of_tls_count_together_wherever_they_are_from() {
    let begin = |url: &str, mode: Option<TlsMode>, root: Option<&str>| {
        let root = root.map(str::to_owned);
        let environment = Tls { mode, root, ..Tls::default() };
        let target = Target::parse(url, &environment).ok()?;
        Some(begun(&target))
    };
    let (require, ca) = (Some(TlsMode::Require), Some("/ca"));
    for (url, mode, root, begun) in [
        ("postgres://db", None, None, Some("VerifyFull None")),
        ("postgres://db", Some(TlsMode::Prefer), None, Some("Require Some(Disable)")),
        ("postgres://localhost", None, None, Some("Prefer Some(Disable)")),
        ("postgres://db", Some(TlsMode::Allow), None, Some("Disable Some(Require)")),
        ("postgres://db", Some(TlsMode::VerifyFull), None, Some("VerifyFull None")),
        ("postgres://db", require, None, Some("Require None")),
        ("postgres://db", require, ca, Some("VerifyCa None")),
        ("postgres://db?sslrootcert=/own", require, None, Some("VerifyCa None")),
        ("postgres://db?sslmode=require", None, ca, Some("VerifyCa None")),
        ("postgres://db?sslmode=require&sslrootcert=/own", None, None, Some("VerifyCa None")),
        ("postgres://db?sslmode=disable", require, ca, Some("Disable None")),
        ("postgres://db", None, Some("system"), Some("VerifyFull None")),
        ("postgres://db?sslmode=require", None, Some("system"), None),
        ("postgres://db?sslrootcert=system", require, None, None),
    ] {
        assert_eq!(begin(url, mode, root).as_deref(), begun, "{url} {mode:?} {root:?}");
    }
}

#[test]
fn every_mode_of_tls_has_a_name() {
    for (name, mode) in [
        ("disable", TlsMode::Disable),
        ("allow", TlsMode::Allow),
        ("prefer", TlsMode::Prefer),
        ("require", TlsMode::Require),
        ("verify-ca", TlsMode::VerifyCa),
        ("verify-full", TlsMode::VerifyFull),
    ] {
        assert_eq!(read(&format!("postgres://db?sslmode={name}")).tls.mode, Some(mode));
        assert_eq!(read(&format!("postgres://db?ssl-mode={name}")).tls.mode, Some(mode));
    }
}

#[test]
fn the_driver_is_given_what_was_read() {
    use std::str::FromStr as _;

    let target = read("postgres://us%26er:p%25%26%3D@[::1]:7/da%3Fta?options=-c%20geqo%3Doff");
    let options =
        sqlx::postgres::PgConnectOptions::from_str(&canonical(&target, target.hosts.first()));
    let options = options.unwrap();
    assert_eq!(options.get_host(), "::1");
    assert_eq!(options.get_port(), 7);
    assert_eq!(options.get_username(), "us&er");
    assert_eq!(options.get_database(), Some("da?ta"));
    assert_eq!(options.get_options(), Some("-c geqo=off"));
    let target = read("postgres://%2Frun%2Fpg:7/bots");
    let options =
        sqlx::postgres::PgConnectOptions::from_str(&canonical(&target, target.hosts.first()));
    assert!(options.unwrap().get_socket().is_some_and(|socket| socket.ends_with("pg")));
}

#[test]
fn a_schema_has_a_plain_name() {
    for name in ["oncegate", "_x", "a1_b", &"a".repeat(MAX_SCHEMA_BYTES)] {
        check_schema(name).unwrap();
    }
    let long = "a".repeat(MAX_SCHEMA_BYTES + 1);
    for name in ["", "Bots", "1a", "a-b", "a\"b", "a b", "é", "pg_x", "information_schema", &long]
    {
        assert!(check_schema(name).is_err(), "{name}");
    }
}

/// Answers how PostgreSQL does until it has been sent a password, and then with `answer`.
async fn ask_for_password(stream: &mut TcpStream, answer: &[u8]) -> String {
    let length = stream.read_u32().await.unwrap();
    let mut startup = vec![0; length as usize - 4];
    stream.read_exact(&mut startup).await.unwrap();
    // AuthenticationCleartextPassword.
    stream.write_all(b"R\0\0\0\x08\0\0\0\x03").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'p');
    let length = stream.read_u32().await.unwrap();
    let mut password = vec![0; length as usize - 4];
    stream.read_exact(&mut password).await.unwrap();
    stream.write_all(answer).await.unwrap();
    String::from_utf8(password).unwrap().trim_end_matches('\0').to_owned()
}

/// Plays a server that refuses the password, which is changed by then in the file at `path`.
async fn change_meanwhile(listener: TcpListener, path: &Path) -> [String; 2] {
    let (mut stream, _) = listener.accept().await.unwrap();
    fs::write(path, "new\n").unwrap();
    let refusal = b"SFATAL\0VFATAL\0C28P01\0Mno\0\0";
    let mut error = vec![b'E', 0, 0, 0, u8::try_from(refusal.len()).unwrap() + 4];
    error.extend(refusal);
    let former = ask_for_password(&mut stream, &error).await;
    let (mut stream, _) = listener.accept().await.unwrap();
    // AuthenticationOk and ReadyForQuery.
    let ready = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
    let latter = ask_for_password(&mut stream, ready).await;
    [former, latter]
}

#[tokio::test]
async fn a_password_that_was_changed_after_it_was_read_is_read_once_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("password");
    fs::write(&path, "old\n").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://u@{}/d?sslmode=disable", listener.local_addr().unwrap());
    let source = Source { password_file: Some(path.clone()), ..Source::at(&url) };
    let metrics = StoreMetrics::default().of_connections();
    let connector = Connector::new(source, Duration::from_secs(30), metrics).unwrap();
    let (connected, sent) = tokio::join!(connector.connect(), change_meanwhile(listener, &path));
    assert_eq!(sent, ["old", "new"]);
    connected.unwrap();
}
