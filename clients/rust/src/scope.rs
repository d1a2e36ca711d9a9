//! Turns as scopes.

use std::{fmt, future::Future};

use crate::{
    Codec, Error, Json, Stored, Turn,
    pb::{TurnEnd, TurnOutcome},
    turn_flow::short,
};

/// A turn that its holder has to end, by [`succeed`](Self::succeed), [`reject`](Self::reject),
/// [`fail`](Self::fail) or [`detach`](Turn::detach). If it is dropped, the turn fails, in the
/// background. It has what a [`Turn`] has.
#[must_use = "the turn fails when it is dropped"]
pub struct TurnScope<C = Json> {
    pub(crate) turn: Turn,
    pub(crate) codec: C,
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
    pub fn succeed<T>(self, result: &T) -> impl Future<Output = Result<(), Error>> + use<T, C>
    where
        C: Codec<T>,
    {
        let encoded = self.codec.encode(result); // the future does not borrow it
        async move {
            let stored = match encoded {
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
