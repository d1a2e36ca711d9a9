//! Runs the inputs of one target, in blocks, and finds the input that a fault is of.

use std::{
    fmt, io, mem, panic,
    panic::AssertUnwindSafe,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use futures_util::{FutureExt as _, StreamExt as _, stream};

use xxhash_rust::xxh3::Xxh3Default;

use crate::{ALLOCATED, chance::Chance, data, target::Target};

/// How many inputs are given at once, and how many of them are under way.
const BLOCK: u64 = 256;
const UNDER_WAY: usize = 32;
/// After how many inputs everything is ended and begun again.
const LIFE: u64 = 16_384;
/// How much more may be allocated after a life than after the first, in bytes.
const LEFT_OVER: usize = 2 << 20;

/// What panics said that nobody has asked for yet.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Notes panics of every thread.
pub fn watch_panics() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        print(info);
        PANICS.lock().unwrap_or_else(PoisonError::into_inner).push(info.to_string());
    }));
}

/// Formats what is logged, and drops it: what cannot be formatted panics.
pub fn log_to_nowhere() {
    let filter = "info,oncegate=debug";
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::sink).init();
}

fn panics() -> Vec<String> {
    mem::take(&mut PANICS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// An input that broke a guarantee.
pub struct Failure {
    what: String,
    repeat: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let command = "cargo run --release --locked --example fuzz --";
        write!(f, "{}\nRepeat it with the same code:\n{command} {}", self.what, self.repeat)
    }
}

/// The run of one target.
pub struct Run<'a> {
    target: &'a mut dyn Target,
    seed: u64,
    /// What was allocated after the first life.
    left: Option<usize>,
    /// The most that a block allocated.
    peak: usize,
    /// Of all inputs: runs with equal inputs have the same.
    digest: Xxh3Default,
}

impl<'a> Run<'a> {
    pub fn new(target: &'a mut dyn Target, seed: u64) -> Self {
        Self { target, seed, left: None, peak: 0, digest: Xxh3Default::new() }
    }

    pub fn share(&self) -> u64 {
        self.target.share().max(1)
    }

    /// Runs one input, from a file.
    pub async fn file(&mut self, path: &Path, input: Vec<u8>) -> Result<(), Failure> {
        self.target.start().await;
        let fault = self.fault(&input).await;
        self.target.stop().await;
        let repeat = format!("--target {} --file {}", self.target.name(), path.display());
        fault.map_or(Ok(()), |what| Err(Failure { what, repeat }))
    }

    /// Runs the inputs that once failed.
    pub async fn kept(&mut self) -> Result<(), Failure> {
        for (path, input) in data::kept(self.target.name()) {
            self.file(&path, input).await?;
        }
        Ok(())
    }

    /// Runs `count` inputs, from this one on.
    pub async fn inputs(&mut self, from: u64, count: u64) -> Result<(), Failure> {
        let begun = Instant::now();
        let end = from + count;
        let mut at = from;
        while at < end {
            let life = end.min(at + LIFE);
            self.target.start().await;
            while at < life {
                let next = life.min(at + BLOCK);
                self.block(at, next).await?;
                at = next;
            }
            self.target.stop().await;
            self.left_over(at)?;
        }
        println!(
            "{}: {count} inputs (digest {:016x}), at most {} KiB by {BLOCK} of them, {:.1} s",
            self.target.name(),
            self.digest.digest(),
            self.peak >> 10,
            begun.elapsed().as_secs_f64(),
        );
        Ok(())
    }

    async fn block(&mut self, from: u64, end: u64) -> Result<(), Failure> {
        let name = self.target.name();
        let inputs: Vec<Vec<u8>> = (from..end)
            .map(|number| self.target.input(&mut Chance::of(self.seed, name, number)))
            .collect();
        for input in &inputs {
            self.digest.update(input);
        }
        let before = reset();
        let target = &*self.target;
        let results: Vec<Result<(), String>> = stream::iter(&inputs)
            .map(|input| guarded(target, input))
            .buffered(UNDER_WAY)
            .collect()
            .await;
        let peak = ALLOCATED.peak_usage().saturating_sub(before);
        self.peak = self.peak.max(peak);
        if let Some(index) = results.iter().position(Result::is_err) {
            let what = results.into_iter().nth(index).and_then(Result::err).unwrap_or_default();
            return Err(self.failure(&what, &inputs[index]));
        }
        let panics = panics();
        if panics.is_empty() && peak <= self.target.bound() {
            return Ok(());
        }
        for input in &inputs {
            if let Some(what) = self.fault(input).await {
                return Err(self.failure(&what, input));
            }
        }
        // Many inputs at once may need more than one of them.
        if panics.is_empty() {
            return Ok(());
        }
        let repeat =
            format!("--target {name} --seed {} --skip {from} --inputs {}", self.seed, end - from);
        Err(Failure { what: format!("{name}: {}", panics.join("; ")), repeat })
    }

    /// What is wrong with one input, which is given alone.
    async fn fault(&self, input: &[u8]) -> Option<String> {
        let before = reset();
        let result = guarded(&*self.target, input).await;
        let peak = ALLOCATED.peak_usage().saturating_sub(before);
        let panics = panics();
        if !panics.is_empty() {
            return Some(panics.join("; "));
        }
        if peak > self.target.bound() {
            return Some(format!("{peak} bytes were allocated"));
        }
        result.err()
    }

    fn failure(&self, what: &str, input: &[u8]) -> Failure {
        let name = self.target.name();
        let path = data::save(name, input);
        Failure {
            what: format!("{name}: {what}\n{}", shown(input)),
            repeat: format!("--target {name} --file {}", path.display()),
        }
    }

    /// Compares what is allocated between two lives.
    fn left_over(&mut self, at: u64) -> Result<(), Failure> {
        let now = ALLOCATED.current_usage();
        let first = *self.left.get_or_insert(now);
        if now <= first + LEFT_OVER {
            return Ok(());
        }
        let name = self.target.name();
        Err(Failure {
            what: format!("{name}: {first} bytes after the first life, {now} after input {at}"),
            repeat: format!("--target {name} --seed {} --inputs {at}", self.seed),
        })
    }
}

/// What is allocated, as the new peak.
fn reset() -> usize {
    ALLOCATED.reset_peak_usage();
    ALLOCATED.current_usage()
}

async fn guarded(target: &dyn Target, input: &[u8]) -> Result<(), String> {
    let taken = AssertUnwindSafe(target.take(input)).catch_unwind().await;
    taken.unwrap_or_else(|_| Err("a panic".to_owned()))
}

/// The beginning of an input, escaped.
fn shown(input: &[u8]) -> String {
    let end = input.len().min(600);
    let more = if end < input.len() { "…" } else { "" };
    format!("{} bytes: {}{more}", input.len(), input[..end].escape_ascii())
}
