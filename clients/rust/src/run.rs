//! Turns as functions and as scopes.

use std::{collections::HashMap, fmt, future::Future, sync::Arc, time::Duration};

use crate::{
    Busy, Codec, Delivery, Duplicate, Error, Gate, GaveUp, InProgress, Json, NotGranted,
    OnUnavailable, Stored, Turn,
    failure::Problem,
    hold::{self, Hold},
    options::Config,
    pb::{TurnEnd, TurnOutcome},
    turn::{TurnFlow, short},
};

/// What came of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "it says whether the event was handled"]
pub enum Outcome<T> {
    /// The handler ran, and returned this.
    Ran(T),
    /// The handler ran, and refused the event for good.
    Rejected {
        /// Why.
        detail: String,
    },
    /// The event has been handled; acknowledge it. The result is what the run returned that handled
    /// it; `None` if it returned nothing.
    Duplicate(Duplicate<Option<T>>),
    /// All attempts failed, and no run has handled the event; acknowledge it, and alert a person.
    GaveUp(GaveUp),
    /// Another run handles the event; refuse the delivery if its sender redelivers.
    InProgress(InProgress),
    /// Another turn has the conversation, and the wait is over.
    Busy(Busy),
    /// The server is unavailable, and the gate is to drop events then.
    Dropped,
}

impl<T> Outcome<T> {
    /// What the handler returned, or the run that handled a duplicate.
    #[must_use]
    pub fn value(self) -> Option<T> {
        match self {
            Self::Ran(value) => Some(value),
            Self::Duplicate(duplicate) => duplicate.result,
            _ => None,
        }
    }

    /// When to ask again, if another run has the event or the conversation.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::InProgress(other) => Some(other.retry_after),
            Self::Busy(busy) => Some(busy.retry_after),
            _ => None,
        }
    }
}

/// A request for a turn; [`Gate::turn`] and [`Gate::adopt`] make one.
#[must_use = "a request does nothing until `run` or `begin`"]
pub struct TurnRequest<C = Json> {
    gate: Gate,
    delivery: Delivery,
    adopts: Option<String>,
    config: Config,
    codec: C,
}

/// A request for a turn without a conversation, whose result is replayed; [`Gate::once`] makes one.
#[must_use = "a request does nothing until `run`"]
pub struct OnceRequest<C = Json> {
    pub(crate) turn: TurnRequest<C>,
}

/// A turn that its holder has to end, by [`succeed`](Self::succeed), [`reject`](Self::reject),
/// [`fail`](Self::fail) or [`detach`](Turn::detach). If it is dropped, the turn fails, in the
/// background. It has what a [`Turn`] has.
#[must_use = "the turn fails when it is dropped"]
pub struct TurnScope<C = Json> {
    turn: Turn,
    codec: C,
}

/// Options of one turn.
macro_rules! turn_options {
    ($request:ident $(, $field:ident)?) => {
        impl<C> $request<C> {
            /// How long the turn runs unless it is renewed; default: the gate's.
            pub fn ttl(mut self, ttl: Duration) -> Self {
                self$(.$field)?.config.ttl = ttl;
                self
            }

            /// How long to try while the server is unavailable or overloaded; default: the gate's.
            pub fn patience(mut self, patience: Duration) -> Self {
                self$(.$field)?.config.patience = patience;
                self
            }

            /// What happens after the patience; default: the gate's.
            pub fn on_unavailable(mut self, then: OnUnavailable) -> Self {
                self$(.$field)?.config.on_unavailable = then;
                self
            }

            /// After how many failed attempts the event is given up; default: the gate's.
            pub fn max_attempts(mut self, attempts: u32) -> Self {
                self$(.$field)?.config.max_attempts = attempts;
                self
            }

            /// How long the event stays processed, instead of the delivery's TTL. For an adopted turn,
            /// which has no delivery.
            pub fn event_ttl(mut self, ttl: Duration) -> Self {
                self$(.$field)?.config.event_ttl = Some(ttl);
                self
            }
        }
    };
}

impl TurnRequest {
    pub(crate) fn new(gate: Gate, delivery: Delivery, adopts: Option<String>) -> Self {
        let config = gate.inner.config.clone();
        Self { gate, delivery, adopts, config, codec: Json }
    }
}

impl<C> TurnRequest<C> {
    /// How long to queue while the conversation is busy. 0 to 10 min; default 0.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.config.wait = wait;
        self
    }

    /// Binds the session to the work that it is for, such as an issue key.
    pub fn epic(mut self, id: impl Into<String>) -> Self {
        self.config.epic = id.into();
        self
    }

    /// Is shown with the turn. At most 8.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.labels.insert(name.into(), value.into());
        self
    }

    /// Are shown with the turn. At most 8.
    pub fn labels(mut self, labels: HashMap<String, String>) -> Self {
        self.config.labels = labels;
        self
    }

    /// How the result is stored. Default: [`Json`].
    pub fn codec<D>(self, codec: D) -> TurnRequest<D> {
        let Self { gate, delivery, adopts, config, .. } = self;
        TurnRequest { gate, delivery, adopts, config, codec }
    }

    /// Waits for the turn. Dropping the future leaves the queue.
    ///
    /// ```no_run
    /// # use oncegate_client::{Delivery, Error, Gate};
    /// # async fn example(gate: Gate, delivery: Delivery) -> Result<(), Error> {
    /// let turn = gate.turn(delivery).begin().await?;
    /// tokio::select! {
    ///     reply = answer() => turn.succeed(&reply).await,
    ///     lost = turn.lost() => Err(lost), // stop working, another run may have it
    /// }
    /// # }
    /// # async fn answer() -> u64 { 1 }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NotGranted`] if there is no turn; [`Error::Unavailable`], [`Error::Overloaded`],
    /// [`Error::Denied`], [`Error::EpicMismatch`], [`Error::PayloadMismatch`] or [`Error::Invalid`].
    /// An adopted turn that has ended is [`Error::TurnLost`].
    pub async fn begin(self) -> Result<TurnScope<C>, Error> {
        let (turn, codec) = self.enter().await;
        Ok(TurnScope { turn: turn?, codec })
    }

    /// Runs a handler in the turn. What it returns is stored, and duplicates get it.
    ///
    /// If the turn is lost, the handler's future is dropped, and the result is [`Error::TurnLost`]. If
    /// the handler returns [`Turn::reject`], the event is never delivered again; another error fails
    /// the turn, and comes out as it is. If the future of `run` is dropped, the turn fails at once.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use oncegate_client::{Error, Gate, Outcome, slack};
    /// # async fn example(gate: Gate, body: Vec<u8>) -> Result<(), Error> {
    /// let outcome = gate
    ///     .turn(slack(&body))
    ///     .wait(Duration::from_secs(20))
    ///     .run(|turn| async move {
    ///         let reply = answer(&body).await?;
    ///         save(&reply, turn.fence()).await?;
    ///         Ok::<_, Error>(reply)
    ///     })
    ///     .await?;
    /// # let _ = outcome; Ok(()) }
    /// # async fn answer(_: &[u8]) -> Result<String, Error> { Ok(String::new()) }
    /// # async fn save(_: &str, _: Option<i64>) -> Result<(), Error> { Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// The handler's own, and those of [`TurnRequest::begin`] and [`TurnScope::succeed`] other than
    /// [`Error::NotGranted`].
    pub async fn run<T, E, F>(self, handler: impl FnOnce(Turn) -> F) -> Result<Outcome<T>, E>
    where
        C: Codec<T>,
        E: From<Error> + fmt::Display,
        F: Future<Output = Result<T, E>>,
    {
        let (turn, codec) = self.enter().await;
        match turn {
            Ok(turn) => match handle(TurnScope { turn, codec }, handler).await? {
                Ok(value) => Ok(Outcome::Ran(value)),
                Err((detail, _)) => Ok(Outcome::Rejected { detail }),
            },
            Err(Error::NotGranted(why)) => Ok(match *why {
                NotGranted::Duplicate(Duplicate { result, outcome, detail }) => {
                    let result = result.decode_with(&codec)?;
                    Outcome::Duplicate(Duplicate { result, outcome, detail })
                }
                NotGranted::GaveUp(why) => Outcome::GaveUp(why),
                NotGranted::InProgress(why) => Outcome::InProgress(why),
                NotGranted::Busy(why) => Outcome::Busy(why),
                NotGranted::Dropped => Outcome::Dropped,
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the turn.
    async fn enter(self) -> (Result<Turn, Error>, C) {
        let Self { gate, delivery, adopts, config, codec } = self;
        let turn = async {
            config.check()?;
            let hold = Hold::new(gate.inner.clone(), config, false);
            let flow = TurnFlow::new(hold, delivery);
            let begun = match adopts {
                Some(id) => hold::start(&flow, flow.adopt(id)).await,
                None => hold::start(&flow, hold::begin(&flow)).await,
            };
            started(&flow, begun)?;
            Ok(Turn { flow })
        };
        // It is large, and the future of a handler is not to be.
        (Box::pin(turn).await, codec)
    }
}

impl<C> OnceRequest<C> {
    /// How the result is stored. Default: [`Json`].
    pub fn codec<D>(self, codec: D) -> OnceRequest<D> {
        OnceRequest { turn: self.turn.codec(codec) }
    }

    /// Runs a handler once for each event, and returns its stored result to duplicates.
    ///
    /// # Errors
    ///
    /// As [`TurnRequest::run`], and [`Error::NotGranted`] while another run has the event. It is also
    /// for a duplicate without a result of this type, such as one of an event that was rejected.
    pub async fn run<T, E, F>(self, handler: impl FnOnce(Turn) -> F) -> Result<T, E>
    where
        C: Codec<T>,
        E: From<Error> + fmt::Display,
        F: Future<Output = Result<T, E>>,
    {
        let (turn, codec) = self.turn.enter().await;
        let error = match turn {
            Ok(turn) => {
                let came = handle(TurnScope { turn, codec }, handler).await?;
                return came.map_err(|(_, error)| error);
            }
            Err(error) => error,
        };
        let Some(NotGranted::Duplicate(Duplicate { result, .. })) = error.not_granted() else {
            return Err(error.into());
        };
        match result.decode_with(&codec)? {
            Some(value) => Ok(value),
            None => codec.decode(result).map_err(|_| error.into()),
        }
    }
}

/// What the handler returned, or why it refused the event, with its error.
pub(crate) type Handled<T, E> = Result<T, (String, E)>;

/// Runs a handler in a turn, and ends the turn.
pub(crate) async fn handle<C, T, E, F>(
    scope: TurnScope<C>,
    handler: impl FnOnce(Turn) -> F,
) -> Result<Handled<T, E>, E>
where
    C: Codec<T>,
    E: From<Error> + fmt::Display,
    F: Future<Output = Result<T, E>>,
{
    let returned = tokio::select! {
        biased;
        returned = handler(scope.turn.clone()) => returned,
        lost = scope.turn.lost() => return Err(lost.into()),
    };
    match returned {
        Ok(value) => {
            scope.succeed(&value).await?;
            Ok(Ok(value))
        }
        Err(error) => {
            if let Some(detail) = scope.turn.rejection() {
                scope.reject(detail.clone()).await?;
                return Ok(Err((detail, error)));
            }
            scope.fail(format!("{error:#}")).await;
            Err(error)
        }
    }
}

impl<C> TurnScope<C> {
    /// The turn, to be looked at elsewhere.
    #[must_use]
    pub fn turn(&self) -> &Turn {
        &self.turn
    }

    /// Ends the turn: the event is handled, and duplicates get the result. Nothing is stored for `()`.
    ///
    /// # Errors
    ///
    /// [`Error::TurnLost`] or [`Error::OutcomeUnknown`], with the result as their value; or
    /// [`Error::Invalid`] for a result that is too large, and [`Error::Unencodable`], which fail the
    /// turn.
    pub async fn succeed<T>(self, result: &T) -> Result<(), Error>
    where
        C: Codec<T>,
    {
        let stored = match self.codec.encode(result) {
            Ok(stored) => stored,
            Err(problem) => {
                self.fail(format!("the result cannot be encoded: {problem}")).await;
                return Err(Error::Unencodable { problem });
            }
        };
        let end = TurnEnd {
            outcome: TurnOutcome::Succeeded.into(),
            result: stored.data.clone(),
            result_type: stored.result_type.clone(),
            ..TurnEnd::default()
        };
        self.turn.settle(end, &stored).await
    }

    /// Ends the turn: the event is refused for good, and never delivered again.
    ///
    /// # Errors
    ///
    /// [`Error::TurnLost`] or [`Error::OutcomeUnknown`].
    pub async fn reject(self, detail: impl Into<String>) -> Result<(), Error> {
        let end = TurnEnd {
            outcome: TurnOutcome::Rejected.into(),
            detail: short(detail.into()),
            ..TurnEnd::default()
        };
        self.turn.settle(end, &Stored::default()).await
    }

    /// Ends the turn: the next delivery gets the event. It does nothing if the turn is over. An end
    /// that does not reach the server within 2 s is made up for by the TTL.
    pub async fn fail(self, detail: impl Into<String>) {
        if let Some(answered) = self.turn.fail(detail) {
            let _ = answered.await; // without an answer, its keeper has ended with its runtime
        }
    }
}

impl<C> Drop for TurnScope<C> {
    fn drop(&mut self) {
        self.turn.fail("its holder did not end it");
    }
}

impl<C> std::ops::Deref for TurnScope<C> {
    type Target = Turn;

    fn deref(&self) -> &Turn {
        &self.turn
    }
}

impl<C> fmt::Debug for TurnScope<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TurnScope").field(&self.turn).finish()
    }
}

impl<C> fmt::Debug for TurnRequest<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TurnRequest").field("gate", &self.gate).finish_non_exhaustive()
    }
}

impl<C> fmt::Debug for OnceRequest<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OnceRequest").field(&self.turn).finish()
    }
}

turn_options!(TurnRequest);
turn_options!(OnceRequest, turn);

/// There is a turn, or why not. If the body may run unguarded, it is not held.
fn started(flow: &Arc<TurnFlow>, begun: Result<(), Problem>) -> Result<(), Error> {
    let config = &flow.hold.config;
    let problem = match begun {
        Ok(()) => {
            config.hooks.on_begin(&flow.delivery);
            return Ok(());
        }
        Err(Problem::Failed(failure)) if failure.reason == "NO_KEY" => {
            flow.hold.gate.warn_unguarded(flow.delivery.kind());
            return Ok(());
        }
        Err(problem) => problem,
    };
    let error = problem.public();
    if matches!(error, Error::Unavailable { .. }) {
        match config.on_unavailable {
            OnUnavailable::Raise => {}
            OnUnavailable::Run => {
                tracing::warn!(%error, "the handler runs without a turn");
                return Ok(());
            }
            OnUnavailable::Drop => return Err(NotGranted::Dropped.into()),
        }
    }
    Err(error)
}
