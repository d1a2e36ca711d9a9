//! Random faults.

use std::{ops::Range, process::Command, time::Duration};

use rand::{
    RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _, seq::SliceRandom as _,
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet, time::sleep};

use crate::{
    history::{Forced, History},
    testbed::Testbed,
};

pub(crate) const TEAM: &str = "T1";

// A fault of one group overlaps those of the others. Cuts are frequent, and so are releases by force, of
// which not all find a lease.
const NETWORK: [&str; 7] =
    ["cut", "cut", "hold", "hold", "cut_before_data", "cut_before_data", "refuse"];
const SERVER: [&str; 5] = ["kill", "drain", "mute", "lose", "lose"];
const CLIENT: [&str; 1] = ["pause"];

/// All kinds of faults.
pub(crate) const KINDS: [&str; 9] =
    ["cut", "hold", "cut_before_data", "refuse", "kill", "drain", "mute", "lose", "pause"];

/// Does random faults of one group, one after the other, until it is stopped.
struct Faulter {
    testbed: std::sync::Arc<Testbed>,
    replica: usize,
    kinds: Vec<String>,
    chance: StdRng,
    history: std::sync::Arc<History>,
    sessions: Vec<String>,
    refusal: Range<u64>,
    stop: watch::Receiver<bool>,
}

/// Which faults there are.
pub(crate) struct Chosen {
    pub(crate) seed: u64,
    pub(crate) kinds: Vec<String>,
    /// In so many replicas.
    pub(crate) faulty: usize,
    /// For how many milliseconds connections are refused.
    pub(crate) refusal: Range<u64>,
}

/// Runs work under faults.
pub(crate) async fn with_faults(
    testbed: &std::sync::Arc<Testbed>,
    history: &std::sync::Arc<History>,
    Chosen { seed, kinds, faulty, refusal }: &Chosen,
    sessions: &[String],
    work: impl Future<Output = ()>,
) -> Result<(), String> {
    let (stop, stopped) = watch::channel(false);
    let mut faulters = JoinSet::new();
    let groups = (0..*faulty).flat_map(|replica| [(replica, &NETWORK[..]), (replica, &SERVER[..])]);
    for (replica, group) in groups.chain([(0, &CLIENT[..])]) {
        let chosen = group.iter().filter(|kind| kinds.iter().any(|wanted| wanted == *kind));
        let chosen: Vec<_> = chosen.map(|kind| (*kind).to_owned()).collect();
        if chosen.is_empty() {
            continue;
        }
        let faulter = Faulter {
            testbed: testbed.clone(),
            replica,
            kinds: chosen,
            chance: StdRng::seed_from_u64(seed.wrapping_add(1 + faulters.len() as u64)),
            history: history.clone(),
            sessions: sessions.to_vec(),
            refusal: refusal.clone(),
            stop: stopped.clone(),
        };
        faulters.spawn(faulter.run());
    }
    work.await;
    stop.send_replace(true);
    for faulted in faulters.join_all().await {
        faulted?;
    }
    for replica in 0..*faulty {
        // One may still be armed.
        testbed.ask("cut", &json!({"replica": replica})).await?;
    }
    Ok(())
}

impl Faulter {
    async fn run(mut self) -> Result<(), String> {
        let is_pause = self.kinds.iter().any(|kind| kind == "pause");
        let (least, most) = if is_pause { (2000, 5000) } else { (200, 2000) };
        let mut next = Vec::new();
        while self.sleep(least, most).await {
            if next.is_empty() {
                // So each of them happens.
                next.clone_from(&self.kinds);
                next.shuffle(&mut self.chance);
            }
            if let Some(kind) = next.pop() {
                self.fault(&kind).await.map_err(|problem| format!("{kind}: {problem}"))?;
                self.history.events().faults.push(kind);
            }
        }
        Ok(())
    }

    /// False once the faults are to stop.
    async fn sleep(&mut self, least: u64, most: u64) -> bool {
        let time = Duration::from_millis(self.chance.random_range(least..most));
        tokio::select! {
            () = sleep(time) => true,
            _ = self.stop.wait_for(|stop| *stop) => false,
        }
    }

    async fn ask(&self, what: &str, mut arguments: Value) -> Result<Value, String> {
        arguments["replica"] = self.replica.into();
        self.testbed.ask(what, &arguments).await
    }

    async fn fault(&mut self, kind: &str) -> Result<(), String> {
        match kind {
            "kill" | "drain" => {
                self.ask(kind, json!({})).await?;
                let after: u64 = self.chance.random_range(0..600);
                self.ask("restart", json!({"after_ms": after})).await?;
            }
            "cut" => self.cut().await?,
            // What is held arrives late, or never.
            "hold" => {
                let direction =
                    *["both", "to_client", "to_server"].choose(&mut self.chance).expect("one");
                self.ask("hold", json!({"direction": direction})).await?;
                self.sleep(100, 1500).await;
                if self.chance.random() {
                    self.cut().await?;
                }
                self.ask("release", json!({"direction": direction})).await?;
            }
            "cut_before_data" => {
                let direction = *["to_client", "to_server"].choose(&mut self.chance).expect("one");
                let skip: u64 = self.chance.random_range(0..6);
                self.ask(kind, json!({"direction": direction, "skip": skip})).await?;
            }
            "mute" => {
                self.ask("mute", json!({})).await?;
                self.sleep(100, 1200).await;
                self.ask("unmute", json!({})).await?;
            }
            "lose" => self.lose().await,
            "refuse" => {
                self.ask("refuse", json!({})).await?;
                self.ask("cut", json!({})).await?;
                self.sleep(self.refusal.start, self.refusal.end).await;
                self.ask("accept", json!({})).await?;
            }
            _ => {
                let millis = self.chance.random_range(200..2000);
                let stood_still = tokio::task::spawn_blocking(move || stand_still(millis)).await;
                stood_still.map_err(|error| error.to_string())??;
            }
        }
        Ok(())
    }

    async fn cut(&mut self) -> Result<(), String> {
        let side = *["both", "client", "server"].choose(&mut self.chance).expect("one");
        self.ask("cut", json!({"side": side})).await.map(|_| ())
    }

    async fn lose(&mut self) {
        // One that is held: not each is.
        self.sessions.shuffle(&mut self.chance);
        for session in self.sessions.clone() {
            // A server that is down cannot release a session.
            let asked = self.ask("lose", json!({"team": TEAM, "session": session})).await;
            let Ok(answer) = asked else { return };
            if answer["released"] == true {
                let fence = |key: &str| answer[key].as_i64().unwrap_or_default();
                let (before, after) = (fence("fence_before"), fence("fence"));
                self.history.events().forced.push(Forced { session, before, after });
                return;
            }
        }
    }
}

/// Stops this whole process: neither timers nor messages are seen meanwhile.
fn stand_still(millis: u32) -> Result<(), String> {
    let (pid, seconds) = (std::process::id(), f64::from(millis) / 1000.0);
    let script = format!("kill -STOP {pid}; sleep {seconds:.3}; kill -CONT {pid}");
    let stood = Command::new("sh").args(["-c", &script]).status();
    stood.map(|_| ()).map_err(|error| error.to_string())
}
