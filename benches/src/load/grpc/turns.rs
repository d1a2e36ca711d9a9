//! Handling events: by a turn, and by the four calls that it replaces.

use oncegate::grpc::pb;
use prost::Message as _;

use super::{Fence, Keys, Lease, Script, Step, encode, hot_session, rises};

/// A new event of the team.
fn new_event(keys: &mut Keys) -> pb::EventKey {
    let mut id = String::new();
    keys.rising(&mut id);
    let key = Some(pb::event_key::Key::EventId(id));
    pb::EventKey { team_id: keys.team().to_owned(), key, aliases: Vec::new(), ..Default::default() }
}

pub(super) struct Turn {
    keys: Keys,
    begins: Vec<pb::BeginTurnRequest>,
    /// The turn that each caller has.
    turns: Vec<Option<String>>,
    /// That of the session, if all callers share one.
    fence: Option<Fence>,
}

impl Turn {
    pub(super) fn new(keys: Keys, callers: usize) -> Self {
        let session = |caller| {
            let key = Some(pb::session_key::Key::SessionId(keys.session(caller)));
            Some(pb::SessionKey { team_id: keys.team().to_owned(), key, ..Default::default() })
        };
        let begin = |caller| pb::BeginTurnRequest {
            session: session(caller),
            holder: "bot-7d9f8b6c5-x2x7v".to_owned(),
            ..Default::default()
        };
        let begins = (0..callers).map(begin).collect();
        Self { keys, begins, turns: vec![None; callers], fence: None }
    }

    /// The same in one session that all callers share: each waits for it.
    pub(super) fn hot(keys: Keys, callers: usize, fence: Fence) -> Self {
        let session = hot_session(&keys);
        let mut turn = Self::new(keys.of_hot_session(), callers);
        for begin in &mut turn.begins {
            begin.session = Some(session.clone());
            begin.wait = Some(prost_types::Duration { seconds: 600, nanos: 0 });
        }
        Self { fence: Some(fence), ..turn }
    }
}

impl Script for Turn {
    fn ask(&mut self, caller: usize, message: &mut Vec<u8>) -> anyhow::Result<&'static str> {
        if let Some(turn_id) = self.turns[caller].clone() {
            let outcome = pb::TurnOutcome::Succeeded.into();
            let result = b"answered".to_vec();
            encode(
                &pb::FinishTurnRequest {
                    turn_id,
                    outcome,
                    result,
                    ttl: None,
                    ..Default::default()
                },
                message,
            )?;
            return Ok("/oncegate.v1.TurnService/FinishTurn");
        }
        let begin = &mut self.begins[caller];
        begin.event = Some(new_event(&mut self.keys));
        encode(begin, message)?;
        Ok("/oncegate.v1.TurnService/BeginTurn")
    }

    fn hear(&mut self, caller: usize, answer: &[u8]) -> anyhow::Result<Step> {
        use pb::begin_turn_response::Outcome::Granted;
        if self.turns[caller].take().is_some() {
            let event = pb::FinishTurnResponse::decode(answer)?.event.unwrap_or_default();
            let done = event.state() == pb::EventState::Processed;
            return Ok(if done { Step::Done(1) } else { Step::Wrong });
        }
        match pb::BeginTurnResponse::decode(answer)?.outcome {
            Some(Granted(pb::TurnGranted { turn: Some(turn) }))
                if turn
                    .lease
                    .as_ref()
                    .is_some_and(|lease| rises(self.fence.as_ref(), lease.fencing_token)) =>
            {
                self.turns[caller] = Some(turn.turn_id);
                Ok(Step::More)
            }
            _ => Ok(Step::Wrong),
        }
    }

    fn failed(&mut self, caller: usize) {
        self.turns[caller] = None;
    }
}

/// What a caller asks next.
#[derive(Clone, Copy)]
enum Next {
    Look,
    Acquire,
    Mark,
    Release,
}

pub(super) struct FourCalls {
    keys: Keys,
    leases: Lease,
    events: Vec<Option<pb::EventKey>>,
    next: Vec<Next>,
}

impl FourCalls {
    pub(super) fn new(keys: Keys, callers: usize) -> Self {
        let leases = Lease::new(&keys, callers);
        Self { keys, leases, events: vec![None; callers], next: vec![Next::Look; callers] }
    }
}

impl Script for FourCalls {
    fn ask(&mut self, caller: usize, message: &mut Vec<u8>) -> anyhow::Result<&'static str> {
        match self.next[caller] {
            Next::Look => {
                let event = Some(new_event(&mut self.keys));
                self.events[caller].clone_from(&event);
                encode(&pb::IsProcessedRequest { event, ..Default::default() }, message)?;
                Ok("/oncegate.v1.IdempotencyService/IsProcessed")
            }
            Next::Mark => {
                let event = self.events[caller].take();
                encode(&pb::MarkProcessedRequest { event, ..Default::default() }, message)?;
                Ok("/oncegate.v1.IdempotencyService/MarkProcessed")
            }
            Next::Acquire | Next::Release => self.leases.ask(caller, message),
        }
    }

    fn hear(&mut self, caller: usize, answer: &[u8]) -> anyhow::Result<Step> {
        let next = &mut self.next[caller];
        let (then, step) = match *next {
            Next::Look => {
                let new = !pb::IsProcessedResponse::decode(answer)?.processed;
                (Next::Acquire, if new { Step::More } else { Step::Wrong })
            }
            Next::Acquire => (Next::Mark, self.leases.hear(caller, answer)?),
            Next::Mark => {
                let first = pb::MarkProcessedResponse::decode(answer)?.first;
                (Next::Release, if first { Step::More } else { Step::Wrong })
            }
            Next::Release => (Next::Look, self.leases.hear(caller, answer)?),
        };
        *next = then;
        Ok(step)
    }

    fn failed(&mut self, caller: usize) {
        self.leases.failed(caller);
        self.next[caller] = Next::Look;
    }
}
