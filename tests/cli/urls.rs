//! A database URL's secrets are nowhere in what the binary prints.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    thread,
};

use tempfile::tempdir;

use super::{oncegate, run};

/// Shapes of URLs, each with secrets planted in it, and none that leads to a database.
const SHAPES: &[&str] = &[
    "postgres://u:s3cret@127.0.0.1:1/d",
    "postgresql://u:s3cret@127.0.0.1:1/d",
    "POSTGRES://u:s3cret@127.0.0.1:1/d",
    "postgres://u:/s3cretA+r?s3cretB@127.0.0.1:1/d",
    "postgres://u:s3cretA/s3cretB@127.0.0.1:1/d",
    "postgres://u:s3cretA?s3cretB=x@127.0.0.1:1/d",
    "postgres://u:s3cretA#s3cretB@127.0.0.1:1/d",
    "postgres://u:s3cretA@s3cretB@127.0.0.1:1/d",
    "postgres://u:s3cretA:s3cretB@127.0.0.1:1/d",
    "postgres://u:s3cretA\\s3cretB@127.0.0.1:1/d",
    "postgres://u:[s3cret]@127.0.0.1:1/d",
    "postgres://u:s3cretA s3cretB@127.0.0.1:1/d",
    "postgres://u:s3cret%@127.0.0.1:1/d",
    "postgres://u:s3cret%ff@127.0.0.1:1/d",
    "postgres://u:s3cret%00@127.0.0.1:1/d",
    "postgres://u:s3cret%0A@127.0.0.1:1/d",
    "postgres://u:5?s3cret@127.0.0.1:1/d",
    "postgres://u:5?s3cretA=s3cretB@127.0.0.1:1/d",
    "postgres://u:p@s3cretA?s3cretB@127.0.0.1:1/d",
    "postgres://u:s3cret",
    "postgres://u:s3cret/d",
    "postgres://u:s3cret@",
    "postgres://u:s3cret@/d?host=/nowhere",
    "postgres://u:s3cret@127.0.0.1:1,127.0.0.1:2/d",
    "postgres://u:s3cret@[::1]:1/d",
    "postgres://u:s3cret@[::1/d",
    "postgres://u:s3cret@::1/d",
    "postgres://u:s3cret@127.0.0.1:x/d",
    "postgres://u:s3cret@127.0.0.1:99999/d",
    "postgres://127.0.0.1:1/d?user=u&password=s3cret",
    "postgres://127.0.0.1:1/d?password=s3cretA&s3cretB=1",
    "postgres://127.0.0.1:1/d?password=s3cretA&s3cretB",
    "postgres://127.0.0.1:1/d?password=s3cretA@s3cretB",
    "postgres://u:s3cret@127.0.0.1:1/d?sslpassword=s3cret",
    "postgres://u:s3cret@127.0.0.1:1/d?sslmode=s3cret",
    "postgres://u:s3cret@127.0.0.1:1/d?sslmod=s3cret",
    "postgres://u:s3cret@127.0.0.1:1/d?passwort=s3cret",
    "postgres://u:s3cret@127.0.0.1:1/d?target_session_attrs=s3cret",
    "postgres://u:s3cret@127.0.0.1:1/d?options=-c%20x=s3cret",
    "postgres://u:s3cret@127.0.0.1:1/d\n",
    "\"postgres://u:s3cret@127.0.0.1:1/d\"",
    " postgres://u:s3cret@127.0.0.1:1/d",
    "postgresql+asyncpg://u:s3cret@127.0.0.1:1/d",
    "postgres+s3cret://u:s3cret@127.0.0.1:1/d",
    "jdbc:postgresql://127.0.0.1:1/d?password=s3cret",
    "host=127.0.0.1 port=1 user=u dbname=d password=s3cret",
    "password=s3cret",
    "mysql://u:s3cret@127.0.0.1:1/d",
    "s3cret",
    "s3cretA:s3cretB@127.0.0.1:1/d",
];

#[test]
fn no_part_of_a_password_is_printed_whatever_the_shape_of_the_url() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("url");
    let check = &|url: &str, command: &str| {
        let mut command = oncegate(&[command, "--connect-timeout", "10ms"]);
        command.env("ONCEGATE_DATABASE_URL", url).env("ONCEGATE_LOG", "trace");
        command.env("ONCEGATE_LISTEN", "127.0.0.1:0").current_dir(folder.path());
        let ran = run(&mut command, "");
        assert_ne!(ran.code, Some(0), "{url}");
        assert!(!ran.err.contains("s3cret") && !ran.out.contains("s3cret"), "{url}: {ran:?}");
        assert!(ran.err.contains("error: "), "{url}: {ran:?}");
    };
    assert!(SHAPES.len() >= 40);
    thread::scope(|scope| {
        for part in SHAPES.chunks(SHAPES.len().div_ceil(4)) {
            scope.spawn(move || {
                for url in part {
                    check(url, "serve");
                    check(url, "migrate");
                }
            });
        }
    });
    fs::write(&file, "postgres://u:s3cretA/s3cretB@127.0.0.1:1/d\n").unwrap();
    let mut command = oncegate(&["migrate", "--database-url-file"]);
    let ran = run(command.arg(&file), "");
    ran.complained(1, "the URL in --database-url-file contains an @");
    assert!(!ran.err.contains("s3cret"), "{ran:?}");
}

#[test]
fn no_part_of_a_file_with_a_secret_is_printed() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("secret");
    let (url, password) = ("ONCEGATE_DATABASE_URL_FILE", "ONCEGATE_DATABASE_PASSWORD_FILE");
    for (variable, content, part) in [
        (url, &b"postgres://u:s3cretA@127.0.0.1:1/d\npostgres://u:s3cretB@h/d\n"[..], "one line"),
        (url, b"postgres://u:s3cret\xff@127.0.0.1:1/d\n", "not valid UTF-8"),
        (url, b"s3cret\n", "--database-url-file"),
        (password, b"s3cretA\ns3cretB\n", "one line"),
        (password, b"s3cret\xff\n", "not valid UTF-8"),
        (password, b"s3cret\0\n", "one line"),
        (password, b"s3cret\n", "127.0.0.1"),
        // sqlx reads this one, and warns of a line with the line.
        ("PGPASSFILE", b"127.0.0.1:1:d:s3cret\n", "127.0.0.1"),
        ("PGPASSFILE", b"127.0.0.1:1:d:u:s3cretA\\s3cretB\n", "127.0.0.1"),
        ("PGPASSFILE", b"s3cret\n", "127.0.0.1"),
    ] {
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let mut command = oncegate(&["migrate", "--connect-timeout", "10ms"]);
        command.env(variable, &path).env("ONCEGATE_LOG", "trace,sqlx_postgres::options=trace");
        if variable != url {
            command.env("ONCEGATE_DATABASE_URL", "postgres://u@127.0.0.1:1/d");
        }
        let ran = run(&mut command, "");
        let content = content.escape_ascii();
        assert!(ran.code == Some(1) && ran.err.contains(part), "{content}: {ran:?}");
        assert!(!ran.err.contains("s3cret") && !ran.out.contains("s3cret"), "{content}: {ran:?}");
    }
}

#[test]
fn two_places_for_one_url_are_refused_by_name() {
    let flags = ["migrate", "--database-url", "postgres://u:s3cret@h/d"];
    let mut command = oncegate(&flags);
    let ran = run(command.args(["--database-url-file", "/nowhere"]), "");
    assert!(
        ran.err.contains("--database-url ") && ran.err.contains("--database-url-file"),
        "{ran:?}"
    );
    assert!(ran.code == Some(2) && !ran.err.contains("s3cret"), "{ran:?}");
    let mut command = oncegate(&["migrate"]);
    command.env("ONCEGATE_DATABASE_URL", "postgres://u:s3cret@h/d");
    let ran = run(command.env("ONCEGATE_DATABASE_URL_FILE", "/nowhere"), "");
    assert!(ran.code == Some(2) && !ran.err.contains("s3cret"), "{ran:?}");
}
