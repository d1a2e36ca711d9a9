//! Connections: how many may be open, and what a proxy makes of them.

use std::str::FromStr as _;

use sqlx::{
    ConnectOptions as _, Connection as _, Executor as _, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};
use tokio::{
    io::{self, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{doctor, migrate};
use crate::harness::{
    execute,
    postgres::{Cluster, new_database},
    proxy::{Line, Proxy},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notifications_that_a_proxy_loses_are_missed() {
    let url = new_database().await;
    migrate(&url).await;
    let proxy = Proxy::start_for("oncegate doctor", &url, Line::Open).await;
    let timeout = ["--store-timeout", "2s"];
    doctor(&proxy.url, &timeout).await.has("listen", "ok", &["notifications arrive"]);
    proxy.set(Line::Deaf);
    let diagnosis = doctor(&proxy.url, &timeout).await;
    diagnosis.has("listen", "warning", &["transaction pooling", "polling"]);
    diagnosis.has("writable", "ok", &[]);
}

/// A proxy that drops the settings of connections, as with `ignore_startup_parameters`.
async fn dropping_settings(url: &str) -> String {
    let to = PgConnectOptions::from_str(url).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let here = to.clone().host("127.0.0.1").port(port).ssl_mode(PgSslMode::Disable);
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let database = (to.get_host().to_owned(), to.get_port());
            tokio::spawn(async move {
                let length = usize::try_from(client.read_u32().await?).unwrap();
                let mut startup = vec![0; length - 4];
                client.read_exact(&mut startup).await?;
                // The protocol's version, then names and values, each with a zero byte at its end.
                let (version, parameters) = startup.split_at(4);
                let texts = parameters.split(|byte| *byte == 0).collect::<Vec<_>>();
                let pairs = texts.chunks(2).take_while(|pair| !pair[0].is_empty());
                let kept = pairs.filter(|pair| pair[0] != b"options");
                let kept = kept.flat_map(|pair| [pair.join(&0), vec![0]].concat());
                let message = [version, &kept.collect::<Vec<_>>(), &[0]].concat();
                let length = u32::try_from(message.len() + 4).unwrap().to_be_bytes();
                let mut database = TcpStream::connect(database).await?;
                database.write_all(&[&length[..], &message].concat()).await?;
                io::copy_bidirectional(&mut client, &mut database).await
            });
        }
    });
    here.to_url_lossy().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_a_proxy_drops_are_named_and_how_to_set_them() {
    let url = new_database().await;
    migrate(&url).await;
    let set = ["lock_timeout", "enable_seqscan", "plan_cache_mode", "jit"];
    doctor(&url, &[]).await.has("settings", "ok", &set);
    let proxied = dropping_settings(&url).await;
    let diagnosis = doctor(&proxied, &[]).await;
    let lost = [
        "a proxy drops the settings",
        "lock_timeout is 0",
        "enable_seqscan is on",
        "plan_cache_mode is auto",
        "SET lock_timeout = '500ms'",
    ];
    diagnosis.has("settings", "warning", &lost);

    // As it advises, for this database.
    let name = url.rsplit('/').next().unwrap().split('?').next().unwrap();
    for (setting, value) in [
        ("lock_timeout", "500ms"),
        ("enable_seqscan", "off"),
        ("plan_cache_mode", "force_generic_plan"),
        ("jit", "off"),
    ] {
        execute(&url, &format!("ALTER DATABASE {name} SET {setting} = '{value}'")).await;
    }
    doctor(&proxied, &[]).await.has("settings", "ok", &set);
}

/// A proxy whose second backend does not have the statements that were prepared on the first, as
/// PgBouncer with `max_prepared_statements = 0`: of each connection from the second run on.
async fn losing_statements(url: &str) -> String {
    /// The end of the portal's name, and the begin of the statement's, in a Bind message.
    const BIND: &[u8] = b"\0sqlx_s_";
    let to = PgConnectOptions::from_str(url).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let here = to.clone().host("127.0.0.1").port(port).ssl_mode(PgSslMode::Disable);
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let database = TcpStream::connect((to.get_host(), to.get_port())).await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_database, mut to_database) = database.into_split();
            tokio::spawn(async move { io::copy(&mut from_database, &mut to_client).await });
            tokio::spawn(async move {
                let (mut runs, mut bytes) = (0, vec![0; 65_536]);
                while let Ok(count @ 1..) = from_client.read(&mut bytes).await {
                    let sent = &mut bytes[..count];
                    let place = sent.windows(BIND.len()).position(|part| part == BIND);
                    if let Some(place) = place {
                        runs += 1;
                        sent[place + 1] = if runs > 1 { b'x' } else { b's' };
                    }
                    to_database.write_all(sent).await.unwrap();
                }
            });
        }
    });
    here.to_url_lossy().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_loses_prepared_statements_is_found() {
    let url = new_database().await;
    migrate(&url).await;
    doctor(&url, &[]).await.has("prepared statements", "ok", &["can be run again"]);
    let diagnosis = doctor(&losing_statements(&url).await, &[]).await;
    let advice = ["max_prepared_statements above 0", "26000"];
    diagnosis.has("prepared statements", "failed", &advice);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_budget_that_is_too_small_is_found() {
    let settings = &["fsync=off", "max_connections=23", "superuser_reserved_connections=3"];
    let cluster = tokio::task::spawn_blocking(|| Cluster::start_with(settings)).await.unwrap();
    let url = cluster.url();
    migrate(&url).await;
    execute(&url, "CREATE ROLE bot LOGIN IN ROLE pg_read_all_stats; GRANT ALL ON ALL TABLES IN SCHEMA public TO bot; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO bot").await;
    let bot = url.replace("postgres@", "bot@");
    let fits = ["1 replica opens up to 9 of 20 (the server's max_connections)"];
    doctor(&bot, &[]).await.has("connections", "ok", &fits);
    // They fit, but not one more beside them.
    let full = ["2 replicas open up to 18 of 20", "rolling update", "27"];
    doctor(&bot, &["--replicas", "2"]).await.has("connections", "warning", &full);
    let over = ["3 replicas open up to 27 of 20", "lower --writers"];
    doctor(&bot, &["--replicas", "3"]).await.has("connections", "warning", &over);
    let fewer = ["3 replicas open up to 21 of 20"];
    let writers = ["--replicas", "3", "--writers", "1"];
    doctor(&bot, &writers).await.has("connections", "warning", &fewer);

    // Others use what is left.
    let mut others = Vec::new();
    for _ in 0..14 {
        others.push(PgConnection::connect(&bot).await.unwrap());
    }
    let crowded = ["1 replica opens up to 9 of 20", " of others", "close other"];
    doctor(&bot, &[]).await.has("connections", "warning", &crowded);
    for mut other in others {
        other.execute("SELECT 1").await.unwrap();
        other.close().await.unwrap();
    }

    execute(&url, "ALTER ROLE bot CONNECTION LIMIT 3").await;
    let never = ["of 3 (the role's CONNECTION LIMIT)", "a replica needs at least 4"];
    doctor(&bot, &[]).await.has("connections", "failed", &never);

    // A replica has all but one.
    execute(&url, "ALTER ROLE bot CONNECTION LIMIT 1").await;
    let diagnosis = doctor(&bot, &[]).await;
    diagnosis.has("prepared statements", "warning", &["not checked", "too many connections"]);
    diagnosis.has("transaction ids", "ok", &[]);
}
