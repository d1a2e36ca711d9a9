//! User-facing text is plain technical English: none of it has a phrase of the word list.

use clap::CommandFactory as _;
use oncegate::cli::Cli;
use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::harness::files;

/// Phrases that user-facing text must not have, and what to write instead. Case and line breaks
/// do not matter; a phrase does not reach over punctuation.
const WORDS: &[(&str, &str)] = &[
    ("tell", "report, return, distinguish"),
    ("tells", "reports, returns, shows"),
    ("telling", "reporting"),
    ("told", "reported, returned, notified"),
    ("retold", "repeated"),
    ("whoever", "a caller that"),
    ("whomever", "a caller that"),
    ("who asks", "the caller"),
    ("those who", "callers that"),
    ("those that wait", "waiters"),
    ("what it is that", "what"),
    ("somebody", "another caller"),
    ("nobody", "no caller"),
    ("everybody", "all callers"),
    ("should there be", "if there is"),
    ("should it", "if it"),
    ("should they", "if they"),
    ("were there", "if there were"),
    ("were it", "if it were"),
    ("so-many-th", "the attempt number"),
    ("the very moment", "concurrently"),
    ("of its own accord", "on its own"),
    ("by hand", "manually"),
    ("put right", "repair"),
    ("puts right", "repairs"),
    ("put them right", "repair them"),
    ("looks after", "manages"),
    ("look after", "manage"),
    ("looked after", "managed"),
    ("is had", "is acquired"),
    ("are had", "are acquired"),
    ("can be had", "is available"),
    ("cannot be had", "is not available"),
    ("could be had", "was available"),
    ("could not be had", "was not available"),
    ("to be had", "available"),
    ("let run on", "renewed"),
    ("lets run on", "renews"),
    ("lease run on", "renew a lease"),
    ("goes on", "continues, stays valid"),
    ("go on", "continue"),
    ("gone on", "continued"),
    ("is away", "is unavailable"),
    ("are away", "are unavailable"),
    ("was away", "was unavailable"),
    ("went away", "disconnected"),
    ("goes away", "disconnects"),
    ("gone away", "disconnected"),
    ("is gone", "has ended, no longer exists"),
    ("are gone", "have ended, no longer exist"),
    ("was gone", "had ended, no longer existed"),
    ("is there", "exists, is running"),
    ("are there", "exist, are running"),
    ("what there is", "what exists"),
    ("give back", "release"),
    ("gives back", "releases"),
    ("gave back", "released"),
    ("given back", "released"),
    ("giving back", "releasing"),
    ("gives it back", "releases it"),
    ("give it back", "release it"),
    ("give a lease back", "release a lease"),
    ("gives the lease back", "releases the lease"),
    ("give the lease back", "release the lease"),
    ("cannot say", "does not know, failed to"),
    ("goes without saying", "is implied"),
    ("for ever", "indefinitely"),
    ("however often", "regardless of how often"),
    ("comes again", "is redelivered, retries"),
    ("come again", "be redelivered, retry"),
    ("in good order", "cleanly"),
    ("so long as", "while"),
    ("at night", "on call"),
    ("is spoken", "is supported"),
];

/// A phrase that is right in its place: the source, a part of what is reported, and the reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

/// A text that users read, and where it is from.
struct Text {
    source: String,
    text: String,
}

impl Text {
    fn new(source: &str, text: impl Into<String>) -> Self {
        Self { source: source.to_owned(), text: text.into() }
    }
}

/// The words of a text in lower case, with an empty one in place of punctuation.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for letter in text.chars().chain([' ']) {
        let last = words.last_mut().expect("there is always one");
        match letter {
            '’' => last.push('\''),
            '\'' | '-' if !last.is_empty() => last.push(letter),
            _ if letter.is_alphanumeric() || letter == '_' => last.extend(letter.to_lowercase()),
            // A quotation mark or an emphasis does not end a phrase.
            _ if letter.is_whitespace() || matches!(letter, '*' | '"' | '\'') => {
                if !last.is_empty() {
                    words.push(String::new());
                }
            }
            _ => words.extend([String::new(), String::new()]),
        }
    }
    for word in &mut words {
        word.truncate(word.trim_end_matches(['\'', '-']).len());
    }
    words
}

/// The phrases of the word list that `text` has, each with the words around it.
fn hits(text: &str) -> Vec<String> {
    let words = words(text);
    let mut found = Vec::new();
    for (phrase, instead) in WORDS {
        let phrase: Vec<_> = phrase.split(' ').collect();
        for at in 0..words.len() {
            if words[at..].iter().zip(&phrase).filter(|(word, part)| word == part).count()
                == phrase.len()
            {
                let around = at.saturating_sub(6)..words.len().min(at + phrase.len() + 6);
                let around: Vec<_> = words[around].iter().filter(|word| !word.is_empty()).collect();
                let around: Vec<_> = around.into_iter().map(String::as_str).collect();
                let phrase = phrase.join(" ");
                found.push(format!("{phrase:?} in {:?}: write {instead}", around.join(" ")));
            }
        }
    }
    found
}

/// What stands between two paragraphs, literals or comments: no phrase reaches over it.
const BREAK: &str = "\n.\n";

/// The text without what is code: between backquotes, or a placeholder in braces.
fn prose(text: &str) -> String {
    let mut prose = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['`', '{']) {
        let close = if rest[at..].starts_with('`') { '`' } else { '}' };
        prose.push_str(&rest[..at]);
        prose.push_str(", ");
        rest = &rest[at + 1..];
        let paragraph = rest.find(BREAK).map_or(rest, |end| &rest[..end]);
        if let Some(end) = paragraph.find(close) {
            rest = &rest[end + 1..];
        }
    }
    prose + rest
}

/// The comments of a `.proto` file, those of several lines joined.
fn comments(proto: &str) -> String {
    let lines = proto.lines().map(|line| match line.split_once("//") {
        Some((_, comment)) => comment,
        None => ".",
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A Markdown text without its blocks of code.
fn paragraphs(markdown: &str) -> String {
    let markdown = format!("\n{markdown}");
    let blocks = markdown.split("\n```").step_by(2);
    blocks.map(|block| block.replace("\n\n", BREAK)).collect::<Vec<_>>().join(BREAK)
}

/// The string literals of a source text, outside `#[cfg(test)]` and without doc comments.
fn literals(source: &str) -> String {
    fn is_attribute(tree: Option<&TokenTree>, start: &str) -> bool {
        let text = match tree {
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Bracket => {
                group.stream().to_string().replace(' ', "")
            }
            _ => return false,
        };
        text.starts_with(start)
    }
    fn ends_item(tree: &TokenTree) -> bool {
        match tree {
            TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
            TokenTree::Punct(mark) => mark.as_char() == ';',
            _ => false,
        }
    }
    fn collect(stream: TokenStream, found: &mut Vec<String>) {
        let mut trees = stream.into_iter().peekable();
        while let Some(tree) = trees.next() {
            match tree {
                TokenTree::Punct(mark) if mark.as_char() == '#' => {
                    trees.next_if(|tree| matches!(tree, TokenTree::Punct(_)));
                    if is_attribute(trees.peek(), "doc=") {
                        trees.next();
                    } else if is_attribute(trees.peek(), "cfg(test)") {
                        trees.find(ends_item);
                    }
                }
                TokenTree::Group(group) => collect(group.stream(), found),
                TokenTree::Literal(literal) => {
                    // Without a space it is a name.
                    let text = unescape(&literal.to_string());
                    found.extend(text.filter(|text| text.contains(char::is_whitespace)));
                }
                TokenTree::Ident(_) | TokenTree::Punct(_) => {}
            }
        }
    }
    let mut found = Vec::new();
    collect(source.parse().expect("source text"), &mut found);
    found.join(BREAK)
}

/// What a string literal stands for, as far as its words go; none for other literals.
fn unescape(literal: &str) -> Option<String> {
    let (prefix, text) = literal.split_once('"')?;
    let text = text.trim_end_matches('#').strip_suffix('"')?;
    if prefix.contains('r') {
        return Some(text.to_owned());
    }
    let mut letters = text.chars().peekable();
    let mut plain = String::new();
    while let Some(letter) = letters.next() {
        match (letter, letters.peek()) {
            ('\\', Some('\n')) => while letters.next_if(|next| next.is_whitespace()).is_some() {},
            ('\\', Some('n' | 't' | 'r')) => {
                letters.next();
                plain.push('\n');
            }
            ('\\', _) => plain.extend(letters.next()),
            _ => plain.push(letter),
        }
    }
    Some(plain)
}

/// The `--help` of a command and of all below it.
fn helps(command: &mut clap::Command, name: &str, found: &mut Vec<Text>) {
    found.push(Text::new(&format!("{name} --help"), command.render_long_help().to_string()));
    for below in command.get_subcommands_mut() {
        let name = format!("{name} {}", below.get_name());
        helps(below, &name, found);
    }
}

/// All that users read.
fn user_facing() -> Vec<Text> {
    let mut found = Vec::new();
    helps(&mut Cli::command(), "oncegate", &mut found);
    for (place, extension, read) in [
        ("proto", "proto", comments as fn(&str) -> String),
        ("README.md", "md", paragraphs),
        ("CHANGELOG.md", "md", paragraphs),
        ("CONTRIBUTING.md", "md", paragraphs),
        ("docs", "md", paragraphs),
        ("src", "rs", literals),
        ("build.rs", "rs", literals),
    ] {
        let texts = files::texts(place, extension).into_iter();
        // Unit tests, which are no part of the program.
        let is_test = |name: &str| name.ends_with("/tests.rs") || name.contains("/tests/");
        let texts = texts.filter(|(name, _)| !is_test(name));
        found.extend(texts.map(|(name, text)| Text::new(&name, read(&text))));
    }
    found
}

#[test]
fn user_facing_text_is_plain() {
    let mut used = vec![false; EXCEPTIONS.len()];
    let mut found = Vec::new();
    for Text { source, text } in user_facing() {
        for hit in hits(&prose(&text)) {
            let excused = EXCEPTIONS
                .iter()
                .position(|(place, part, _)| *place == source && hit.contains(part));
            match excused {
                Some(at) => used[at] = true,
                None => found.push(format!("{source}: {hit}")),
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
    for ((source, part, reason), used) in EXCEPTIONS.iter().zip(used) {
        assert!(used && !reason.is_empty(), "no exception is needed: {source}: {part:?}");
    }
}

#[test]
fn a_phrase_is_found_in_every_kind_of_text() {
    for (read, text) in [
        (comments as fn(&str) -> String, "message M {\n  // A lease that is let\n  // run on.\n}"),
        (comments, "  string holder = 1; // Whoever holds it."),
        (paragraphs, "# Title\n\n- the caller is *told*\n"),
        (paragraphs, "```sh\nrun\n```\n\nShould there\nbe room"),
        (literals, "fn f() { warn!(%error, \"the caller is \\\n    told\"); }"),
        (literals, "#[error(\"the lease was given\\nback\")] struct E;"),
        (literals, "const A: &str = r#\"Nobody has a \"lease\"\"#;"),
        (literals, "#[cfg(test)] mod tests { const A: u8 = 1; } const B: &str = \"by hand\";"),
        (literals, "#[cfg(test)] mod tests; const B: &str = \"the so-many-th\";"),
        (literals, "const A: [&str; 2] = [\"open { and `\", \"once told ` or }\"];"),
        (str::to_owned, "in the very moment, and later"),
    ] {
        assert!(!hits(&prose(&read(text))).is_empty(), "{text}");
    }
    let help = Cli::command().about("Tell what is on record");
    let mut found = Vec::new();
    helps(&mut clap::Command::new("oncegate").subcommand(help), "oncegate", &mut found);
    let found: Vec<_> = found.iter().map(|text| hits(&text.text).len()).collect();
    assert_eq!(found[..2], [1, 1], "in the list of commands, and of its own");
}

#[test]
fn code_and_plain_text_are_no_hits() {
    for (read, text) in [
        (
            comments as fn(&str) -> String,
            "message Told {\n  string told = 1; // `told`, and retold_at\n}",
        ),
        (paragraphs, "The `tell` flag.\n\n```\nnobody\n```\n\nGo to the next. On Monday: run"),
        (literals, "/// Told to whoever asks.\nfn told() { print!(\"{told} {} {}\", b'\"'); }"),
        (literals, "#[cfg(test)] mod tests { const A: &str = \"told\"; }"),
        (
            literals,
            "#[cfg(test)]\n#[derive(Debug)] struct A { a: B } const B: &str = \"a client\";",
        ),
    ] {
        assert_eq!(hits(&prose(&read(text))), Vec::<String>::new(), "{text}");
    }
}
