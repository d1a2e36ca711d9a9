//! Files whose content may be exchanged while the process runs.

use std::{
    collections::HashSet,
    fs,
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
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
pub(crate) const LOOK_AGAIN: Duration = Duration::from_secs(10);
const LOOK_SOON: Duration = Duration::from_secs(1);

/// What the files hold.
pub(crate) struct Certificates {
    ca: Vec<u8>,
    cert: Vec<u8>,
    key: Vec<u8>,
    pub(crate) endpoint: Endpoint,
}

impl Certificates {
    pub(crate) fn is_same_client(&self, other: &Self) -> bool {
        self.cert == other.cert && self.key == other.key
    }
}

/// The certificates that a gate uses.
pub(crate) struct Rotation {
    /// Without TLS.
    endpoint: Endpoint,
    server_name: String,
    ca: Option<File>,
    pair: Option<(File, File)>,
    state: Mutex<State>,
}

struct State {
    used: Option<Arc<Certificates>>,
    looked: Moment,
    /// When the look began that `used` is of.
    used_since: Moment,
    is_hurried: bool,
    outage: Outage,
}

impl Rotation {
    pub(crate) fn new(
        endpoint: Endpoint,
        server_name: String,
        ca: Option<File>,
        pair: Option<(File, File)>,
    ) -> Self {
        let outage = Outage::new("the certificates that were read before stay in use");
        let state = State {
            used: None,
            looked: Moment::default(),
            used_since: Moment::default(),
            is_hurried: false,
            outage,
        };
        Self { endpoint, server_name, ca, pair, state: Mutex::new(state) }
    }

    /// Whether the files are to be looked at.
    pub(crate) fn is_due(&self, at_once: bool) -> bool {
        let state = locked(&self.state);
        let pause = if state.is_hurried { LOOK_SOON } else { LOOK_AGAIN };
        at_once || state.used.is_none() || now() - state.looked >= pause
    }

    /// What was read last.
    pub(crate) fn last(&self) -> Option<Arc<Certificates>> {
        locked(&self.state).used.clone()
    }

    /// What is for the next call. Files that cannot be used now leave the last ones in use.
    pub(crate) fn current(&self, at_once: bool) -> Result<Arc<Certificates>, Error> {
        let is_due = self.is_due(at_once);
        let began = now();
        let last = {
            let mut state = locked(&self.state);
            if is_due {
                (state.looked, state.is_hurried) = (began, false);
            }
            state.used.clone()
        };
        if let Some(last) = last.as_ref().filter(|_| !is_due) {
            return Ok(last.clone());
        }
        let found = self.read(last.as_ref()); // without the lock: a file may hang
        let mut state = locked(&self.state);
        match (found, last) {
            (Ok(found), _) => {
                state.outage.over();
                // A slow look does not undo a later one.
                match &state.used {
                    Some(newer) if state.used_since > began => Ok(newer.clone()),
                    _ => {
                        (state.used, state.used_since) = (Some(found.clone()), began);
                        Ok(found)
                    }
                }
            }
            (Err(error), None) => Err(error),
            (Err(error), Some(used)) => {
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
                    let problem = format!("{} holds no certificate in PEM", file.path.display());
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
                    cert_file.path.display(),
                    key_file.path.display()
                );
                return Err(misconfigured(cert_file.option, problem));
            }
        }
        // The roots of the system are read here, once.
        let config = config.domain_name(&self.server_name);
        let endpoint = self.endpoint.clone().tls_config(config).map_err(|error| {
            let cause = std::error::Error::source(&error);
            let cause = cause.map(ToString::to_string).unwrap_or_default();
            misconfigured("tls_ca", format!("TLS cannot be set up: {error}: {cause}"))
        })?;
        Ok(Arc::new(Certificates { ca, cert, key, endpoint }))
    }
}

/// Whether tonic takes these certificates.
pub(crate) fn is_usable(config: ClientTlsConfig) -> bool {
    Endpoint::from_static("https://oncegate").tls_config(config).is_ok()
}

/// A file that an option names.
pub(crate) struct File {
    pub(crate) option: &'static str,
    pub(crate) path: PathBuf,
}

impl File {
    /// What it holds, without white space around it. Never empty.
    pub(crate) fn read(&self) -> Result<Vec<u8>, Error> {
        let content = read_regular(&self.path).and_then(|content| {
            let content = content.trim_ascii();
            if content.is_empty() { Err("it is empty".to_owned()) } else { Ok(content.to_vec()) }
        });
        content.map_err(|problem| {
            misconfigured(
                self.option,
                format!("cannot use the file {}: {problem}", self.path.display()),
            )
        })
    }
}

fn read_regular(path: &Path) -> Result<Vec<u8>, String> {
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
