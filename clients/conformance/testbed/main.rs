//! The testbed of the client libraries: the real server, a proxy before each replica, and the
//! faults of a scenario, by commands on standard input. `clients/conformance/README.md` defines
//! them.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    sync::Arc,
};

use clap::{Parser, Subcommand, ValueEnum};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines, Stdin, stdin},
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

use replica::Replica;
use store::Store;

mod armed;
mod calls;
mod command;
mod proxy;
mod records;
mod replica;
mod server;
mod store;

/// Runs oncegate behind proxies, and breaks it by the commands of standard input
#[derive(Debug, Parser)]
#[command(name = "testbed", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    mode: Option<Mode>,
    /// The store of the replicas
    #[arg(long, value_enum, default_value = "sqlite")]
    store: Kind,
    /// Number of replicas; more than one needs PostgreSQL
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    replicas: u8,
    /// Further arguments of `oncegate serve`
    #[arg(last = true)]
    server: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// Start a PostgreSQL server, and stop it when standard input closes
    Postgres,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Sqlite,
    Postgres,
}

fn main() -> anyhow::Result<ExitCode> {
    if std::env::args().nth(1).as_deref() == Some(server::MODE) {
        return server::run();
    }
    let cli = Cli::parse();
    anyhow::ensure!(
        cli.replicas == 1 || cli.store == Kind::Postgres,
        "--replicas {} needs --store postgres",
        cli.replicas
    );
    // One thread: a signal goes to a process that this thread has not reaped yet.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        match cli.mode {
            Some(Mode::Postgres) => postgres().await,
            None => run(cli).await,
        }
    });
    // The thread that reads standard input may still wait for a line.
    runtime.shutdown_background();
    ended.map(|()| ExitCode::SUCCESS)
}

async fn postgres() -> anyhow::Result<()> {
    let cluster = tokio::task::spawn_blocking(store::cluster).await?;
    let mut input = Input::open()?;
    print_line(&json!({ "ready": { "url": cluster.url() } }))?;
    while input.next().await?.is_some() {}
    Ok(())
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let mut input = Input::open()?;
    let store = Store::make(cli.store).await?;
    let served = match start(&cli, &store).await {
        Ok(replicas) => serve(&cli, &mut input, replicas).await,
        Err(error) => Err(error),
    };
    store.remove().await?;
    served
}

/// Starts the replicas, one after the other: the first migrates the schema.
async fn start(cli: &Cli, store: &Store) -> anyhow::Result<Arc<[Replica]>> {
    let mut replicas = Vec::new();
    for number in 0..cli.replicas {
        let socket = store.folder().join(format!("{number}.sock"));
        let has_clock = cli.store == Kind::Sqlite;
        replicas.push(Replica::start(store.url(), socket, &cli.server, has_clock).await?);
    }
    Ok(replicas.into())
}

/// Runs commands until standard input closes; then ends the replicas.
async fn serve(cli: &Cli, input: &mut Input, replicas: Arc<[Replica]>) -> anyhow::Result<()> {
    let addresses: Vec<_> = replicas.iter().map(|replica| replica.address().to_string()).collect();
    let store = cli.store.to_possible_value().map(|value| value.get_name().to_owned());
    print_line(&json!({ "ready": { "store": store, "replicas": addresses } }))?;
    let mut commands = JoinSet::new();
    let ended = loop {
        match input.next().await {
            Ok(Some(line)) => {
                let replicas = Arc::clone(&replicas);
                commands.spawn(async move { print_line(&command::answer(&line, &replicas).await) });
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error.into()),
        }
        while commands.try_join_next().is_some() {}
    };
    commands.shutdown().await;
    for replica in replicas.iter() {
        replica.end().await;
    }
    ended
}

fn print_line(line: &Value) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}

/// The lines of standard input, until it closes or a signal asks for the end.
struct Input {
    lines: Lines<BufReader<Stdin>>,
    signals: [tokio::signal::unix::Signal; 2],
}

impl Input {
    fn open() -> io::Result<Self> {
        let signals = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
        Ok(Self { lines: BufReader::new(stdin()).lines(), signals })
    }

    async fn next(&mut self) -> io::Result<Option<String>> {
        let [terminate, interrupt] = &mut self.signals;
        tokio::select! {
            line = self.lines.next_line() => line,
            _ = terminate.recv() => Ok(None),
            _ = interrupt.recv() => Ok(None),
        }
    }
}
