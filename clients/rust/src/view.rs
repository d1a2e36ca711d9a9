//! What turns and leases show of themselves.

/// How a turn or lease is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeptBy {
    /// The server renews it over a stream.
    Stream,
    /// This library renews it by calls.
    Renew,
}

/// What turns and leases have in common.
macro_rules! view {
    ($($hold:tt)+) => {
        /// Whether it is held. False if the handler runs unguarded, and after its end. It does not look at
        /// the clock: before an outside write, call `check`.
        #[must_use]
        pub fn held(&self) -> bool {
            let state = self.$($hold)+.state();
            state.held && !state.over
        }

        /// Waits until it is lost, and says how. It waits for ever if it is not.
        pub async fn lost(&self) -> $crate::Error {
            self.$($hold)+.lost.cancelled().await;
            self.$($hold)+.over_by()
        }

        /// Why it was lost; `None` if it was not.
        #[must_use]
        pub fn lost_reason(&self) -> Option<$crate::LossReason> {
            self.$($hold)+.state().loss
        }

        /// Waits until it has ended, also in the background: after what held it was dropped.
        pub async fn ended(&self) {
            self.$($hold)+.forgotten.cancelled().await;
        }

        /// The fencing token, to be sent with each write; `None` without a session.
        #[must_use]
        pub fn fence(&self) -> Option<i64> {
            self.$($hold)+.state().fence
        }

        /// How it is kept.
        #[must_use]
        pub fn kept_by(&self) -> $crate::KeptBy {
            if self.$($hold)+.state().renewing { $crate::KeptBy::Renew } else { $crate::KeptBy::Stream }
        }

        /// How many callers wait for the session.
        #[must_use]
        pub fn waiters(&self) -> u32 {
            self.$($hold)+.state().waiters
        }

        /// The time to the trusted end, which moves with each renewal; zero once it has passed. `None`
        /// if the handler runs unguarded.
        #[must_use]
        pub fn left(&self) -> Option<std::time::Duration> {
            let state = self.$($hold)+.state();
            state.held.then(|| state.trusted_end.left())
        }

        /// How long ago the trusted end has passed; zero before.
        #[must_use]
        pub fn overdue(&self) -> std::time::Duration {
            let state = self.$($hold)+.state();
            if state.held { $crate::clock::now() - state.trusted_end } else { std::time::Duration::ZERO }
        }

        /// Call it before an outside write.
        ///
        /// # Errors
        ///
        /// That it is lost or has ended, or that its trusted end has passed.
        pub fn check(&self) -> Result<(), $crate::Error> {
            self.$($hold)+.check()
        }
    };
}
pub(crate) use view;
