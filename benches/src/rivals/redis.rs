//! Redis over one connection that all callers share: each has one command under
//! way, and those that are ready are sent together. One blocking thread, one
//! write and one read for as many as are ready:
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>.

use std::{
    collections::VecDeque,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Instant,
};

use anyhow::{Context as _, bail, ensure};

use super::{Spec, Window};
use crate::load::keys::Keys;
use crate::load::{Report, Tally};

/// Deletes a lock if it is still the caller's:
/// <https://redis.io/docs/latest/commands/set/#patterns>.
const GIVE_BACK: &str = "if redis.call('get', KEYS[1]) == ARGV[1] then \
                         return redis.call('del', KEYS[1]) else return 0 end";

/// An event's time to live, in seconds: 24 hours.
const EVENT_TTL: &str = "86400";
/// A lock's, in milliseconds.
const LOCK_TTL: &str = "30000";

/// What the callers do.
trait Script {
    /// Writes the next command of `caller`.
    fn ask(&mut self, caller: usize, output: &mut Vec<u8>);

    /// Reads the reply to it.
    fn hear(&mut self, caller: usize, reply: &Reply<'_>) -> Step;
}

#[derive(Clone, Copy, PartialEq)]
enum Step {
    Done,
    More,
    Wrong,
}

pub(super) fn claims(spec: &Spec) -> anyhow::Result<Report> {
    let keys = Keys::new(spec.seed, 0);
    drive(spec, Claims { keys, id: String::new(), key: String::new() })
}

pub(super) fn locks(spec: &Spec) -> anyhow::Result<Report> {
    let keys = Keys::new(spec.seed, 0);
    let names = (0..spec.callers).map(|caller| format!("lock:{}", keys.session(caller))).collect();
    drive(spec, Locks { names, held: vec![None; spec.callers], count: 0 })
}

fn drive(spec: &Spec, mut script: impl Script) -> anyhow::Result<Report> {
    ensure!(spec.connections == 1, "the callers of Redis share one connection");
    let mut connection = Connection::open(&spec.target)?;
    let window = Window::of(spec);
    let cpu = window.cpu();
    let mut tally = window.tally();
    // When what each caller does at present began: its command, or its cycle.
    let mut begun = vec![Instant::now(); spec.callers];
    // Replies come in the order of the commands.
    let mut under_way: VecDeque<usize> = (0..spec.callers).collect();
    for caller in 0..spec.callers {
        script.ask(caller, &mut connection.output);
    }
    while !tally.over(Instant::now()) {
        connection.exchange()?;
        let now = Instant::now();
        connection.take(|reply, output| {
            let caller = under_way.pop_front().context("a reply to no command")?;
            let step = script.hear(caller, &reply);
            match step {
                Step::Done => tally.done(begun[caller], now, 1),
                Step::More => {}
                Step::Wrong if reply.is_error() => tally.failed(begun[caller], now),
                Step::Wrong => tally.wrong(),
            }
            if step != Step::More {
                begun[caller] = now;
            }
            script.ask(caller, output);
            under_way.push_back(caller);
            Ok(())
        })?;
    }
    let cpu = cpu.join().ok().context("the CPU's watch panicked")??;
    Ok(Tally::report(vec![tally], cpu))
}

struct Claims {
    keys: Keys,
    id: String,
    key: String,
}

impl Script for Claims {
    fn ask(&mut self, _: usize, output: &mut Vec<u8>) {
        self.keys.rising(&mut self.id);
        self.key.clear();
        self.key.extend([self.keys.team(), ":", &self.id]);
        command(output, &["SET", &self.key, "1", "NX", "EX", EVENT_TTL]);
    }

    fn hear(&mut self, _: usize, reply: &Reply<'_>) -> Step {
        if *reply == Reply::Ok { Step::Done } else { Step::Wrong }
    }
}

struct Locks {
    names: Vec<String>,
    /// The token under which each caller holds its lock.
    held: Vec<Option<String>>,
    count: u64,
}

impl Script for Locks {
    fn ask(&mut self, caller: usize, output: &mut Vec<u8>) {
        let name = &self.names[caller];
        if let Some(token) = &self.held[caller] {
            command(output, &["EVAL", GIVE_BACK, "1", name, token]);
            return;
        }
        self.count += 1;
        let token = format!("{:032x}", self.count);
        command(output, &["SET", name, &token, "NX", "PX", LOCK_TTL]);
        self.held[caller] = Some(token);
    }

    fn hear(&mut self, caller: usize, reply: &Reply<'_>) -> Step {
        match reply {
            Reply::Ok => Step::More,
            Reply::Integer(1) => {
                self.held[caller] = None;
                Step::Done
            }
            _ => {
                self.held[caller] = None;
                Step::Wrong
            }
        }
    }
}

fn command(output: &mut Vec<u8>, words: &[&str]) {
    // Writing to a Vec cannot fail.
    let _ = write!(output, "*{}\r\n", words.len());
    for word in words {
        let _ = write!(output, "${}\r\n{word}\r\n", word.len());
    }
}

struct Connection {
    socket: TcpStream,
    input: Vec<u8>,
    filled: usize,
    output: Vec<u8>,
}

impl Connection {
    fn open(target: &str) -> anyhow::Result<Self> {
        let socket = TcpStream::connect(target).with_context(|| format!("connect to {target}"))?;
        socket.set_nodelay(true)?;
        Ok(Self { socket, input: vec![0; 64 * 1024], filled: 0, output: Vec::new() })
    }

    /// Sends what is to be sent, and waits for something to come.
    fn exchange(&mut self) -> anyhow::Result<()> {
        self.socket.write_all(&self.output)?;
        self.output.clear();
        match self.socket.read(&mut self.input[self.filled..])? {
            0 => bail!("Redis closed the connection"),
            count => self.filled += count,
        }
        Ok(())
    }

    /// Tells `heard` of every reply that is there whole, with where to write
    /// what it makes the caller ask next.
    fn take(
        &mut self,
        mut heard: impl FnMut(Reply<'_>, &mut Vec<u8>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut rest = &self.input[..self.filled];
        while let Some((reply, after)) = Reply::split(rest)? {
            heard(reply, &mut self.output)?;
            rest = after;
        }
        let kept = rest.len();
        self.input.copy_within(self.filled - kept..self.filled, 0);
        self.filled = kept;
        Ok(())
    }
}

/// The replies that these commands have.
#[derive(Debug, PartialEq)]
enum Reply<'a> {
    Ok,
    /// Not set, for there is one.
    Null,
    Integer(i64),
    Error(&'a str),
}

impl<'a> Reply<'a> {
    /// The first reply in `bytes`, once it is there whole, and what follows.
    fn split(bytes: &'a [u8]) -> anyhow::Result<Option<(Self, &'a [u8])>> {
        let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        let (line, rest) = bytes.split_at(end + 1);
        let line = str::from_utf8(line)?.trim_end();
        let reply = match line.split_at_checked(1) {
            Some(("+", "OK")) => Self::Ok,
            Some(("$", "-1")) => Self::Null,
            Some((":", number)) => Self::Integer(number.parse()?),
            Some(("-", text)) => Self::Error(text),
            _ => bail!("an odd reply: {line:?}"),
        };
        Ok(Some((reply, rest)))
    }

    /// Whether the command failed.
    fn is_error(&self) -> bool {
        matches!(self, Self::Error(_))
    }
}
