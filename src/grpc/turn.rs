//! `TurnService`: reads a request, asks, writes the answer.

use std::time::Duration;

use futures_util::{StreamExt as _, stream, stream::BoxStream};
use tokio::{sync::oneshot, time::Instant};
use tonic::{Request, Response, Status, Streaming};

use super::{
    alive::with_signs_of_life,
    caller::Caller,
    convert,
    deadline::Deadline,
    pb::{self, turn_service_server::TurnService},
    status::{self, Problem},
};
use crate::{
    domain::Invalid,
    session::StreamEvent,
    telemetry::call,
    turn::{Closed, Turns},
};

/// The service, as the server runs it.
pub struct TurnCalls {
    /// What it asks.
    pub turns: Turns,
    /// How long one call may take, a wait not counted.
    pub timeout: Duration,
}

#[tonic::async_trait]
impl TurnService for TurnCalls {
    async fn begin_turn(
        &self,
        request: Request<pb::BeginTurnRequest>,
    ) -> Result<Response<pb::BeginTurnResponse>, Status> {
        let deadline = Deadline::of(request.metadata(), self.timeout);
        let caller = Caller::current()?;
        let (begin, wait) = caller.read(|teams| convert::begin(teams, request.into_inner()))?;
        let (wait, event) = (deadline.wait(wait), begin.event.key.clone());
        call::team(&event.team);
        let beginning = self.turns.begin(begin, wait);
        let beginning = caller.while_allowed(&event.team, wait, beginning);
        let outcome = deadline.after(wait).bound(beginning).await?;
        let outcome = convert::begun(event, outcome, deadline.arrived());
        Ok(Response::new(pb::BeginTurnResponse { outcome: Some(outcome) }))
    }

    async fn renew_turn(
        &self,
        request: Request<pb::RenewTurnRequest>,
    ) -> Result<Response<pb::RenewTurnResponse>, Status> {
        let deadline = Deadline::of(request.metadata(), self.timeout);
        let caller = Caller::current()?;
        let renew = caller.read(|teams| convert::renew_turn(teams, &request.into_inner()))?;
        call::team(&renew.turn.event.team);
        let turn = deadline.bound(self.turns.renew(renew)).await?;
        let turn = convert::turn(turn, deadline.arrived());
        Ok(Response::new(pb::RenewTurnResponse { turn: Some(turn) }))
    }

    async fn finish_turn(
        &self,
        request: Request<pb::FinishTurnRequest>,
    ) -> Result<Response<pb::FinishTurnResponse>, Status> {
        let deadline = Deadline::of(request.metadata(), self.timeout);
        let caller = Caller::current()?;
        let finish = caller.read(|teams| convert::finish(teams, request.into_inner()))?;
        let key = finish.turn.event.clone();
        call::team(&key.team);
        let row = deadline.bound(self.turns.finish(finish)).await?;
        Ok(Response::new(convert::finish_response(key, row)))
    }

    type RunTurnStream = BoxStream<'static, Result<pb::RunTurnResponse, Status>>;

    async fn run_turn(
        &self,
        mut request: Request<Streaming<pb::RunTurnRequest>>,
    ) -> Result<Response<Self::RunTurnStream>, Status> {
        use pb::run_turn_request::Step;
        let arrived = Instant::now();
        let caller = Caller::current()?;
        let stream = request.extensions_mut().remove().unwrap_or_default();
        let mut steps = request.into_inner();
        let first = steps.message().await.map_err(status::of_framework)?;
        let Some(Step::Begin(first)) = first.and_then(|first| first.step) else {
            return Err(Problem::from(Invalid::new("begin", "must come first")).into());
        };
        let (begin, wait) = caller.read(|teams| convert::begin(teams, first))?;
        let key = begin.event.key.clone();
        call::team(&key.team);
        let (close, closed) = oneshot::channel();
        let mut waiting = caller.begin_wait(wait)?;
        let stream = caller.of_stream(&key.team, stream);
        let events = self.turns.run(begin, wait, self.timeout, closed, stream);
        let events = events.into_stream().map(move |event| {
            // It has the call's place in flight, if the call was begun by another principal.
            let _in_flight = &caller;
            if !matches!(event, Ok(StreamEvent::Queued(_))) {
                drop(waiting.take());
            }
            event
                .map(|event| convert::run_event(&key, event, arrived))
                .map_err(|error| Problem::from(error).into())
        });
        let events = with_signs_of_life(events, || Ok(convert::run_alive()));
        // The caller's steps are read beside the events that it is sent. If one is wrong, the call
        // ends with that, and `close` is dropped: the stream has broken, and the turn keeps its
        // grace. The same if the call breaks, or is cancelled: tonic answers a cancelled call as
        // a half-closed one, but hyper looks for a reset before it polls an answer, and so this.
        let reading = async move {
            let step = steps.message().await.map_err(status::of_framework)?;
            let step = step.and_then(|request| request.step);
            let ending = match step {
                Some(Step::End(last)) => convert::ending_of(last).map(Closed::With),
                Some(Step::Begin(_)) => Err(Invalid::new("begin", "must come once")),
                None => Ok(Closed::Without),
            };
            let _ = close.send(ending.map_err(Problem::from)?);
            Ok(())
        };
        let complaint = stream::once(reading)
            .filter_map(|read: Result<(), Status>| async { read.err().map(Err) });
        let all = stream::select(events.map(Some).chain(stream::iter([None])), complaint.map(Some));
        // The last word is the last.
        let all = all.take_while(|event| std::future::ready(event.is_some()));
        Ok(Response::new(all.filter_map(std::future::ready).boxed()))
    }
}
