//! A bot's process, as the workspace has it.

use std::{env, process::Stdio};

use anyhow::Context as _;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::mpsc::{self, Receiver, Sender},
};

use crate::{
    bot,
    wire::{FromBot, ToBot},
};

/// The most that a bot has not read yet: more than it is ever told at once.
const UNREAD: usize = 65_536;

/// What a process tells: which bot's, and of which of its lives. None once it has ended.
pub type Word = (usize, u32, Option<FromBot>);

/// One of the bots, through all its lives.
pub struct Bot {
    number: usize,
    database_url: String,
    words: Sender<Word>,
    pub life: u32,
    /// Whether it serves.
    pub is_ready: bool,
    /// Whether it has yet to tell that it knows the time.
    pub is_ticking: bool,
    child: Child,
    lines: Sender<ToBot>,
}

impl Bot {
    pub fn start(number: usize, database_url: &str, words: Sender<Word>) -> anyhow::Result<Self> {
        let (child, lines) = spawn(number, 0, database_url, &words)?;
        let database_url = database_url.to_owned();
        let (is_ready, is_ticking) = (false, false);
        Ok(Self { number, database_url, words, life: 0, is_ready, is_ticking, child, lines })
    }

    pub fn tell(&self, line: ToBot) -> anyhow::Result<()> {
        self.lines.try_send(line).context("a bot does not listen")
    }

    /// Ends it at once, by SIGKILL, and starts it anew.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().await?;
        self.life += 1;
        (self.is_ready, self.is_ticking) = (false, false);
        (self.child, self.lines) = spawn(self.number, self.life, &self.database_url, &self.words)?;
        Ok(())
    }
}

fn spawn(
    number: usize,
    life: u32,
    database_url: &str,
    words: &Sender<Word>,
) -> anyhow::Result<(Child, Sender<ToBot>)> {
    // It also ends with its standard input, so that it outlives nobody.
    let mut child = Command::new(env::current_exe()?)
        .args(["bot", &format!("bot-{number}"), "--database-url", database_url])
        .args(bot::FLAGS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdin = child.stdin.take().context("no standard input")?;
    let stdout = child.stdout.take().context("no standard output")?;
    let (lines, unread) = mpsc::channel(UNREAD);
    tokio::spawn(write(stdin, unread));
    tokio::spawn(read(stdout, number, life, words.clone()));
    Ok((child, lines))
}

async fn write(mut stdin: ChildStdin, mut lines: Receiver<ToBot>) -> anyhow::Result<()> {
    while let Some(line) = lines.recv().await {
        stdin.write_all(format!("{}\n", serde_json::to_string(&line)?).as_bytes()).await?;
    }
    Ok(())
}

async fn read(stdout: ChildStdout, number: usize, life: u32, words: Sender<Word>) {
    let mut lines = BufReader::new(stdout).lines();
    // The last line of a bot that is killed may be cut short.
    while let Ok(Some(line)) = lines.next_line().await
        && let Ok(word) = serde_json::from_str(&line)
    {
        let _ = words.send((number, life, Some(word))).await;
    }
    let _ = words.send((number, life, None)).await;
}
