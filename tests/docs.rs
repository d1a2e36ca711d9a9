//! The documents stay short, and their links lead somewhere.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Documents that must stay short, and their most lines.
const SHORT: [(&str, usize); 2] = [("README.md", 200), ("docs/ARCHITECTURE.md", 100)];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Markdown file at or below `place`, except those of `tests` and of build folders.
fn collect(place: &Path, texts: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(place).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && !["target", "tests", "node_modules"].contains(&name) {
            if !name.starts_with('.') {
                collect(&path, texts);
            }
        } else if path.extension().is_some_and(|extension| extension == "md") {
            texts.insert(path.clone(), fs::read_to_string(&path).unwrap());
        }
    }
}

/// The anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// The text without its blocks of code.
fn prose(text: &str) -> String {
    let text = format!("\n{text}");
    text.split("\n```").step_by(2).collect::<Vec<_>>().join("\n")
}

#[test]
fn documents_stay_short() {
    for (name, most) in SHORT {
        let lines = fs::read_to_string(root().join(name)).unwrap().lines().count();
        assert!(lines <= most, "{name} has {lines} lines, and may have {most}");
    }
}

#[test]
fn links_lead_somewhere() {
    let mut texts = BTreeMap::new();
    collect(&root(), &mut texts);
    let mut broken = Vec::new();
    let mut followed = 0;
    for (from, text) in &texts {
        for link in prose(text).split("](").skip(1) {
            let link = link.split(')').next().unwrap();
            if link.contains("://") {
                continue;
            }
            let (path, wanted) = link.split_once('#').unwrap_or((link, ""));
            let to = if path.is_empty() { from.clone() } else { from.parent().unwrap().join(path) };
            let to = to.canonicalize();
            let leads = to.is_ok_and(|to| {
                wanted.is_empty()
                    || prose(&texts[&to])
                        .lines()
                        .filter_map(|line| line.strip_prefix('#'))
                        .any(|heading| anchor(heading.trim_start_matches('#')) == wanted)
            });
            followed += 1;
            if !leads {
                broken.push(format!("{}: {link}", from.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(followed > 50, "only {followed} links were found");
}
