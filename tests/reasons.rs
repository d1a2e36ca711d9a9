//! Every error has a reason of the contract, and every reason is one that a server gives.

use std::time::Duration;

use futures_util::{StreamExt as _, future::join_all, stream};
use oncegate::{
    grpc::pb::{
        AcquireSessionLeaseRequest, BatchMarkProcessedRequest, BeginTurnRequest, EventKey,
        FinishTurnRequest, GetSessionRequest, HoldSessionLeaseRequest, MarkProcessedRequest,
        Reason, RenewSessionLeaseRequest, RenewTurnRequest, RunTurnRequest, SlackEvent, Turn,
        TurnOutcome, admin_service_client::AdminServiceClient,
        batch_mark_processed_result::Result as Item, begin_turn_response, event_key,
        run_turn_request::Step, run_turn_response, turn_service_client::TurnServiceClient,
    },
    store::Clock,
};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

use crate::harness::{
    Fixture, Replica, acquire, connect, event, execute, granted, mark,
    postgres::{self, Cluster, new_database_with},
    proxy::{Line, Proxy},
    raw::{Raw, RawCall, framed},
    release, renew, seconds, session,
};

mod batch;
mod provoked;
mod unknown;

const MARK: &str = "/oncegate.v1.IdempotencyService/MarkProcessed";
/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Store {
    Postgres,
    Sqlite,
}

impl Store {
    /// A server on a database of its own.
    async fn serve(self, flags: &[&str]) -> Fixture {
        let f = match self {
            Self::Postgres => Fixture::postgres().await,
            Self::Sqlite => Fixture::sqlite().await,
        };
        if flags.is_empty() { f } else { f.restarted(flags).await }
    }
}

/// The reasons of the contract.
fn all() -> Vec<Reason> {
    (1..i32::MAX).map_while(|number| Reason::try_from(number).ok()).collect()
}

/// The reason of an error, and that its code, its `RetryInfo` and its pushback are those of
/// the contract.
#[track_caller]
fn reason(status: &Status) -> Reason {
    let info = status.get_details_error_info();
    let info = info.unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "oncegate");
    let reason = Reason::from_str_name(&format!("REASON_{}", info.reason));
    let reason = reason.unwrap_or_else(|| panic!("{} is not in the contract", info.reason));
    let (codes, may_retry) = expected(reason);
    assert!(codes.contains(&status.code()), "{status:?}");
    let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
    let pushback = status.metadata().get("grpc-retry-pushback-ms");
    let pushback = pushback.map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(pushback, delay.map(|delay| delay.as_millis().to_string()), "{status:?}");
    assert_eq!(delay.is_some(), may_retry, "{status:?}");
    let names_field = status.get_details_bad_request().is_some();
    assert_eq!(
        names_field,
        matches!(reason, Reason::InvalidField | Reason::NoKey | Reason::TeamDenied),
        "{status:?}"
    );
    reason
}

/// The codes of a reason, and whether a retry may mend it.
fn expected(reason: Reason) -> (&'static [Code], bool) {
    match reason {
        Reason::Unspecified => (&[], false),
        Reason::InvalidField
        | Reason::NoKey
        | Reason::UnreadableRequest
        | Reason::UnstorableText => (&[Code::InvalidArgument], false),
        Reason::NotFound => (&[Code::NotFound], false),
        Reason::LeaseLost
        | Reason::MaxHold
        | Reason::ClaimLost
        | Reason::StreamReplaced
        | Reason::EpicMismatch
        | Reason::PayloadMismatch => (&[Code::FailedPrecondition], false),
        Reason::QueueFull
        | Reason::TooManyCalls
        | Reason::TooManyConnections
        | Reason::LaneFull
        | Reason::Quota => (&[Code::ResourceExhausted], true),
        Reason::MetadataTooLarge => (&[Code::ResourceExhausted], false),
        Reason::MessageTooLarge => (&[Code::OutOfRange, Code::ResourceExhausted], false),
        Reason::Draining
        | Reason::StoreUnavailable
        | Reason::OutcomeUnknown
        | Reason::Contended
        | Reason::StoreUnusable
        | Reason::RejectedByDatabase => (&[Code::Unavailable], true),
        Reason::CallTimeout => (&[Code::DeadlineExceeded], true),
        Reason::Cancelled => (&[Code::Cancelled], false),
        Reason::Internal => (&[Code::Internal], false),
        Reason::Unauthenticated => (&[Code::Unauthenticated], false),
        Reason::TeamDenied | Reason::RoleDenied => (&[Code::PermissionDenied], false),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_reason_is_given_on_postgres() {
    for wanted in all() {
        comes_about(Store::Postgres, wanted).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_reason_is_given_on_sqlite() {
    for wanted in all() {
        comes_about(Store::Sqlite, wanted).await;
    }
}

async fn comes_about(store: Store, wanted: Reason) {
    let provoking = Box::pin(provoked::provoke(store, wanted));
    let answer = timeout(PATIENCE, provoking).await;
    let Some(status) = answer.unwrap_or_else(|_| panic!("{wanted:?} on {store:?}: no answer"))
    else {
        return;
    };
    assert_eq!(reason(&status), wanted, "{store:?}: {status:?}");
}

fn rule(store: Store) -> &'static str {
    match store {
        Store::Postgres => {
            "ALTER TABLE processed_events ADD CONSTRAINT rule CHECK (event_id <> 'Ev1')"
        }
        Store::Sqlite => {
            "CREATE TRIGGER rule BEFORE INSERT ON processed_events WHEN new.event_id = 'Ev1'
            BEGIN SELECT RAISE(ABORT, 'rule'); END"
        }
    }
}
