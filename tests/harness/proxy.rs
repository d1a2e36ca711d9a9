//! A proxy between a replica and its database that lets everything pass, and
//! does to the listener's connections what a test says.

use std::{
    str::FromStr as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{
    ConnectOptions as _,
    postgres::{PgConnectOptions, PgSslMode},
};
use tokio::{
    io::{self, AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    time::timeout,
};

/// How long a connection is idle before the proxy may forget it: no NAT is known to forget
/// one sooner.
const FORGET: Duration = Duration::from_secs(2);

/// What a request holds that makes or uses a prepared statement. Others are not counted, held or
/// lost: when a connection is checked or a channel opened depends on how busy the machine is.
const PREPARED: &[u8] = b"sqlx_s_";

/// What becomes of a listener's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Everything passes.
    Open,
    /// Notifications are lost, as behind a proxy that pools transactions.
    Deaf,
    /// Whatever the database says is lost; the connection stays.
    Mute,
    /// It is closed, and so is every new one.
    Cut,
}

/// Dropped, it goes on for as long as the test.
pub struct Proxy {
    /// The database, through this proxy.
    pub url: String,
    line: watch::Sender<Line>,
    /// How often all connections were forgotten.
    forgotten: watch::Sender<usize>,
    /// Which of the next answers is lost, from 1; none if 0.
    loses: Arc<AtomicUsize>,
    /// How many more requests pass before all wait, below 0 once one waits; none if all pass.
    passing: watch::Sender<Option<i64>>,
    connections: Arc<AtomicUsize>,
    given_up: Arc<AtomicUsize>,
}

impl Proxy {
    /// A proxy to the database at `url`, which meddles with who hears of marks that
    /// are taken away.
    pub async fn start(url: &str, line: Line) -> Self {
        Self::start_for("oncegate listener", url, line).await
    }

    /// The same, which meddles with the connections of this name.
    pub async fn start_for(name: &'static str, url: &str, line: Line) -> Self {
        let to = PgConnectOptions::from_str(url).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = to.clone().host("127.0.0.1").port(listener.local_addr().unwrap().port());
        let url = here.ssl_mode(PgSslMode::Disable).to_url_lossy().to_string();
        let proxy = Self {
            url,
            line: watch::Sender::new(line),
            forgotten: watch::Sender::new(0),
            loses: Arc::default(),
            passing: watch::Sender::new(None),
            connections: Arc::default(),
            given_up: Arc::default(),
        };
        let line = proxy.line.subscribe();
        let forgotten = proxy.forgotten.subscribe();
        let (connections, given_up) = (proxy.connections.clone(), proxy.given_up.clone());
        let (loses, passing) = (proxy.loses.clone(), proxy.passing.clone());
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let database = (to.get_host().to_owned(), to.get_port());
                let (line, connections, given_up) =
                    (line.clone(), connections.clone(), given_up.clone());
                let (forgotten, loses) = (forgotten.clone(), loses.clone());
                let passing = passing.clone();
                tokio::spawn(async move {
                    let (from_client, to_client) = client.into_split();
                    let Ok((is_listener, startup)) = startup(from_client, name).await else {
                        return;
                    };
                    let (startup, from_client) = startup;
                    if !is_listener {
                        let _ = pass(from_client, to_client, startup, database).await;
                        return;
                    }
                    connections.fetch_add(1, Ordering::SeqCst);
                    let ends = (from_client, to_client);
                    let _ =
                        meddle(ends, startup, database, line, forgotten, &loses, &passing).await;
                    connections.fetch_sub(1, Ordering::SeqCst);
                    given_up.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        proxy
    }

    /// From now on, this becomes of the listener's connections.
    pub fn set(&self, line: Line) {
        self.line.send_replace(line);
    }

    /// So many answers of the database to prepared statements pass, and the next is lost, with its
    /// connection: what it answers is committed. All else passes.
    pub fn lose_answer_after(&self, passing: usize) {
        self.loses.store(passing + 1, Ordering::SeqCst);
    }

    /// So many requests with prepared statements pass, and the next ones wait until
    /// [`Proxy::let_pass`].
    pub fn hold_after(&self, passing: i64) {
        self.passing.send_replace(Some(passing));
    }

    /// Waits until a request waits.
    pub async fn holds(&self) {
        let mut passing = self.passing.subscribe();
        let one_waits = passing.wait_for(|passing| passing.is_some_and(|left| left < 0));
        timeout(Duration::from_mins(1), one_waits).await.expect("no request came").unwrap();
    }

    /// What waits passes, and all that comes.
    pub fn let_pass(&self) {
        self.passing.send_replace(None);
    }

    /// From now on, what is sent over the connections that were idle for [`FORGET`] is lost, in
    /// both directions, and neither end learns of it: as by a NAT. New ones pass.
    pub fn forget(&self) {
        self.forgotten.send_modify(|count| *count += 1);
    }

    /// How many connections listeners have open.
    pub fn listeners(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// How many have ended.
    pub fn given_up(&self) -> usize {
        self.given_up.load(Ordering::SeqCst)
    }
}

/// A client's first message: <https://www.postgresql.org/docs/current/protocol-message-formats.html>.
/// Tells whether it is one of those with this name.
async fn startup(
    mut client: OwnedReadHalf,
    name: &str,
) -> io::Result<(bool, (Vec<u8>, OwnedReadHalf))> {
    let length = client.read_u32().await?;
    let mut message = length.to_be_bytes().to_vec();
    message.resize(usize::try_from(length).unwrap(), 0);
    client.read_exact(&mut message[4..]).await?;
    let name = format!("{name}\0");
    let is_listener = message.windows(name.len()).any(|window| window == name.as_bytes());
    Ok((is_listener, (message, client)))
}

async fn pass(
    mut from_client: OwnedReadHalf,
    mut to_client: OwnedWriteHalf,
    startup: Vec<u8>,
    database: (String, u16),
) -> io::Result<()> {
    let (mut from_database, mut to_database) = TcpStream::connect(database).await?.into_split();
    to_database.write_all(&startup).await?;
    tokio::select! {
        ended = io::copy(&mut from_client, &mut to_database) => ended?,
        ended = io::copy(&mut from_database, &mut to_client) => ended?,
    };
    Ok(())
}

async fn meddle(
    (mut from_client, mut to_client): (OwnedReadHalf, OwnedWriteHalf),
    startup: Vec<u8>,
    database: (String, u16),
    mut line: watch::Receiver<Line>,
    mut forgotten: watch::Receiver<usize>,
    loses: &AtomicUsize,
    passing: &watch::Sender<Option<i64>>,
) -> io::Result<()> {
    forgotten.mark_unchanged();
    let (mut from_database, mut to_database) = TcpStream::connect(database).await?.into_split();
    to_database.write_all(&startup).await?;
    let mut cut = line.clone();
    let (asked, counts) = (Mutex::new(Instant::now()), AtomicBool::new(false));
    let idle_when_forgotten = async {
        while forgotten.changed().await.is_ok() {
            if asked.lock().unwrap().elapsed() >= FORGET {
                return;
            }
        }
    };
    let ended = tokio::select! {
        ended = ask(&mut from_client, &mut to_database, passing, &asked, &counts) => Some(ended),
        ended = answer(&mut from_database, &mut to_client, &mut line, loses, &counts) => Some(ended),
        _ = cut.wait_for(|line| *line == Line::Cut) => Some(Ok(())),
        () = idle_when_forgotten => None,
    };
    match ended {
        Some(ended) => ended,
        // The sockets stay open.
        None => std::future::pending().await,
    }
}

/// Hands the client's messages on, and notes when, and whether they count.
async fn ask(
    client: &mut OwnedReadHalf,
    database: &mut OwnedWriteHalf,
    passing: &watch::Sender<Option<i64>>,
    asked: &Mutex<Instant>,
    counts: &AtomicBool,
) -> io::Result<()> {
    let mut bytes = vec![0; 16 * 1024];
    loop {
        let count = client.read(&mut bytes).await?;
        if count == 0 {
            return Ok(());
        }
        *asked.lock().unwrap() = Instant::now();
        let is_prepared = bytes[..count].windows(PREPARED.len()).any(|part| part == PREPARED);
        counts.store(is_prepared, Ordering::SeqCst);
        let mut is_held = false;
        passing.send_if_modified(|passing| {
            let Some(left) = passing.as_mut().filter(|_| is_prepared) else { return false };
            *left -= 1;
            is_held = *left < 0;
            true
        });
        if is_held {
            let _ = passing.subscribe().wait_for(Option::is_none).await;
        }
        database.write_all(&bytes[..count]).await?;
    }
}

/// Hands the database's messages on, or not.
async fn answer(
    database: &mut OwnedReadHalf,
    client: &mut OwnedWriteHalf,
    line: &mut watch::Receiver<Line>,
    loses: &AtomicUsize,
    counts: &AtomicBool,
) -> io::Result<()> {
    const NOTIFICATION: u8 = b'A';
    const READY: u8 = b'Z';
    loop {
        let kind = database.read_u8().await?;
        let length = database.read_u32().await?;
        let mut message = [&[kind], length.to_be_bytes().as_slice()].concat();
        message.resize(usize::try_from(length).unwrap() + 1, 0);
        database.read_exact(&mut message[5..]).await?;
        let counts = counts.load(Ordering::SeqCst);
        if counts && loses.load(Ordering::SeqCst) == 1 {
            loses.store(0, Ordering::SeqCst);
            return Ok(());
        }
        if counts && kind == READY {
            let _ =
                loses.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        }
        let lost = match *line.borrow() {
            Line::Open => false,
            Line::Deaf => kind == NOTIFICATION,
            Line::Mute | Line::Cut => true,
        };
        if !lost {
            client.write_all(&message).await?;
        }
    }
}
