//! The lines of an input: Slack deliveries, and the events that they name.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader, Read as _},
    iter,
    path::Path,
};

use anyhow::Context as _;
use tokio::sync::mpsc;

use crate::{
    cli::client::{Consumer, event},
    domain::Id,
    grpc::pb::{EventKey, event_key},
    platform,
};

/// The longest line that is read as a delivery, its end not counted.
const MAX_LINE_BYTES: usize = 4 * 1024 * 1024;

/// What some editors write at the start of UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// One line of the input, counted from 1, and what it says.
pub(super) struct Line {
    pub(super) number: u64,
    pub(super) key: Result<EventKey, String>,
}

/// Reads the deliveries, passing over empty lines.
pub(super) fn read(path: &Path, given: &Given, lines: &mpsc::Sender<Line>) -> anyhow::Result<()> {
    let unreadable = || format!("cannot read {}", path.display());
    let mut input: Box<dyn BufRead> = if path.as_os_str() == "-" {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(path).with_context(unreadable)?))
    };
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let most = MAX_LINE_BYTES as u64 + 1;
        let read = input.by_ref().take(most).read_until(b'\n', &mut line);
        if read.with_context(unreadable)? == 0 {
            break;
        }
        line.pop_if(|last| *last == b'\n');
        // Before a byte order mark is taken off: the rest of a longer line is still to come.
        let is_too_long = line.len() > MAX_LINE_BYTES;
        if number == 1 {
            anyhow::ensure!(
                !is_utf16(&line),
                "cannot read {}: it is UTF-16; convert it to UTF-8, as with iconv -f UTF-16 -t UTF-8",
                path.display()
            );
            if line.starts_with(BYTE_ORDER_MARK) {
                line.drain(..BYTE_ORDER_MARK.len());
            }
        }
        let key = if is_too_long {
            input.skip_until(b'\n').with_context(unreadable)?;
            Err(format!("longer than {MAX_LINE_BYTES} bytes"))
        } else if line.trim_ascii().is_empty() {
            continue;
        } else {
            given.key(&line)
        };
        if lines.blocking_send(Line { number, key }).is_err() {
            break;
        }
    }
    Ok(())
}

/// Whether a text begins as one in UTF-16 does: with its byte order mark, or with a brace.
fn is_utf16(text: &[u8]) -> bool {
    [b"\xff\xfe", b"\xfe\xff", b"{\0", b"\0{"].iter().any(|start| text.starts_with(*start))
}

/// What the flags say of every Slack delivery.
pub(super) struct Given {
    /// The tenant of those that name none.
    pub(super) team: String,
    pub(super) consumer: Consumer,
    pub(super) each_use: bool,
}

impl Given {
    /// The event that a Slack delivery names.
    fn key(&self, line: &[u8]) -> Result<EventKey, String> {
        let named =
            platform::slack::read(line, self.each_use).map_err(|error| error.to_string())?;
        let mut event_names = named.names.into_iter().map(Id::into_string);
        let event_id = event_names.next().ok_or("names no event to be handled once")?;
        let team = named.team.map_or_else(|| self.team.clone(), Id::into_string);
        if team.is_empty() {
            return Err("names no team: give one with --slack".to_owned());
        }
        let key = event(team, event_id, &self.consumer);
        Ok(EventKey { aliases: event_names.collect(), ..key })
    }
}

/// How many of `lines` one request may hold. Of two events with a name in common the earlier
/// line is to be the first, and a request does not say in which order its items are taken.
pub(super) fn independent(lines: &[Line]) -> usize {
    let mut events = HashMap::new();
    for (at, line) in lines.iter().enumerate() {
        let Ok(EventKey { team_id, key: Some(event_key::Key::EventId(event)), aliases, .. }) =
            &line.key
        else {
            continue;
        };
        for name in iter::once(event).chain(aliases) {
            if *events.entry((team_id, name)).or_insert(event) != event {
                return at;
            }
        }
    }
    lines.len()
}
