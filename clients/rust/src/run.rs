//! Requests for turns, and turns as functions.

use std::{collections::HashMap, fmt, future::Future, sync::Arc, time::Duration};

use crate::{
    Codec, Delivery, Duplicate, Error, EventOutcome, Gate, Json, NotGranted, OnUnavailable,
    Outcome, Turn, TurnScope, begin, failure::Problem, hold::Hold, options::Config,
    turn_flow::TurnFlow,
};

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
    /// the turn, and comes out as it is. If the future of `run` is dropped, the turn fails at once, unless
    /// its end has begun.
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
                // It is a duplicate all the same, and is to be acknowledged.
                NotGranted::Duplicate(Duplicate { result, outcome, detail, .. }) => {
                    let (result, undecodable) = match result.decode_with(&codec) {
                        Ok(result) => (result, None),
                        Err(error) => (None, Some(error.to_string())),
                    };
                    Outcome::Duplicate(Duplicate { result, undecodable, outcome, detail })
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
                Some(id) => begin::start(&flow, flow.adopt(id)).await,
                None => begin::start(&flow, begin::begin(&flow)).await,
            };
            started(&flow, begun)?;
            flow.forget_request();
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
        let Some(NotGranted::Duplicate(Duplicate { result, outcome, .. })) = error.not_granted()
        else {
            return Err(error.into());
        };
        match result.decode_with(&codec)? {
            Some(value) => Ok(value),
            // What returns nothing has nothing stored.
            None if *outcome == Some(EventOutcome::Succeeded) => {
                codec.decode(result).map_err(|_| error.into())
            }
            None => Err(error.into()),
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
            let ending = scope.succeed(&value); // it does not keep the value
            ending.await?;
            Ok(Ok(value))
        }
        Err(error) => {
            if let Some(detail) = scope.turn.rejection(&error) {
                scope.reject(detail.clone()).await?;
                return Ok(Err((detail, error)));
            }
            scope.fail(format!("{error:#}")).await;
            Err(error)
        }
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
        Ok(()) => return Ok(()),
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
