//! The loads on gRPC servers: ours, and etcd's.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use oncegate::grpc::pb;
use prost::Message as _;

use super::{
    Report, Spec, Tally, Work,
    http2::{Connection, Ended},
    keys::Keys,
    process_cpu,
};

mod etcd;
mod party;
mod turns;

pub use party::{etcd as etcd_party, oncegate as oncegate_party};

/// How long a caller that was refused stays away, as the server's `RetryInfo`
/// tells it to.
const BACK_OFF: Duration = Duration::from_millis(500);

/// What a caller does: one request after another.
trait Script {
    /// Writes the next request of `caller`, and answers which method it calls.
    fn ask(&mut self, caller: usize, message: &mut Vec<u8>) -> anyhow::Result<&'static str>;

    /// Reads the answer to it.
    fn hear(&mut self, caller: usize, answer: &[u8]) -> anyhow::Result<Step>;

    /// The request failed: the caller begins anew.
    fn failed(&mut self, _caller: usize) {}
}

/// What an answer meant to its caller.
enum Step {
    /// This many things are done.
    Done(u64),
    /// There is more to do before anything is.
    More,
    /// It is not the answer that the work expects.
    Wrong,
}

/// Runs one load, and reports.
pub fn run(spec: &Spec) -> anyhow::Result<Report> {
    ensure!(spec.callers >= spec.connections, "every connection needs a caller");
    ensure!(spec.connections >= spec.targets.len(), "every replica needs a connection");
    let begin = Instant::now();
    let from = begin + Duration::from_secs_f64(spec.warmup);
    let until = from + Duration::from_secs_f64(spec.seconds);
    let fence = Fence::default();
    let threads: Vec<_> = (0..spec.connections)
        .map(|number| {
            let (spec, fence) = (spec.clone(), fence.clone());
            let share = spec.most.map(|most| most.div_ceil(spec.connections as u64));
            let tally = Tally::new(from, until).at_most(share);
            thread::spawn(move || connection(&spec, number, fence, tally))
        })
        .collect();
    thread::sleep(from.saturating_duration_since(Instant::now()));
    let before = process_cpu()?;
    if spec.most.is_none() {
        thread::sleep(until.saturating_duration_since(Instant::now()));
    }
    let used = process_cpu()? - before;
    let tallies = threads
        .into_iter()
        .map(|thread| thread.join().ok().context("a thread of callers panicked")?)
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Tally::report(tallies, used))
}

fn connection(spec: &Spec, number: usize, fence: Fence, tally: Tally) -> anyhow::Result<Tally> {
    // What does not divide evenly goes to the first connections.
    let extra = usize::from(number < spec.callers % spec.connections);
    let callers = spec.callers / spec.connections + extra;
    let keys = Keys::new(spec.seed, number).of(spec.team);
    let target = &spec.targets[number % spec.targets.len()];
    match spec.work {
        Work::Mark => drive(spec, target, callers, Mark::new(keys, Ids::Rising), tally),
        Work::MarkRandom => drive(spec, target, callers, Mark::new(keys, Ids::Random), tally),
        Work::MarkKnown => drive(spec, target, callers, Mark::new(keys, Ids::Known), tally),
        Work::Batch => drive(spec, target, callers, Batch::new(keys, false, spec), tally),
        Work::BatchRandom => drive(spec, target, callers, Batch::new(keys, true, spec), tally),
        Work::Empty => drive(spec, target, callers, Empty, tally),
        Work::Lease => drive(spec, target, callers, Lease::new(&keys, callers), tally),
        Work::HotLease => drive(spec, target, callers, Lease::hot(&keys, callers, fence), tally),
        Work::Turn => drive(spec, target, callers, turns::Turn::new(keys, callers), tally),
        Work::HotTurn => {
            drive(spec, target, callers, turns::Turn::hot(keys, callers, fence), tally)
        }
        Work::FourCalls => {
            drive(spec, target, callers, turns::FourCalls::new(keys, callers), tally)
        }
        Work::EtcdPut => drive(spec, target, callers, etcd::Put::new(keys), tally),
        Work::EtcdLock => drive(spec, target, callers, etcd::Lock::new(&keys, callers), tally),
    }
}

/// Runs the callers of one connection until the load is over.
fn drive(
    spec: &Spec,
    target: &str,
    callers: usize,
    mut script: impl Script,
    mut tally: Tally,
) -> anyhow::Result<Tally> {
    let mut connection = Connection::open_with(target, &spec.access)?;
    let timeout = spec.timeout_ms.map(|millis| format!("{millis}m"));
    let timeout = timeout.as_deref();
    let mut message = Vec::new();
    // When what each caller does at present began: its call, or its cycle.
    let mut begun = vec![Instant::now(); callers];
    // Those who were refused, and when they come again.
    let mut away: VecDeque<(Instant, usize)> = VecDeque::new();
    for caller in 0..callers {
        let path = script.ask(caller, &mut message)?;
        connection.call(caller, path, timeout, &message)?;
    }
    loop {
        let now = Instant::now();
        if tally.over(now) {
            return Ok(tally);
        }
        while let Some(&(until, caller)) = away.front().filter(|(until, _)| *until <= now) {
            away.pop_front();
            begun[caller] = until.max(now);
            let path = script.ask(caller, &mut message)?;
            connection.call(caller, path, timeout, &message)?;
        }
        let patience = away.front().map_or(Duration::from_millis(100), |(until, _)| {
            until.saturating_duration_since(now).max(Duration::from_millis(1))
        });
        connection.exchange(Some(patience))?;
        let now = Instant::now();
        connection.take(&mut |connection, Ended { caller, message: answer }| {
            let Some(answer) = answer else {
                tally.failed(begun[caller], now);
                script.failed(caller);
                away.push_back((now + BACK_OFF, caller));
                return Ok(());
            };
            match script.hear(caller, answer)? {
                Step::Done(count) => {
                    tally.done(begun[caller], now, count);
                    begun[caller] = now;
                }
                Step::More => {}
                Step::Wrong => tally.wrong(),
            }
            let path = script.ask(caller, &mut message)?;
            connection.call(caller, path, timeout, &message)
        })?;
    }
}

fn encode(request: &impl prost::Message, message: &mut Vec<u8>) -> anyhow::Result<()> {
    message.clear();
    Ok(request.encode(message)?)
}

/// Which events are marked.
#[derive(Clone, Copy, PartialEq)]
enum Ids {
    Rising,
    Random,
    /// The same few, over and over.
    Known,
}

/// How many events a connection knows.
const KNOWN: u64 = 1_000;

fn event_key(team: &str) -> pb::EventKey {
    let key = Some(pb::event_key::Key::EventId(String::new()));
    pb::EventKey { team_id: team.to_owned(), key, aliases: Vec::new(), ..Default::default() }
}

/// The text of the event id, to be written anew.
fn event_id(request: &mut pb::MarkProcessedRequest) -> &mut String {
    match request.event.as_mut().and_then(|event| event.key.as_mut()) {
        Some(pb::event_key::Key::EventId(id)) => id,
        _ => unreachable!("made by event_key"),
    }
}

struct Mark {
    keys: Keys,
    ids: Ids,
    request: pb::MarkProcessedRequest,
    asked: u64,
    /// How many of the known events have been marked at least once.
    seen: u64,
}

impl Mark {
    fn new(keys: Keys, ids: Ids) -> Self {
        let event = Some(event_key(keys.team()));
        let request = pb::MarkProcessedRequest { event, ..Default::default() };
        Self { keys, ids, request, asked: 0, seen: 0 }
    }
}

impl Script for Mark {
    fn ask(&mut self, _: usize, message: &mut Vec<u8>) -> anyhow::Result<&'static str> {
        let id = event_id(&mut self.request);
        match self.ids {
            Ids::Rising => self.keys.rising(id),
            Ids::Random => self.keys.random(id),
            Ids::Known => self.keys.known(self.asked % KNOWN, id),
        }
        self.asked += 1;
        encode(&self.request, message)?;
        Ok("/oncegate.v1.IdempotencyService/MarkProcessed")
    }

    fn hear(&mut self, _: usize, answer: &[u8]) -> anyhow::Result<Step> {
        let answer = pb::MarkProcessedResponse::decode(answer)?;
        if self.ids != Ids::Known {
            return Ok(if answer.first { Step::Done(1) } else { Step::Wrong });
        }
        // The first answers are those of new events; after that none may be.
        self.seen += 1;
        Ok(if answer.first && self.seen > 2 * KNOWN { Step::Wrong } else { Step::Done(1) })
    }
}

struct Batch {
    keys: Keys,
    random: bool,
    request: pb::BatchMarkProcessedRequest,
}

impl Batch {
    fn new(keys: Keys, random: bool, spec: &Spec) -> Self {
        let event = Some(event_key(keys.team()));
        let ttl = spec.ttl_s.map(|seconds| prost_types::Duration { seconds, nanos: 0 });
        let item = pb::MarkProcessedRequest { event, ttl, ..Default::default() };
        let request = pb::BatchMarkProcessedRequest { requests: vec![item; spec.items] };
        Self { keys, random, request }
    }
}

impl Script for Batch {
    fn ask(&mut self, _: usize, message: &mut Vec<u8>) -> anyhow::Result<&'static str> {
        for item in &mut self.request.requests {
            let id = event_id(item);
            if self.random { self.keys.random(id) } else { self.keys.rising(id) }
        }
        encode(&self.request, message)?;
        Ok("/oncegate.v1.IdempotencyService/BatchMarkProcessed")
    }

    fn hear(&mut self, _: usize, answer: &[u8]) -> anyhow::Result<Step> {
        use pb::batch_mark_processed_result::Result::Response;
        let answer = pb::BatchMarkProcessedResponse::decode(answer)?;
        let first = |result: &pb::BatchMarkProcessedResult| matches!(&result.result, Some(Response(response)) if response.first);
        let firsts = answer.results.iter().filter(|result| first(result)).count();
        let all = firsts == self.request.requests.len();
        Ok(if all { Step::Done(firsts as u64) } else { Step::Wrong })
    }
}

/// The call that costs nothing but being a call.
struct Empty;

impl Script for Empty {
    fn ask(&mut self, _: usize, message: &mut Vec<u8>) -> anyhow::Result<&'static str> {
        let request = tonic_health::pb::HealthCheckRequest { service: "liveness".to_owned() };
        encode(&request, message)?;
        Ok("/grpc.health.v1.Health/Check")
    }

    fn hear(&mut self, _: usize, _: &[u8]) -> anyhow::Result<Step> {
        Ok(Step::Done(1))
    }
}

struct Lease {
    acquires: Vec<pb::AcquireSessionLeaseRequest>,
    /// The lease that each caller holds.
    held: Vec<Option<String>>,
    /// That of the session, if all callers share one.
    fence: Option<Fence>,
}

impl Lease {
    fn new(keys: &Keys, callers: usize) -> Self {
        let acquire = |caller: usize| pb::AcquireSessionLeaseRequest {
            session: Some(pb::SessionKey {
                team_id: keys.team().to_owned(),
                key: Some(pb::session_key::Key::SessionId(keys.session(caller))),
                ..Default::default()
            }),
            holder: "bot-7d9f8b6c5-x2x7v".to_owned(),
            ..Default::default()
        };
        let acquires = (0..callers).map(acquire).collect();
        Self { acquires, held: vec![None; callers], fence: None }
    }

    /// The same, for callers that wait for their session.
    fn waiting(mut self) -> Self {
        for acquire in &mut self.acquires {
            acquire.wait = Some(prost_types::Duration { seconds: 600, nanos: 0 });
        }
        self
    }

    /// Callers that wait for one session, which those of the other connections share.
    fn hot(keys: &Keys, callers: usize, fence: Fence) -> Self {
        let mut lease = Self::new(keys, callers).waiting();
        for acquire in &mut lease.acquires {
            acquire.session = Some(hot_session(keys));
        }
        Self { fence: Some(fence), ..lease }
    }
}

/// The latest fencing token of a session that all callers share.
#[derive(Clone, Default)]
struct Fence(Arc<AtomicI64>);

impl Fence {
    /// Whether a grant is a later one than all that any caller of the session has seen. Every
    /// caller sees its grant before it releases, so that two holders at once are noticed.
    fn rises(&self, token: i64) -> bool {
        self.0.fetch_max(token, Ordering::Relaxed) < token
    }
}

fn hot_session(keys: &Keys) -> pb::SessionKey {
    let (team_id, session) = keys.hot_session();
    pb::SessionKey {
        team_id: team_id.to_owned(),
        key: Some(pb::session_key::Key::SessionId(session)),
        ..Default::default()
    }
}

/// Whether nothing shows that a grant is not later than all others.
fn rises(fence: Option<&Fence>, token: i64) -> bool {
    fence.is_none_or(|fence| fence.rises(token))
}

impl Script for Lease {
    fn ask(&mut self, caller: usize, message: &mut Vec<u8>) -> anyhow::Result<&'static str> {
        let acquire = &self.acquires[caller];
        if let Some(lease_id) = &self.held[caller] {
            let session = acquire.session.clone();
            let lease_id = lease_id.clone();
            encode(&pb::ReleaseSessionLeaseRequest { session, lease_id }, message)?;
            return Ok("/oncegate.v1.IdempotencyService/ReleaseSessionLease");
        }
        encode(acquire, message)?;
        Ok("/oncegate.v1.IdempotencyService/AcquireSessionLease")
    }

    fn hear(&mut self, caller: usize, answer: &[u8]) -> anyhow::Result<Step> {
        use pb::acquire_session_lease_response::Outcome::Lease;
        if self.held[caller].take().is_some() {
            let answer = pb::ReleaseSessionLeaseResponse::decode(answer)?;
            return Ok(if answer.released { Step::Done(1) } else { Step::Wrong });
        }
        match pb::AcquireSessionLeaseResponse::decode(answer)?.outcome {
            Some(Lease(lease)) if rises(self.fence.as_ref(), lease.fencing_token) => {
                self.held[caller] = Some(lease.lease_id);
                Ok(Step::More)
            }
            _ => Ok(Step::Wrong),
        }
    }

    fn failed(&mut self, caller: usize) {
        self.held[caller] = None;
    }
}
