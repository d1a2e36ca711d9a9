//! A process that is asked by lines of JSON on its standard input, and answers by lines.

use std::{
    collections::HashMap,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{ChildStdin, Command},
    sync::{oneshot, watch},
    time::timeout,
};

pub(crate) struct LineProcess {
    program: String,
    pub(crate) greeting: Value,
    stdin: tokio::sync::Mutex<Option<ChildStdin>>,
    shared: Arc<Shared>,
    /// Whether it was a success.
    ended: watch::Receiver<Option<bool>>,
    pid: u32,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<(u64, HashMap<u64, oneshot::Sender<Value>>)>,
    log: Mutex<String>,
}

impl LineProcess {
    pub(crate) async fn start(mut command: Command) -> Result<Self, String> {
        let program = command.as_std().get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true);
        let mut process = command.spawn().map_err(|error| format!("{program}: {error}"))?;
        let mut lines = BufReader::new(process.stdout.take().expect("it is piped")).lines();
        let mut stderr = process.stderr.take().expect("it is piped");
        let stdin = process.stdin.take();
        let pid = process.id().unwrap_or_default();
        let shared = Arc::new(Shared::default());
        let logged = shared.clone();
        let logging = tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
                let mut log = logged.log.lock().expect("it is not poisoned");
                log.push_str(&String::from_utf8_lossy(&buffer[..count]));
                // The end is for a failure's report.
                let start = log.len().saturating_sub(20_000);
                let start = (start..=log.len()).find(|at| log.is_char_boundary(*at));
                log.drain(..start.unwrap_or_default());
            }
        });
        let Ok(Some(greeting)) = lines.next_line().await else {
            let _ = process.kill().await;
            let _ = logging.await;
            let log = shared.log.lock().expect("it is not poisoned").clone();
            return Err(format!("{program} ended before it was ready:\n{log}"));
        };
        let greeting = serde_json::from_str(&greeting).map_err(|error| error.to_string())?;
        let (has_ended, ended) = watch::channel(None);
        let answered = shared.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let answer: Value = serde_json::from_str(&line).expect("an answer in JSON");
                let id = answer["id"].as_u64().expect("an id");
                let waiting = answered.waiting.lock().expect("it is not poisoned").1.remove(&id);
                if let Some(waiting) = waiting {
                    let _ = waiting.send(answer);
                }
            }
            let status = process.wait().await;
            let _ = has_ended.send(Some(status.is_ok_and(|status| status.success())));
        });
        let stdin = tokio::sync::Mutex::new(stdin);
        Ok(Self { program, greeting, stdin, shared, ended, pid })
    }

    pub(crate) fn log(&self) -> String {
        self.shared.log.lock().expect("it is not poisoned").clone()
    }

    /// Asks for something. An error is an answer of the process that it cannot do it.
    pub(crate) async fn ask(&self, what: &str, arguments: &Value) -> Result<Value, String> {
        let (answer, answered) = oneshot::channel();
        let id = {
            let mut waiting = self.shared.waiting.lock().expect("it is not poisoned");
            waiting.0 += 1;
            let id = waiting.0;
            waiting.1.insert(id, answer);
            id
        };
        let mut request = json!({"id": id, "do": what});
        for (name, argument) in arguments.as_object().into_iter().flatten() {
            request[name] = argument.clone();
        }
        {
            let mut stdin = self.stdin.lock().await;
            let stdin = stdin.as_mut().ok_or("it is closed")?;
            let line = format!("{request}\n");
            stdin.write_all(line.as_bytes()).await.map_err(|error| error.to_string())?;
        }
        let mut ended = self.ended.clone();
        let answer = tokio::select! {
            biased;
            answer = answered => answer.map_err(|_| "no answer".to_owned())?,
            _ = ended.wait_for(Option::is_some) => return Err(format!("{} has ended", self.program)),
        };
        match answer["error"].as_str() {
            Some(problem) => Err(problem.to_owned()),
            None => Ok(answer["ok"].clone()),
        }
    }

    pub(crate) fn kill(&self) {
        let pid = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    /// Waits for its end. Whether it was a success.
    pub(crate) async fn has_ended(&self) -> bool {
        let mut ended = self.ended.clone();
        let ended = ended.wait_for(Option::is_some).await;
        ended.is_ok_and(|ended| *ended == Some(true))
    }

    /// Ends its input, upon which it exits. Whether that was a success.
    pub(crate) async fn close(&self) -> bool {
        self.stdin.lock().await.take();
        if let Ok(is_success) = timeout(Duration::from_secs(20), self.has_ended()).await {
            return is_success;
        }
        self.kill();
        self.has_ended().await
    }
}
