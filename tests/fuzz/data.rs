//! The project's data of tests.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of a file below `tests/data`.
pub fn text(file: &str) -> String {
    let path = root().join("tests/data").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The inputs of a target that once failed, with their files.
pub fn kept(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(folder) = fs::read_dir(root().join("tests/data/fuzz").join(target)) else {
        return Vec::new();
    };
    let mut kept: Vec<_> = folder
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let bytes = fs::read(&path).ok()?;
            Some((path, bytes))
        })
        .collect();
    kept.sort();
    kept
}

/// Writes an input that failed to a file, and answers its path from the project's root.
pub fn save(target: &str, input: &[u8]) -> PathBuf {
    let folder = Path::new("target/fuzz");
    let name = format!("{target}-{:016x}", xxhash_rust::xxh3::xxh3_64(input));
    let path = folder.join(name);
    let _ = fs::create_dir_all(root().join(folder));
    let _ = fs::write(root().join(&path), input);
    path
}
