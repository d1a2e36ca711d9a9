//! What connections are set to when they are opened.

use std::time::Duration;

use super::connect::Connector;

/// Machine code for a statement takes 100 ms to make, and none here runs for so long
/// that it would be worth it: but the planner goes by costs that it only guesses.
pub(super) fn no_jit() -> (&'static str, String) {
    ("jit", "off".to_owned())
}

/// How a connection is opened for statements that find their rows by the key. Settings that
/// a proxy does not pass on are lost without harm to an answer.
pub(super) fn for_short(connector: &Connector, timeout: Duration) -> Connector {
    let lock_timeout = format!("{}ms", (timeout / 10).as_millis().max(1));
    connector.with([
        // How long a statement waits for a row that somebody outside has locked:
        // it gives up by itself, for one that we gave up would go on waiting.
        // Short enough to find the row by halves, long enough for a slow commit.
        ("lock_timeout", lock_timeout),
        // Every statement finds its rows by the key. A plan is kept for as long
        // as the connection, and on a table that is small by then, the planner
        // would rather read the whole, every time until it is analyzed.
        ("enable_seqscan", "off".to_owned()),
        // So the plan is the same whatever the arrays hold. By default the planner
        // makes one for each batch, at a third of what the batch costs.
        ("plan_cache_mode", "force_generic_plan".to_owned()),
        no_jit(),
    ])
}
