use oncegate::domain::limits::{self, Limit};

use super::{head, row};

pub fn page() -> String {
    let rows = limits::table().into_iter();
    let rows = rows.map(|Limit { what, range, default }| row([what, &range, &default]));
    format!(
        "The limits of the contract. A value outside of its range is `INVALID_ARGUMENT`. The limits of one\n\
        server, such as its connections, are in [configuration](configuration.md).\n\n{}{}",
        head(["limit", "range", "default"]),
        rows.collect::<String>()
    )
}
