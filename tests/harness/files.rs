//! The project's own files, for tests that read them.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The text of each file at or below `place` whose name ends with `extension`, with its path.
/// Both paths are relative to the project's root.
pub fn texts(place: &str, extension: &str) -> Vec<(String, String)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    collect(&root.join(place), &root, extension, &mut found);
    assert!(!found.is_empty(), "no *.{extension} at {place}");
    found.sort();
    found
}

fn collect(path: &Path, root: &Path, extension: &str, found: &mut Vec<(String, String)>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            collect(&entry.unwrap().path(), root, extension, found);
        }
    } else if path.extension().is_some_and(|other| other == extension) {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        found.push((name, fs::read_to_string(path).unwrap()));
    }
}
