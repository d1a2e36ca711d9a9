//! Scenarios as they stand in `clients/conformance/scenarios`.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

pub(crate) const STORES: [&str; 2] = ["sqlite", "postgres"];

/// What a client of this language can do. A process of Rust cannot fork.
const CAPABILITIES: [&str; 2] = ["event_loop", "interrupt"];

pub(crate) type Object = Map<String, Value>;

#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) file: String,
    content: Value,
}

pub(crate) fn folder() -> PathBuf {
    // The copy of this program with bugs in it finds the scenarios of the original.
    let folder = crate::variable("ONCEGATE_TEST_FOLDER");
    folder
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance"), PathBuf::from)
}

impl Scenario {
    pub(crate) fn read(path: &Path) -> Self {
        let content = fs::read_to_string(path).expect("a scenario");
        let content = serde_json::from_str(&content).expect("a scenario in JSON");
        let file = path.file_stem().expect("a name").to_string_lossy().into_owned();
        Self { file, content }
    }

    pub(crate) fn all() -> Vec<Self> {
        let files = fs::read_dir(folder().join("scenarios")).expect("the scenarios");
        let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        paths.sort();
        assert!(!paths.is_empty(), "there are no scenarios");
        paths.iter().map(|path| Self::read(path)).collect()
    }

    fn texts(&self, key: &str) -> Option<Vec<String>> {
        let items = self.content[key].as_array()?.iter();
        Some(items.map(|item| item.as_str().expect("a text").to_owned()).collect())
    }

    pub(crate) fn runs_on(&self, store: &str) -> bool {
        let stores = self.texts("stores");
        stores.is_none_or(|stores| stores.iter().any(|one| one == store)) && self.is_possible()
    }

    pub(crate) fn is_possible(&self) -> bool {
        let needs = self.texts("needs").unwrap_or_default();
        needs.iter().all(|need| CAPABILITIES.contains(&need.as_str()))
    }

    /// Notes for `clients/behaviour` that it has passed.
    pub(crate) fn note_pass(&self, store: &str) -> Result<(), String> {
        let Some(results) = crate::variable("ONCEGATE_SCENARIO_RESULTS") else { return Ok(()) };
        let path = Path::new(&results).join("rust");
        let line = format!("{}\t{store}\n", self.file);
        let file = fs::OpenOptions::new().append(true).create(true).open(&path);
        let noted = file.and_then(|mut file| file.write_all(line.as_bytes()));
        noted.map_err(|error| format!("{}: {error}", path.display()))
    }

    pub(crate) fn replicas(&self) -> usize {
        self.content["replicas"].as_u64().map_or(1, |count| usize::try_from(count).expect("few"))
    }

    pub(crate) fn server(&self) -> Vec<String> {
        self.texts("server").unwrap_or_default()
    }

    /// The options of a client.
    pub(crate) fn client(&self, name: &str) -> Value {
        self.content["clients"][name].clone()
    }

    pub(crate) fn delivery(&self, name: &str) -> Value {
        self.content["deliveries"][name].clone()
    }

    pub(crate) fn steps(&self) -> Vec<Object> {
        let steps = self.content["steps"].as_array().expect("the steps").iter();
        steps.map(|step| step.as_object().expect("a step").clone()).collect()
    }
}
