//! Deliveries of platforms: what they name.

use futures_util::{FutureExt as _, future::BoxFuture};
use oncegate::{
    domain::{SessionScope, limits::MAX_ID_BYTES},
    platform::{self, Headers, Named, Platform, Unreadable},
};
use serde_json::Value;

use crate::{chance::Chance, data, json, mutate::mutate, target::Target};

/// An input is a text: the platform and `each` for each use, on a line; the headers, each on a
/// line; an empty line; the body.
pub struct Platforms {
    corpus: Vec<Vec<u8>>,
}

impl Platforms {
    pub fn new() -> Self {
        let mut corpus = Vec::new();
        for platform in Platform::ALL {
            let file = format!("platforms/{}.json", platform.name().replace('-', "_"));
            let cases: Vec<Value> = serde_json::from_str(&data::text(&file)).expect("cases");
            corpus.extend(cases.iter().map(|case| written(platform, case)));
        }
        for line in data::text("slack_deliveries.jsonl").lines().step_by(16) {
            corpus.push(format!("slack\n\n{line}").into_bytes());
        }
        Self { corpus }
    }

    /// The bodies alone.
    pub fn bodies(&self) -> impl Iterator<Item = &[u8]> {
        self.corpus.iter().map(|input| {
            let (_, body) = split(input);
            body
        })
    }
}

fn written(platform: Platform, case: &Value) -> Vec<u8> {
    let mut text = platform.name().to_owned();
    text.push_str(if case["each_use"] == true { " each\n" } else { "\n" });
    for (name, value) in case["headers"].as_object().into_iter().flatten() {
        text.extend([name, ": ", value.as_str().unwrap_or_default(), "\n"]);
    }
    text.push('\n');
    match &case["text"] {
        Value::String(body) => text.push_str(body),
        _ => text.push_str(&case["body"].to_string()),
    }
    text.into_bytes()
}

/// The head and the body.
fn split(input: &[u8]) -> (&[u8], &[u8]) {
    let end = input.windows(2).position(|two| two == b"\n\n").unwrap_or(input.len());
    (&input[..end], input.get(end + 2..).unwrap_or_default())
}

fn read(input: &[u8]) -> Option<(Platform, Result<Named, Unreadable>)> {
    let (head, body) = split(input);
    let head = String::from_utf8_lossy(head);
    let mut lines = head.split('\n');
    let mut words = lines.next()?.split(' ');
    let name = words.next()?;
    let platform = Platform::ALL.into_iter().find(|platform| platform.name() == name)?;
    let headers = lines.filter_map(|line| line.split_once(": "));
    let named = Headers::new(headers)
        .and_then(|headers| platform::read(platform, &headers, body, words.next().is_some()));
    Some((platform, named))
}

fn check(input: &[u8]) -> Result<(), String> {
    let Some((_, named)) = read(input) else { return Ok(()) };
    if read(input).map(|(_, again)| again) != Some(named.clone()) {
        return Err("read again, it names something else".to_owned());
    }
    match named {
        Ok(named) => {
            let ids = named.names.iter().chain(&named.team);
            for id in ids.map(oncegate::domain::Id::as_str) {
                if id.is_empty() || id.len() > MAX_ID_BYTES || id.contains(char::is_control) {
                    return Err(format!("not an id: {id:?}"));
                }
            }
            if named.names.len() > 9 {
                return Err(format!("{} names", named.names.len()));
            }
            for scope in [SessionScope::Thread, SessionScope::Channel, SessionScope::User] {
                let _ = named.conversations.of(scope);
            }
            Ok(())
        }
        Err(error) if error.to_string().len() > 400 => Err(format!("a long error: {error}")),
        Err(_) => Ok(()),
    }
}

impl Target for Platforms {
    fn name(&self) -> &'static str {
        "platform"
    }

    fn share(&self) -> u64 {
        35
    }

    fn input(&self, chance: &mut Chance) -> Vec<u8> {
        let mut input = chance.pick(&self.corpus).clone();
        let (head, body) = split(&input);
        if let Ok(mut value) = serde_json::from_slice::<Value>(body)
            && !chance.one_in(3)
        {
            for _ in 0..chance.between(1, 3) {
                json::mutate(chance, &mut value);
            }
            let platform = if chance.one_in(8) {
                chance.pick(&Platform::ALL).name().as_bytes().to_vec()
            } else {
                head.to_vec()
            };
            let mut mutated = [&platform[..], b"\n\n"].concat();
            let is_form = chance.one_in(6);
            if is_form {
                mutated.extend_from_slice(b"payload=");
            }
            mutated.extend_from_slice(value.to_string().as_bytes());
            input = mutated;
        }
        if chance.one_in(2) {
            mutate(chance, &mut input, &self.corpus);
        }
        input
    }

    fn take<'a>(&'a self, input: &'a [u8]) -> BoxFuture<'a, Result<(), String>> {
        async move { check(input) }.boxed()
    }
}
