//! A client does the steps of one gate.
//!
//! Each has a thread of its own, with an event loop that runs both its handlers and the library: so
//! that a step can block it.

use std::{
    io::{BufRead as _, Write as _},
    process::ExitCode,
    rc::Rc,
    sync::Mutex,
    thread,
};

use serde_json::{Value, json};
use tokio::{
    process::Command,
    sync::{mpsc, oneshot, watch},
    task::{LocalSet, spawn_local},
};

use crate::{lines::LineProcess, mapping::text, scenario::Object, verbs::Local};

/// Makes this program the process of a client.
pub(crate) const CHILD: &str = "ONCEGATE_TEST_CHILD";

type Step = (Value, oneshot::Sender<Value>);

pub(crate) enum Client {
    Local {
        steps: mpsc::Sender<Step>,
        thread: Mutex<Option<thread::JoinHandle<()>>>,
    },
    /// In a process of its own, which can be killed: this program again.
    Child {
        lines: LineProcess,
        is_dead: watch::Sender<bool>,
    },
}

impl Client {
    pub(crate) async fn start(name: &str, server: &str, options: &Value) -> Result<Self, String> {
        if options["own_process"] == true {
            let program = std::env::current_exe().map_err(|error| error.to_string())?;
            let mut command = Command::new(program);
            command.env(CHILD, json!([name, server, options]).to_string());
            let lines = LineProcess::start(command).await?;
            return Ok(Self::Child { lines, is_dead: watch::channel(false).0 });
        }
        let (steps, received) = mpsc::channel(64);
        let (name, server, options) = (name.to_owned(), server.to_owned(), options.clone());
        let thread = thread::spawn(move || serve(&name, &server, &options, received));
        Ok(Self::Local { steps, thread: Mutex::new(Some(thread)) })
    }

    pub(crate) async fn perform(&self, step: Object) -> Value {
        let step = Value::Object(step);
        match self {
            Self::Local { steps, .. } => {
                let (answer, answered) = oneshot::channel();
                let _ = steps.send((step, answer)).await;
                answered.await.unwrap_or_else(|_| unexpected("the client has ended"))
            }
            Self::Child { lines, is_dead } => {
                if step["die"] == true {
                    lines.kill();
                    lines.has_ended().await;
                    is_dead.send_replace(true);
                    return Value::Null;
                }
                let asked = lines.ask("step", &json!({"step": step})).await;
                asked.unwrap_or_else(|problem| unexpected(&problem))
            }
        }
    }

    /// Leaves what is still open, and closes the gate.
    pub(crate) async fn close(self) -> Result<(), String> {
        match self {
            Self::Local { steps, thread } => {
                drop(steps);
                let thread = thread.into_inner().expect("it is not poisoned");
                let joined = tokio::task::spawn_blocking(|| thread.map(thread::JoinHandle::join));
                match joined.await {
                    Ok(Some(Err(_)) | None) | Err(_) => Err("a client panicked".to_owned()),
                    Ok(Some(Ok(()))) => Ok(()),
                }
            }
            Self::Child { lines, is_dead } => {
                let has_failed = !lines.close().await && !*is_dead.borrow();
                if has_failed { Err("a client's process failed".to_owned()) } else { Ok(()) }
            }
        }
    }
}

pub(crate) fn unexpected(message: &str) -> Value {
    json!({"error": {"kind": "unexpected", "message": message}})
}

/// The event loop of a client.
fn serve(name: &str, server: &str, options: &Value, mut steps: mpsc::Receiver<Step>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    LocalSet::new().block_on(&runtime.expect("a runtime"), async {
        let local = Rc::new(Local::new(name, server, options));
        while let Some((step, answer)) = steps.recv().await {
            let local = local.clone();
            spawn_local(async move {
                let _ = answer.send(local.perform(step).await);
            });
        }
        local.close().await;
    });
}

/// The process of a client. It exits when its standard input ends.
pub(crate) fn run_child(arguments: &str) -> ExitCode {
    let given: Value = serde_json::from_str(arguments).expect("arguments in JSON");
    let (name, server) = (text(&given[0]), text(&given[1]));
    let (steps, received) = mpsc::channel(64);
    let thread = thread::spawn(move || serve(&name, &server, &given[2], received));
    println!("{}", json!({"ready": true}));
    for line in std::io::stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line.expect("a line")).expect("a request");
        let (answer, answered) = oneshot::channel();
        let _ = steps.blocking_send((request["step"].clone(), answer));
        thread::spawn(move || {
            let result = answered.blocking_recv().unwrap_or_else(|_| unexpected("no answer"));
            let line = json!({"id": request["id"], "ok": result});
            let _ = writeln!(std::io::stdout(), "{line}");
        });
    }
    drop(steps);
    if thread.join().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
