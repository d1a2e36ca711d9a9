//! A database that is set back: by point-in-time recovery, by a failover to a standby that
//! lags, by a move to another host, or from a dump or a copied file. Fencing tokens must rise
//! across each of these, or the resources that check them refuse the rightful holder.

use std::{collections::BTreeMap, time::Duration};

use oncegate::grpc::pb::{
    AcquireSessionLeaseRequest, BeginTurnRequest, BindEpicRequest, CleanupRequest,
    CloseSessionRequest, FinishTurnRequest, ForceReleaseSessionLeaseRequest, ListSessionsRequest,
    SessionLease, TurnOutcome, admin_service_client::AdminServiceClient,
    begin_turn_response::Outcome, turn_service_client::TurnServiceClient,
};
use tokio::time::sleep;
use tonic::transport::Channel;

use crate::harness::{
    Client, acquire, connect, event, granted, held, process::Process, release, seconds, session,
};

mod file;
mod postgres;

/// A resource that admits only tokens that are higher than all it has seen of a session.
#[derive(Default)]
struct FencedRegister(BTreeMap<String, i64>);

impl FencedRegister {
    /// Admits a token.
    ///
    /// # Errors
    /// Names the token that it has seen, if that is not lower.
    fn admit(&mut self, session: String, token: i64) -> Result<(), String> {
        match self.0.get(&session) {
            Some(&seen) if seen >= token => {
                Err(format!("{session}: token {seen} and then {token}"))
            }
            _ => {
                self.0.insert(session, token);
                Ok(())
            }
        }
    }
}

/// What happens to a team's sessions after each round of grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Team {
    /// Nothing: their rows stay.
    Kept,
    /// `CloseSession` deletes their rows.
    Closed,
    /// `Cleanup` deletes their rows.
    Swept,
    /// Nothing, but they are used only after the backup: their rows are lost.
    New,
}

const TEAMS: [Team; 4] = [Team::Kept, Team::Closed, Team::Swept, Team::New];

/// Those that are used before the backup too.
const OLD_TEAMS: &[Team] = &[Team::Kept, Team::Closed, Team::Swept];

/// How a session gets a new token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// `AcquireSessionLease`.
    Acquire,
    /// The same, handed over by the holder before.
    Wait,
    /// `BeginTurn`.
    Turn,
    /// `ForceReleaseSessionLease`, which raises the fence.
    Force,
    /// `BindEpic`, which may make the session, and then `AcquireSessionLease`.
    Bind,
}

const WAYS: [Way; 5] = [Way::Acquire, Way::Wait, Way::Turn, Way::Force, Way::Bind];

/// How many rounds of grants are lost: a sequence logs 32 values ahead, so that fewer
/// grants may go unnoticed.
const LOST_ROUNDS: u32 = 5;

/// The bots of a workspace, the service that they ask, and the resource that they write to.
struct Bots {
    register: FencedRegister,
    /// For events that are new every time.
    events: u32,
}

impl Bots {
    fn new() -> Self {
        Self { register: FencedRegister::default(), events: 0 }
    }

    /// Has every session of `teams` granted in every way, and returns which tokens the
    /// register refused.
    async fn round(&mut self, service: &mut Service, teams: &[Team]) -> Vec<String> {
        let mut refused = Vec::new();
        for &team in teams {
            let team_id = format!("{team:?}");
            for way in WAYS {
                self.events += 1;
                let session_id = format!("{way:?}");
                let event_id = format!("Ev{}", self.events);
                for token in service.grant(way, &team_id, &session_id, &event_id).await {
                    let admitted = self.register.admit(format!("{team_id}/{session_id}"), token);
                    refused.extend(admitted.err());
                }
            }
            match team {
                Team::Kept | Team::New => {}
                Team::Closed => service.close(&team_id).await,
                Team::Swept => service.sweep(&team_id).await,
            }
        }
        refused
    }

    /// The rounds of ordinary life, in which nothing is refused.
    async fn live(&mut self, service: &mut Service, rounds: u32, teams: &[Team]) {
        for _ in 0..rounds {
            assert_eq!(self.round(service, teams).await, [""; 0]);
        }
    }

    /// The rounds after the database was set back: none may be refused either.
    async fn live_on(&mut self, service: &mut Service) {
        for round in 0..2 {
            let refused = self.round(service, &TEAMS).await;
            assert_eq!(refused, [""; 0], "round {round}: the rightful holder is refused");
        }
    }
}

/// A real server, and clients of it.
struct Service {
    process: Process,
    leases: Client,
    turns: TurnServiceClient<Channel>,
    admin: AdminServiceClient<Channel>,
}

impl Service {
    /// Starts a server that sweeps nothing unless it is asked to.
    async fn start(url: &str) -> Self {
        let process = Process::start(url, &["--sweep-interval", "1h"]).await;
        let channel = connect(&process.address).await;
        Self {
            leases: process.client().await,
            turns: TurnServiceClient::new(channel.clone()),
            admin: AdminServiceClient::new(channel),
            process,
        }
    }

    /// Ends it at once.
    fn kill(self) {
        self.process.kill();
    }

    async fn acquire(&mut self, team: &str, id: &str, holder: &str) -> SessionLease {
        let request = AcquireSessionLeaseRequest { ttl: seconds(900), ..acquire(team, id, holder) };
        granted(self.leases.acquire_session_lease(request).await.unwrap().into_inner())
    }

    async fn release(&mut self, lease: &SessionLease) {
        let released = self.leases.release_session_lease(release(lease)).await.unwrap();
        assert!(released.into_inner().released);
    }

    /// Has a free session granted, and frees it again. Returns the tokens, in order.
    async fn grant(&mut self, way: Way, team: &str, id: &str, event_id: &str) -> Vec<i64> {
        match way {
            Way::Acquire => {
                let lease = self.acquire(team, id, "a").await;
                self.release(&lease).await;
                vec![lease.fencing_token]
            }
            Way::Wait => {
                let first = self.acquire(team, id, "a").await;
                let waiter = self.wait(team, id).await;
                self.release(&first).await;
                let second = waiter.await.unwrap();
                self.release(&second).await;
                vec![first.fencing_token, second.fencing_token]
            }
            Way::Turn => vec![self.turn(team, id, event_id).await],
            Way::Force => {
                let lease = self.acquire(team, id, "a").await;
                let request = ForceReleaseSessionLeaseRequest {
                    session: session(team, id),
                    actor: "ops".into(),
                    reason: "stuck".into(),
                };
                let forced = self.admin.force_release_session_lease(request).await.unwrap();
                let raised = forced.into_inner().session.unwrap().fencing_token;
                vec![lease.fencing_token, raised]
            }
            Way::Bind => {
                self.bind(team, id, "PROJ-1").await;
                let lease = self.acquire(team, id, "a").await;
                self.release(&lease).await;
                self.bind(team, id, "").await;
                vec![lease.fencing_token]
            }
        }
    }

    /// Queues for a session, and returns once a place is taken.
    async fn wait(&mut self, team: &str, id: &str) -> tokio::task::JoinHandle<SessionLease> {
        let mut client = self.leases.clone();
        let request =
            AcquireSessionLeaseRequest { wait: seconds(600), ..acquire(team, id, "waiter") };
        let waiter = tokio::spawn(async move {
            granted(client.acquire_session_lease(request).await.unwrap().into_inner())
        });
        let mut look = async || {
            let answer = self.leases.acquire_session_lease(acquire(team, id, "x")).await.unwrap();
            held(answer.into_inner()).queue_length
        };
        while look().await == 0 {}
        waiter
    }

    async fn turn(&mut self, team: &str, id: &str, event_id: &str) -> i64 {
        let request = BeginTurnRequest {
            event: event(team, event_id),
            session: session(team, id),
            holder: "a".into(),
            ..Default::default()
        };
        let begun = self.turns.begin_turn(request).await.unwrap().into_inner();
        let Some(Outcome::Granted(granted)) = begun.outcome else { panic!("{begun:?}") };
        let turn = granted.turn.unwrap();
        let request = FinishTurnRequest {
            turn_id: turn.turn_id,
            outcome: TurnOutcome::Succeeded.into(),
            ..Default::default()
        };
        self.turns.finish_turn(request).await.unwrap();
        turn.lease.unwrap().fencing_token
    }

    async fn bind(&mut self, team: &str, id: &str, epic: &str) {
        let request = BindEpicRequest {
            session: session(team, id),
            epic_id: epic.into(),
            actor: "ops".into(),
            ..Default::default()
        };
        self.admin.bind_epic(request).await.unwrap();
    }

    /// Closes all sessions of a team.
    async fn close(&mut self, team: &str) {
        for way in WAYS {
            let request = CloseSessionRequest {
                session: session(team, &format!("{way:?}")),
                actor: "ops".into(),
                ..Default::default()
            };
            assert!(self.admin.close_session(request).await.unwrap().into_inner().closed);
        }
    }

    /// Deletes all sessions of a team, which are idle. A sweep leaves them for a while after their last grant, by the
    /// database's clock.
    async fn sweep(&mut self, team: &str) {
        let request =
            CleanupRequest { team_id: team.into(), older_than: seconds(0), ..Default::default() };
        let list = ListSessionsRequest { team_id: team.into(), ..Default::default() };
        loop {
            self.leases.cleanup(request.clone()).await.unwrap();
            let listed = self.admin.list_sessions(list.clone()).await.unwrap().into_inner();
            if listed.sessions.is_empty() {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}
