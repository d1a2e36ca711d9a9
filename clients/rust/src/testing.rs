//! Runs the real server as a child of a test process:
//!
//! ```no_run
//! # async fn example() {
//! let (gate, server) = oncegate_client::testing::start().await;
//! // …
//! server.kill().await;
//! # gate.close().await; }
//! ```
//!
//! It needs the server's binary: the one that `ONCEGATE_BINARY` names, or `oncegate` on the `PATH`.
//! What goes wrong is a panic, as tests want it.

use std::{
    env, fs,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, ChildStdout},
    time::timeout,
};

use crate::{
    Gate, GateBuilder, Session,
    access::environment,
    clock::now,
    delivery::SessionName,
    link::Transport,
    locked,
    pb::{
        EventState, ForceReleaseSessionLeaseRequest, GetStatsRequest, ListEventsRequest,
        ListSessionsRequest, SessionKey, SessionState, admin_service_client::AdminServiceClient,
        session_key::Key,
    },
};

/// Kills the server and deletes its files as soon as the test process is gone, however that ended:
/// only then does the pipe on its standard input reach its end.
const WATCH: &str = r#"read -r _ || { kill -KILL "$1"; rm -rf "$2"; }"#;

const ANSWER_TIME: Duration = Duration::from_secs(10);
const START_TIME: Duration = Duration::from_secs(60);

/// A server with a database of its own. It ends when this is dropped. Its address stays the same over
/// restarts.
#[derive(Debug)]
pub struct Server {
    // Dropped first: the server ends before its folder does.
    running: Mutex<Option<Running>>,
    folder: TempDir,
    arguments: Vec<String>,
    admin: Gate,
}

#[derive(Debug)]
struct Running {
    server: Child,
    /// The server writes to it until it ends.
    _stdout: BufReader<ChildStdout>,
    watcher: std::process::Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.server.start_kill(); // fails if it has ended
        let _ = self.watcher.kill();
        let _ = self.watcher.wait();
    }
}

/// A turn in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunningTurn {
    /// The event's id.
    pub event: String,
    /// The name of its holder.
    pub holder: String,
    /// Its attempt.
    pub attempt: u32,
}

/// Starts a server, and makes a gate for it.
///
/// # Panics
///
/// If the server does not start.
pub async fn start() -> (Gate, Server) {
    let server = Server::start([]).await;
    (server.gate(), server)
}

fn binary() -> PathBuf {
    environment("ONCEGATE_BINARY").map_or_else(|| "oncegate".into(), PathBuf::from)
}

impl Server {
    /// Starts a server, with further arguments for `oncegate serve`.
    ///
    /// # Panics
    ///
    /// If the server does not start.
    pub async fn start(arguments: impl IntoIterator<Item = &str>) -> Self {
        // A socket's path is short.
        let folder = tempfile::Builder::new().prefix("oncegate-").tempdir().expect("a folder");
        let socket = format!("unix:{}", folder.path().join("socket").display());
        let admin = Gate::builder().server(socket).holder("test").build().expect("a gate");
        let server = Self {
            folder,
            arguments: arguments.into_iter().map(str::to_owned).collect(),
            admin,
            running: Mutex::new(None),
        };
        server.spawn().await;
        server
    }

    /// Another gate for the server.
    ///
    /// # Panics
    ///
    /// If the environment has settings for a gate that do not fit.
    #[must_use]
    pub fn gate(&self) -> Gate {
        self.builder().build().expect("a gate")
    }

    /// The options of another gate for the server.
    pub fn builder(&self) -> GateBuilder {
        Gate::builder().server(self.address())
    }

    /// The address, for [`GateBuilder::server`] and `ONCEGATE_SERVER`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("unix:{}", self.folder.path().join("socket").display())
    }

    /// The log of the server so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    async fn spawn(&self) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .expect("a log");
        let database = format!("sqlite://{}", self.folder.path().join("oncegate.db").display());
        let mut command = Command::new(binary());
        command
            .args(["serve", "--listen", &self.address(), "--database-url", &database])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        // Settings of the tests' own environment are for its clients.
        for (name, _) in
            env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ONCEGATE_"))
        {
            command.env_remove(name);
        }
        let mut server = tokio::process::Command::from(command).spawn().unwrap_or_else(|error| {
            panic!("no oncegate server here ({error}): put it on the PATH, or set ONCEGATE_BINARY")
        });
        let pid = server.id().expect("it has just been started");
        let watcher = Command::new("sh")
            .args(["-c", WATCH, "sh", &pid.to_string()])
            .arg(self.folder.path())
            .stdin(Stdio::piped())
            .process_group(0) // Ctrl-C would end it before it is needed
            .spawn()
            .expect("a shell");
        let mut stdout = BufReader::new(server.stdout.take().expect("it is piped"));
        let mut line = String::new();
        let read = timeout(START_TIME, stdout.read_line(&mut line)).await;
        *locked(&self.running) = Some(Running { server, _stdout: stdout, watcher });
        let is_ready = read.is_ok_and(|read| read.is_ok()) && line.contains(" listens on ");
        assert!(is_ready, "the server did not start: it says {line:?}\n{}", self.log());
    }

    /// Ends the server by SIGKILL, and waits until it has ended.
    pub async fn kill(&self) {
        let running = locked(&self.running).take();
        if let Some(mut running) = running {
            let _ = running.server.kill().await; // fails if it has ended
        }
    }

    /// Kills the server, if it runs, and starts it on the same database.
    ///
    /// # Panics
    ///
    /// If the server does not start.
    pub async fn restart(&self) {
        self.kill().await;
        self.spawn().await;
    }

    /// Asks the server to end, by SIGTERM. Turns stay with their holders.
    pub fn drain(&self) {
        self.signal(Signal::TERM);
    }

    /// Stops the server's process: its connections stay open, and nothing answers.
    pub fn mute(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets the process of a muted server continue.
    pub fn unmute(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let running = locked(&self.running);
        let pid = running.as_ref().and_then(|running| running.server.id());
        let pid = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(pid) = pid {
            let _ = kill_process(pid, signal); // fails if it has ended
        }
    }

    /// The turns in progress: of one tenant, or of all if `team` is empty.
    ///
    /// # Panics
    ///
    /// If the server does not answer.
    pub async fn turns(&self, team: &str) -> Vec<RunningTurn> {
        let mut turns = Vec::new();
        let mut request = ListEventsRequest {
            team_id: team.to_owned(),
            state: EventState::InProgress.into(),
            ..Default::default()
        };
        loop {
            let page = self.answer(&request, list_events).await;
            turns.extend(page.events.into_iter().map(|event| RunningTurn {
                event: event.event_id,
                holder: event.holder,
                attempt: u32::try_from(event.attempt).unwrap_or_default(),
            }));
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                return turns;
            }
        }
    }

    /// How many callers queue for a session of this tenant, or of all.
    ///
    /// # Panics
    ///
    /// If the server does not answer.
    pub async fn waiting(&self, team: &str) -> u64 {
        let request = GetStatsRequest { team_id: team.to_owned() };
        let stats = self.answer(&request, get_stats).await;
        u64::try_from(stats.waiters).unwrap_or_default()
    }

    /// Takes a held session from its holder, as an operator does by force.
    ///
    /// # Panics
    ///
    /// If nobody holds the session, or the server does not answer.
    pub async fn lose(&self, session: &Session) {
        let team = &session.team;
        let name = match &session.name {
            SessionName::Id(id) => id.clone(),
            SessionName::Thread { channel, ts } => format!("{team}:{channel}:{ts}"),
        };
        let mut request =
            ListSessionsRequest { team_id: team.clone(), page_size: 250, ..Default::default() };
        let mut was_held = false;
        loop {
            let page = self.answer(&request, list_sessions).await;
            for found in page.sessions {
                if found.session_id != name || found.state() != SessionState::Held {
                    continue;
                }
                was_held = true;
                let release = ForceReleaseSessionLeaseRequest {
                    session: Some(SessionKey {
                        team_id: found.team_id,
                        key: Some(Key::SessionId(found.session_id)),
                        consumer: found.consumer,
                        ..Default::default()
                    }),
                    actor: "test".to_owned(),
                    reason: "lose".to_owned(),
                };
                self.answer(&release, force_release).await;
            }
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        assert!(was_held, "no session {name} of {team} is held");
    }

    async fn answer<Q: Clone, R, F>(&self, request: &Q, call: impl Fn(Transport, Q) -> F) -> R
    where
        F: Future<Output = Result<tonic::Response<R>, tonic::Status>>,
    {
        let link = &self.admin.inner.link;
        let made = link.call_until(now() + ANSWER_TIME, ANSWER_TIME, |transport| {
            call(transport, request.clone())
        });
        match made.await {
            Ok((answer, _)) => answer,
            Err(problem) => panic!("the server says {}\n{}", problem.public(), self.log()),
        }
    }
}

macro_rules! admin_calls {
    ($($name:ident $method:ident $request:ident $response:ident,)+) => {
        $(async fn $name(
            transport: Transport,
            request: crate::pb::$request,
        ) -> Result<tonic::Response<crate::pb::$response>, tonic::Status> {
            AdminServiceClient::new(transport).$method(request).await
        })+
    };
}

admin_calls! {
    list_events list_events ListEventsRequest ListEventsResponse,
    get_stats get_stats GetStatsRequest GetStatsResponse,
    list_sessions list_sessions ListSessionsRequest ListSessionsResponse,
    force_release force_release_session_lease
        ForceReleaseSessionLeaseRequest ForceReleaseSessionLeaseResponse,
}
