//! How a gate proves who it is.

use std::{
    ffi::OsString,
    io,
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use http::HeaderValue;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};
use tonic::{
    Code,
    transport::{ClientTlsConfig, Endpoint},
};

use crate::{
    Error,
    address::{DEFAULT_SERVER, Target, host_of},
    clock::{Moment, now},
    errors::misconfigured,
    failure::Failure,
    locked,
    rotation::{Certificates, File, LOOK_AGAIN, Rotation, is_usable},
    token::Token,
};

/// How long files may take to be read.
const READ_TIME: Duration = Duration::from_secs(2);

/// What the author has set; the environment has the rest.
#[derive(Clone, Default)]
pub(crate) struct AccessOptions {
    pub(crate) server: Option<String>,
    pub(crate) tls_ca: Option<PathBuf>,
    pub(crate) tls_cert: Option<PathBuf>,
    pub(crate) tls_key: Option<PathBuf>,
    pub(crate) tls_server_name: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) insecure: bool,
}

/// Where the server is, and how a gate proves who it is. The settings are read once, their files
/// again and again, so that what they hold can be exchanged while the process runs.
pub(crate) struct Access {
    pub(crate) target: Target,
    /// Connects in plaintext.
    endpoint: Endpoint,
    tls: Option<Rotation>,
    token: Token,
    /// Since when a file system has not answered: what was read last stays in use until it does.
    hung: Mutex<Option<Moment>>,
    /// The thread that reads has it: each call would leave one behind while a file hangs.
    reading: Mutex<Arc<Reading>>,
}

type Reading = tokio::sync::Mutex<()>;

/// What one call or stream proves itself by.
#[derive(Clone)]
pub(crate) struct Credentials {
    token: Option<Arc<str>>,
    pub(crate) certificates: Option<Arc<Certificates>>,
}

pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

#[expect(clippy::disallowed_methods, reason = "the settings of a client library")]
pub(crate) fn environment(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// What the option says, else the environment, with what said it. An empty option is a mistake, such
/// as a variable that is not set.
pub(crate) fn setting(
    environment: Environment<'_>,
    option: &'static str,
    given: Option<OsString>,
    variable: &'static str,
) -> Result<Option<(OsString, &'static str)>, Error> {
    match given {
        Some(value) if value.is_empty() => {
            Err(misconfigured(option, "it is empty; set it, or leave it out"))
        }
        Some(value) => Ok(Some((value, "the option"))),
        None => {
            let found = environment(variable).filter(|value| !value.is_empty());
            Ok(found.map(|value| (value, variable)))
        }
    }
}

fn text(option: &'static str, value: OsString) -> Result<String, Error> {
    value.into_string().map_err(|_| misconfigured(option, "it is not Unicode"))
}

impl Access {
    pub(crate) fn new(options: AccessOptions, env: Environment<'_>) -> Result<Self, Error> {
        let given = options.server.map(OsString::from);
        let target = match setting(env, "server", given, "ONCEGATE_SERVER")? {
            Some((address, _)) => Target::parse(&text("server", address)?)?,
            None => Target::parse(DEFAULT_SERVER)?,
        };
        let endpoint = target.endpoint()?;

        let with_tls = |option, given: Option<OsString>, variable| {
            let found = setting(env, option, given, variable)?;
            // A setting without effect is a mistake, also one of the environment of a whole pod.
            match found {
                Some((_, source)) if !target.tls() => Err(misconfigured(
                    option,
                    format!(
                        "{source} needs TLS, and the server {} has none; use https://HOST:PORT",
                        target.name()
                    ),
                )),
                found => Ok(found.map(|(value, _)| value)),
            }
        };
        // A client certificate that is set by options wins over one of the environment.
        let ca = with_tls("tls_ca", options.tls_ca.map(Into::into), "ONCEGATE_TLS_CA")?;
        let cert = with_tls("tls_cert", options.tls_cert.map(Into::into), "ONCEGATE_CLIENT_CERT")?;
        let key = with_tls("tls_cert", options.tls_key.map(Into::into), "ONCEGATE_CLIENT_KEY")?;
        let given = options.tls_server_name.map(OsString::from);
        let server_name = with_tls("tls_server_name", given, "ONCEGATE_TLS_SERVER_NAME")?;
        let (name_option, server_name) = match (server_name, &target) {
            (Some(name), _) => ("tls_server_name", text("tls_server_name", name)?),
            (None, Target::Hosts { hosts, .. }) => ("server", host_of(&hosts[0]).to_owned()),
            (None, Target::Socket(_)) => ("server", String::new()),
        };
        if target.tls() && !is_usable(ClientTlsConfig::new().domain_name(&server_name)) {
            let problem = format!("{server_name} is no name that a certificate can be valid for");
            return Err(misconfigured(name_option, problem));
        }
        let file = |option, path: OsString| File { option, path: path.into() };
        let pair = match (cert, key) {
            (Some(cert), Some(key)) => Some((file("tls_cert", cert), file("tls_cert", key))),
            (None, None) => None,
            _ => {
                let problem = "a client certificate needs both its certificate and its key";
                return Err(misconfigured("tls_cert", problem));
            }
        };
        let ca = ca.map(|path| file("tls_ca", path));
        let tls = target.tls().then(|| Rotation::new(endpoint.clone(), server_name, ca, pair));

        let token = Token::new(options.token, options.token_file, env)?;
        if token.is_set() && !target.tls() && !target.is_local() && !options.insecure {
            let name = target.name();
            return Err(Error::Misconfigured {
                option: "server",
                problem: format!("a token must not be sent in plaintext to {name}; use https://"),
                allowed_by: Some("insecure"),
            });
        }
        Ok(Self { target, endpoint, tls, token, hung: Mutex::default(), reading: Mutex::default() })
    }

    /// What is for the next call or stream. `at_once`: after a look at the files of the certificates.
    ///
    /// A file may hang: what was read last is used after [`READ_TIME`], and from then on at once, until
    /// the file answers.
    pub(crate) async fn credentials(self: &Arc<Self>, at_once: bool) -> Result<Credentials, Error> {
        let is_due = self.tls.as_ref().is_some_and(|tls| tls.is_due(at_once));
        if self.token.file.is_none()
            && !is_due
            && let Some(last) = self.last()
        {
            return Ok(last);
        }
        let mut problem = "it cannot be read within 2 s".to_owned();
        if let Some(reading) = self.may_read() {
            match self.read_in_time(reading, at_once).await {
                Ok(Some(found)) => return found,
                Ok(None) => {}
                Err(error) => problem = format!("no thread can read it: {error}"),
            }
        }
        self.last().ok_or_else(|| {
            let option = if self.token.file.is_some() { "token_file" } else { "tls_ca" };
            misconfigured(option, format!("cannot use its file: {problem}"))
        })
    }

    /// What allows one thread to read the files; `None` while one hangs, which is tried again only now and then.
    fn may_read(&self) -> Option<Arc<Reading>> {
        let mut hung = locked(&self.hung);
        if hung.is_some_and(|since| now() - since < LOOK_AGAIN) {
            return None;
        }
        let mut reading = locked(&self.reading);
        if hung.is_some() {
            *hung = Some(now());
            *reading = Arc::default(); // the thread before may never end
        }
        Some(reading.clone())
    }

    /// Reads the files in a thread of its own, which keeps neither the runtime nor the process. `None`: it takes
    /// too long.
    async fn read_in_time(
        self: &Arc<Self>,
        reading: Arc<Reading>,
        at_once: bool,
    ) -> io::Result<Option<Result<Credentials, Error>>> {
        let until = Instant::now() + READ_TIME;
        let Ok(place) = timeout_at(until, reading.clone().lock_owned()).await else {
            let mut hung = locked(&self.hung);
            let is_read = reading.try_lock().is_ok(); // in this moment
            *hung = (!is_read).then(now);
            return Ok(None);
        };
        let (answer, mut answered) = oneshot::channel();
        let access = self.clone();
        let read = move || {
            let _ = answer.send(access.read(at_once));
            drop(place);
            *locked(&access.hung) = None; // last: then a caller that gave up has noted it
        };
        thread::Builder::new().name("oncegate-files".to_owned()).spawn(read)?;
        if let Ok(found) = timeout_at(until, &mut answered).await {
            return Ok(found.ok());
        }
        *locked(&self.hung) = Some(now());
        let found = answered.try_recv().ok(); // in this moment
        if found.is_some() {
            *locked(&self.hung) = None;
        }
        Ok(found)
    }

    fn read(&self, at_once: bool) -> Result<Credentials, Error> {
        let token = self.token.read()?;
        let certificates = match &self.tls {
            Some(tls) => Some(tls.current(at_once)?),
            None => None,
        };
        Ok(Credentials { token, certificates })
    }

    /// What was read last, if all of it was.
    fn last(&self) -> Option<Credentials> {
        let token = self.token.last();
        let certificates = self.tls.as_ref().map(Rotation::last);
        if self.token.file.is_some() && token.is_none() {
            return None;
        }
        match certificates {
            Some(None) => None,
            found => Some(Credentials { token, certificates: found.flatten() }),
        }
    }

    /// What connects with these credentials.
    pub(crate) fn endpoint<'a>(&'a self, credentials: &'a Credentials) -> &'a Endpoint {
        credentials.certificates.as_ref().map_or(&self.endpoint, |found| &found.endpoint)
    }

    /// Makes the next look at the files of the certificates come earlier.
    pub(crate) fn look_soon(&self) {
        if let Some(tls) = &self.tls {
            tls.look_soon();
        }
    }

    /// Says what a failure means. UNAUTHENTICATED is final only with the newest token and client
    /// certificate: with older ones the call is worth another try.
    pub(crate) async fn judge(self: &Arc<Self>, used: &Credentials, failure: Failure) -> Failure {
        let is_outage = matches!(failure.code, Code::Unavailable | Code::DeadlineExceeded);
        if failure.reason.is_empty() && is_outage {
            self.look_soon(); // the server may not accept the old ones any more
        }
        if failure.code != Code::Unauthenticated {
            return failure;
        }
        match self.credentials(true).await {
            Ok(newest) if !newest.is_same_identity(used) => {
                let message = "the token or client certificate was replaced";
                let mut replaced = Failure::unavailable(message);
                replaced.outdated = true;
                replaced.source = failure.source;
                replaced
            }
            _ => failure,
        }
    }
}

impl Credentials {
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        let token = self.token.as_ref()?;
        let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    fn is_same_identity(&self, other: &Self) -> bool {
        self.token == other.token
            && match (&self.certificates, &other.certificates) {
                (Some(one), Some(other)) => one.is_same_client(other),
                (None, None) => true,
                _ => false,
            }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::mpsc};

    use super::*;

    fn none(_: &str) -> Option<OsString> {
        None
    }

    fn options(set: impl FnOnce(&mut AccessOptions)) -> AccessOptions {
        let mut options = AccessOptions::default();
        set(&mut options);
        options
    }

    #[test]
    fn wrong_settings() {
        let remote = || Some("gate:1".to_owned());
        let secure = || Some("https://gate:1".to_owned());
        let planted = || Some("planted".to_owned());
        for (option, options) in [
            ("server", options(|o| o.server = Some(String::new()))),
            ("token", options(|o| o.token = Some(String::new()))),
            ("token", options(|o| (o.token, o.token_file) = (planted(), Some("f".into())))),
            ("token", options(|o| o.token = Some("planted two".to_owned()))),
            ("token", options(|o| o.token = Some(" ".to_owned()))),
            ("server", options(|o| (o.server, o.token) = (remote(), planted()))),
            ("server", options(|o| (o.server, o.token_file) = (remote(), Some("f".into())))),
            ("tls_ca", options(|o| (o.server, o.tls_ca) = (remote(), Some("f".into())))),
            ("tls_server_name", options(|o| o.tls_server_name = planted())),
            ("tls_cert", options(|o| (o.server, o.tls_cert) = (secure(), Some("".into())))),
            ("tls_cert", options(|o| (o.server, o.tls_cert) = (secure(), Some("c".into())))),
            ("tls_cert", options(|o| o.tls_cert = Some("c".into()))),
            ("server", options(|o| o.server = Some("https://a b:1".to_owned()))),
            (
                "tls_server_name",
                options(|o| (o.server, o.tls_server_name) = (secure(), Some("a b".to_owned()))),
            ),
        ] {
            let Err(error) = Access::new(options, &none) else { panic!("{option} is taken") };
            let text = error.to_string();
            let Error::Misconfigured { option: found, .. } = error else { panic!("{text}") };
            assert_eq!(found, option, "{text}");
            assert!(!text.contains("planted two"), "{text}");
        }
        for options in [
            options(|o| {
                (o.server, o.token, o.tls_ca) = (secure(), planted(), Some("f".into()));
            }),
            options(|o| o.token = planted()),
            options(|o| (o.server, o.token, o.insecure) = (remote(), planted(), true)),
        ] {
            assert!(Access::new(options, &none).is_ok());
        }
        let plain = options(|o| (o.server, o.token) = (remote(), planted()));
        let Err(error) = Access::new(plain, &none) else { panic!("a token in plaintext is taken") };
        assert!(error.to_string().contains("; use https://, or set insecure;"), "{error}");
        let of_pod = |name: &str| (name == "ONCEGATE_TLS_CA").then(|| "/ca.pem".into());
        let Err(error) = Access::new(AccessOptions::default(), &of_pod) else {
            panic!("a setting of the environment without effect is taken")
        };
        assert!(error.to_string().contains("ONCEGATE_TLS_CA"), "{error}");
    }

    #[tokio::test]
    async fn while_a_file_hangs_one_thread_reads() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token");
        fs::write(&file, "first").expect("it is written");
        let access = Access::new(options(|o| o.token_file = Some(file)), &none);
        let access = Arc::new(access.unwrap_or_else(|error| panic!("{error}")));
        let token = |access: Arc<Access>| async move {
            let found = access.credentials(false).await;
            found.map(|found| found.token.as_deref().map(str::to_owned))
        };
        let first = Some("first".to_owned());
        assert_eq!(token(access.clone()).await.expect("it is read"), first);

        // Each reading ends only once this is over.
        let (over, is_over) = mpsc::channel::<()>();
        let (begun, has_begun) = mpsc::channel();
        let hanging = thread::spawn({
            let access = access.clone();
            move || {
                let _outage = locked(&access.token.outage);
                begun.send(()).expect("it is awaited");
                is_over.recv().expect_err("nothing is sent");
            }
        });
        has_begun.recv().expect("it hangs");
        let calls: Vec<_> = (0..100).map(|_| tokio::spawn(token(access.clone()))).collect();
        for call in calls {
            assert_eq!(call.await.expect("no panic").expect("the last one is used"), first);
        }
        assert_eq!(
            Arc::strong_count(&access),
            3,
            "one thread, that which makes it hang, and this one"
        );
        drop(over);
        hanging.join().expect("no panic");
    }
}
