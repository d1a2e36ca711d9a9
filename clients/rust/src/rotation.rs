//! Files whose content may be exchanged while the process runs.

use std::{
    collections::HashSet,
    fs,
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::{
    Error,
    clock::{Moment, now},
    errors::misconfigured,
    locked,
};

const MAX_FILE: u64 = 1024 * 1024;

/// How long after a look at the files of the certificates another one follows, while calls are
/// made; and after a connection has failed.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
const LOOK_SOON: Duration = Duration::from_secs(1);

/// What the files hold.
pub(crate) struct Certificates {
    ca: Vec<u8>,
    cert: Vec<u8>,
    key: Vec<u8>,
    pub(crate) config: ClientTlsConfig,
}

impl Certificates {
    pub(crate) fn is_same_client(&self, other: &Self) -> bool {
        self.cert == other.cert && self.key == other.key
    }
}

/// The certificates that a gate uses.
pub(crate) struct Rotation {
    ca: Option<File>,
    pair: Option<(File, File)>,
    state: Mutex<State>,
}

struct State {
    used: Option<Arc<Certificates>>,
    looked: Moment,
    is_hurried: bool,
    outage: Outage,
}

impl Rotation {
    pub(crate) fn new(ca: Option<File>, pair: Option<(File, File)>) -> Self {
        let outage = Outage::new("the certificates that were read before stay in use");
        let state = State { used: None, looked: Moment::default(), is_hurried: false, outage };
        Self { ca, pair, state: Mutex::new(state) }
    }

    /// What is for the next call. Files that cannot be used now leave the last ones in use.
    pub(crate) fn current(&self, at_once: bool) -> Result<Arc<Certificates>, Error> {
        let mut state = locked(&self.state);
        let pause = if state.is_hurried { LOOK_SOON } else { LOOK_AGAIN };
        if let Some(used) = &state.used
            && !at_once
            && now() - state.looked < pause
        {
            return Ok(used.clone());
        }
        state.looked = now();
        state.is_hurried = false;
        match (self.read(state.used.as_ref()), &state.used) {
            (Ok(found), _) => {
                state.outage.over();
                state.used = Some(found.clone());
                Ok(found)
            }
            (Err(error), None) => Err(error),
            (Err(error), Some(used)) => {
                let used = used.clone();
                state.outage.warn(&error);
                Ok(used)
            }
        }
    }

    /// Makes the next look come earlier.
    pub(crate) fn look_soon(&self) {
        locked(&self.state).is_hurried = true;
    }

    fn read(&self, used: Option<&Arc<Certificates>>) -> Result<Arc<Certificates>, Error> {
        let ca = self.ca.as_ref().map(File::read).transpose()?.unwrap_or_default();
        let (cert, key) = match &self.pair {
            Some((cert, key)) => (cert.read()?, key.read()?),
            None => Default::default(),
        };
        if let Some(used) = used
            && (&used.ca, &used.cert, &used.key) == (&ca, &cert, &key)
        {
            return Ok(used.clone());
        }
        let mut config = ClientTlsConfig::new().timeout(Duration::from_secs(10));
        config = match &self.ca {
            Some(file) => {
                let config = config.ca_certificate(Certificate::from_pem(&ca));
                let has_one = String::from_utf8_lossy(&ca).contains("-----BEGIN CERTIFICATE-----");
                if !has_one || !is_usable(config.clone()) {
                    let problem = format!("{} holds no certificate in PEM", file.path);
                    return Err(misconfigured(file.option, problem));
                }
                config
            }
            None => config.with_native_roots(),
        };
        if let Some((cert_file, key_file)) = &self.pair {
            config = config.identity(Identity::from_pem(&cert, &key));
            // The roots of the system are not in question here.
            let alone = ClientTlsConfig::new().identity(Identity::from_pem(&cert, &key));
            if !is_usable(alone) {
                let problem = format!(
                    "{} and {} are not a certificate and its key",
                    cert_file.path, key_file.path
                );
                return Err(misconfigured(cert_file.option, problem));
            }
        }
        Ok(Arc::new(Certificates { ca, cert, key, config }))
    }
}

/// Whether tonic takes these certificates.
fn is_usable(config: ClientTlsConfig) -> bool {
    Endpoint::from_static("https://oncegate").tls_config(config).is_ok()
}

/// A file that an option names.
pub(crate) struct File {
    pub(crate) option: &'static str,
    pub(crate) path: String,
}

impl File {
    /// What it holds, without white space around it. Never empty.
    pub(crate) fn read(&self) -> Result<Vec<u8>, Error> {
        let content = read_regular(&self.path).and_then(|content| {
            let content = content.trim_ascii();
            if content.is_empty() { Err("it is empty".to_owned()) } else { Ok(content.to_vec()) }
        });
        content.map_err(|problem| {
            misconfigured(self.option, format!("cannot use the file {}: {problem}", self.path))
        })
    }
}

fn read_regular(path: &str) -> Result<Vec<u8>, String> {
    // A pipe without a writer would keep this waiting.
    let flags = rustix::fs::OFlags::NONBLOCK.bits();
    let flags = i32::try_from(flags).unwrap_or_default();
    let opened = fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(|error| error.to_string())?;
    if !opened.metadata().is_ok_and(|found| found.is_file()) {
        return Err("it is not a regular file".to_owned());
    }
    let mut content = Vec::new();
    opened.take(MAX_FILE + 1).read_to_end(&mut content).map_err(|error| error.to_string())?;
    if content.len() as u64 > MAX_FILE {
        return Err("it is larger than 1 MiB".to_owned());
    }
    Ok(content)
}

/// Warns of files that cannot be used: once for each option, until they can be used again.
pub(crate) struct Outage {
    then: &'static str,
    warned: HashSet<&'static str>,
}

impl Outage {
    pub(crate) fn new(then: &'static str) -> Self {
        Self { then, warned: HashSet::new() }
    }

    pub(crate) fn warn(&mut self, error: &Error) {
        if let Error::Misconfigured { option, .. } = error
            && self.warned.insert(option)
        {
            tracing::warn!("{error}; {}", self.then);
        }
    }

    pub(crate) fn over(&mut self) {
        self.warned.clear();
    }
}
