//! What a database refuses: all writes, in some state of it, or single rows, by rules that its
//! owner added. Neither is the caller's fault, and one row does not fail the others.

use std::{fmt::Write as _, time::Duration};

use futures_util::future::join_all;
use oncegate::{
    grpc::pb::{
        BatchMarkProcessedRequest, BeginTurnRequest, IsProcessedRequest,
        batch_mark_processed_result::Result as Item, begin_turn_response::Outcome,
        turn_service_client::TurnServiceClient,
    },
    server::Server,
    store::Clock,
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;

use super::follow;
use crate::harness::{
    Fixture, Replica, acquire, config, connect, event, execute, granted, mark, release, session,
};

/// A trigger on each table that raises `code`, before a row is written for which `condition` holds.
fn triggers(code: &str, condition: &str) -> String {
    let mut sql = format!(
        "CREATE SEQUENCE IF NOT EXISTS tries;
        CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM nextval('tries');
            RAISE EXCEPTION 'not this one' USING ERRCODE = '{code}'; END $$;"
    );
    for table in ["processed_events", "oncegate_sessions"] {
        write!(
            sql,
            "DROP TRIGGER IF EXISTS refuse ON {table};
            CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW
                WHEN ({condition}) EXECUTE FUNCTION refuse();"
        )
        .unwrap();
    }
    sql
}

fn begin(event_id: &str, session_id: &str) -> BeginTurnRequest {
    BeginTurnRequest {
        event: event("T1", event_id),
        session: session("T1", session_id),
        holder: "bot".to_owned(),
        ..Default::default()
    }
}

/// The status of an item, or of a call, that failed for a reason which is not the caller's.
fn is_to_be_tried_again(status: &Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(!status.message().contains("SQL"), "{}", status.message());
    assert!(!status.message().contains("not this one"), "{}", status.message());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_of_the_database_is_no_fault_of_the_caller() {
    let f = Fixture::postgres().await.restarted(&["--probe-interval", "50ms"]).await;
    let (address, mut client) = (f.replica.server.address().clone(), f.client.clone());
    let mut turns = TurnServiceClient::new(connect(&address).await);
    // Transaction ids, disk, memory, a full schema, damaged data, privileges; one that nobody
    // has heard of; and rules that reject whatever is written.
    let conditions = ["54000", "53100", "53200", "54023", "XX001", "42501", "ZZ999"];
    for code in conditions.into_iter().chain(["23514", "P0001", "22001", "38000"]) {
        execute(&f.url, &triggers(code, "true")).await;
        is_to_be_tried_again(&client.mark_processed(mark("T1", "Ev1")).await.unwrap_err());
        let requests = ["Ev2", "Ev3"].map(|id| mark("T1", id)).to_vec();
        let batch = client.batch_mark_processed(BatchMarkProcessedRequest { requests }).await;
        match batch {
            Err(status) => is_to_be_tried_again(&status),
            Ok(answer) => {
                for result in answer.into_inner().results {
                    let Some(Item::Error(error)) = result.result else { panic!("{code}") };
                    assert_eq!(error.code, i32::from(Code::Unavailable), "{code}");
                }
            }
        }
        let refused = client.acquire_session_lease(acquire("T2", "s", "a")).await.unwrap_err();
        is_to_be_tried_again(&refused);
        is_to_be_tried_again(&turns.begin_turn(begin("Ev4", "s2")).await.unwrap_err());
        follow(&address, "readiness", ServingStatus::NotServing).await;
        execute(&f.url, &triggers(code, "false")).await;
        follow(&address, "readiness", ServingStatus::Serving).await;
    }
    assert!(client.mark_processed(mark("T1", "Ev1")).await.unwrap().into_inner().first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_privilege_or_a_table_it_is_not_ready() {
    let f = Fixture::postgres().await;
    let role = f.url.rsplit('/').next().unwrap().to_owned();
    execute(
        &f.url,
        &format!(
            "CREATE ROLE {role} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role};
            GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}"
        ),
    )
    .await;
    let url = f.url.replacen("postgres@", &format!("{role}@"), 1);
    let flags = ["--probe-interval", "50ms", "--migrate", "false"];
    let replica = Replica::start(&url, Clock::Store, &flags).await;
    let address = replica.server.address();
    let mut client = replica.client().await;
    follow(address, "readiness", ServingStatus::Serving).await;
    let tables = ["processed_events", "oncegate_sessions", "oncegate_waiters", "oncegate_replicas"];
    let of_rows = tables.map(|table| (table, ["INSERT", "UPDATE", "DELETE"].as_slice()));
    // Every grant reads it, every sweep raises it.
    let of_fence = ("oncegate_fence", ["SELECT", "UPDATE"].as_slice());
    for (table, privileges) in of_rows.into_iter().chain([of_fence]) {
        for privilege in privileges {
            execute(&f.url, &format!("REVOKE {privilege} ON {table} FROM {role}")).await;
            follow(address, "readiness", ServingStatus::NotServing).await;
            if (table, *privilege) == ("processed_events", "INSERT") {
                is_to_be_tried_again(&client.mark_processed(mark("T1", "a")).await.unwrap_err());
            }
            execute(&f.url, &format!("GRANT {privilege} ON {table} TO {role}")).await;
            follow(address, "readiness", ServingStatus::Serving).await;
        }
        execute(&f.url, &format!("ALTER TABLE {table} RENAME TO elsewhere")).await;
        follow(address, "readiness", ServingStatus::NotServing).await;
        if table == "processed_events" {
            is_to_be_tried_again(&client.mark_processed(mark("T1", "a")).await.unwrap_err());
        }
        execute(&f.url, &format!("ALTER TABLE elsewhere RENAME TO {table}")).await;
        follow(address, "readiness", ServingStatus::Serving).await;
    }
    // It leaves nothing behind.
    let mut database = PgConnection::connect(&f.url).await.unwrap();
    for table in tables {
        let sql = AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        let rows: i64 = sqlx::query_scalar(sql).fetch_one(&mut database).await.unwrap();
        assert_eq!(rows, 0, "{table}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_the_probe_s_row_breaks_does_not_make_it_unready() {
    let f = Fixture::postgres().await;
    let role = f.url.rsplit('/').next().unwrap().to_owned();
    let mut sql = format!(
        "CREATE ROLE {role} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role};
        GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role};"
    );
    for table in ["processed_events", "oncegate_sessions"] {
        write!(
            sql,
            "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
            CREATE POLICY own ON {table} USING (team_id = 'T1');"
        )
        .unwrap();
    }
    execute(&f.url, &sql).await;
    let url = f.url.replacen("postgres@", &format!("{role}@"), 1);
    let flags = ["--probe-interval", "50ms", "--migrate", "false", "--writers", "1"];
    let replica = Replica::start(&url, Clock::Store, &flags).await;
    let mut client = replica.client().await;
    follow(replica.server.address(), "readiness", ServingStatus::Serving).await;
    let requests = ["T1", "T2", "T1", "T3", "T1"].iter().enumerate();
    let requests = requests.map(|(number, team)| mark(team, &format!("Ev{number}"))).collect();
    let answer = client.batch_mark_processed(BatchMarkProcessedRequest { requests }).await;
    let firsts = answer.unwrap().into_inner().results.into_iter();
    let firsts: Vec<_> =
        firsts.map(|item| matches!(item.result, Some(Item::Response(_)))).collect();
    assert_eq!(firsts, [true, false, true, false, true]);
    follow(replica.server.address(), "readiness", ServingStatus::Serving).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejected_rows_of_one_team_do_not_make_it_unready() {
    let flags = ["--probe-interval", "50ms", "--writers", "1"];
    let f = Fixture::postgres().await.restarted(&flags).await;
    let (address, mut client) = (f.replica.server.address(), f.client.clone());
    // What the probe writes, and one team's events.
    execute(&f.url, "ALTER TABLE processed_events ADD CHECK (team_id NOT IN ('', 'T1', 'T2'))")
        .await;
    for number in 0..3 {
        let refused = client.mark_processed(mark("T1", &format!("Ev{number}"))).await.unwrap_err();
        is_to_be_tried_again(&refused);
    }
    // Several looks later.
    tokio::time::sleep(Duration::from_millis(500)).await;
    follow(address, "readiness", ServingStatus::Serving).await;
    // Another team's as well, and nobody's succeed.
    is_to_be_tried_again(&client.mark_processed(mark("T2", "Ev")).await.unwrap_err());
    follow(address, "readiness", ServingStatus::NotServing).await;
    assert!(client.mark_processed(mark("T3", "Ev")).await.unwrap().into_inner().first);
    follow(address, "readiness", ServingStatus::Serving).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_without_prepared_statements_is_named_at_start() {
    for code in ["42P05", "26000", "08P01"] {
        let f = Fixture::postgres().await;
        let message = "unsupported startup parameter: options";
        let sql = triggers(code, "true").replace("not this one", message);
        execute(&f.url, &sql).await;
        let Err(refused) = Server::start(config(&f.url, &[]), Clock::Store).await else {
            panic!("it started");
        };
        let refused = format!("{refused:#}");
        assert!(refused.contains("PgBouncer 1.21"), "{refused}");
        assert!(refused.contains("max_prepared_statements"), "{refused}");
        // One that runs says that it is not ready.
        let mut client = f.client.clone();
        is_to_be_tried_again(&client.mark_processed(mark("T1", "Ev1")).await.unwrap_err());
        follow(f.replica.server.address(), "readiness", ServingStatus::NotServing).await;
    }
}

/// How a database's owner may reject the one event or session that is called "bad".
const RULES: [&str; 5] = [
    "ALTER TABLE processed_events ADD CHECK (event_id <> 'bad');
    ALTER TABLE oncegate_sessions ADD CHECK (session_id <> 'bad')",
    "P0001",
    "54000",
    // Raised by a statement of ours as well, which then is run again.
    "22012",
    "42703",
];

fn rule(rule: &str) -> String {
    if rule.len() > 5 {
        return rule.to_owned();
    }
    let mut sql = triggers(rule, "true");
    for (table, id) in [("processed_events", "event_id"), ("oncegate_sessions", "session_id")] {
        write!(
            sql,
            "DROP TRIGGER refuse ON {table};
            CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW
                WHEN (NEW.{id} = 'bad') EXECUTE FUNCTION refuse();"
        )
        .unwrap();
    }
    sql
}

const SQLITE_RULE: &str = "
CREATE TRIGGER refuse_event BEFORE INSERT ON processed_events WHEN NEW.event_id = 'bad'
    BEGIN SELECT RAISE(ABORT, 'not this one'); END;
CREATE TRIGGER refuse_session BEFORE INSERT ON oncegate_sessions WHEN NEW.session_id = 'bad'
    BEGIN SELECT RAISE(ABORT, 'not this one'); END;
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_item_fails_alone_on_postgres() {
    for owners in RULES {
        let f = Fixture::postgres().await.restarted(&["--writers", "1"]).await;
        execute(&f.url, &rule(owners)).await;
        one_is_rejected(f).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_item_fails_alone_on_sqlite() {
    let f = Fixture::sqlite().await;
    execute(&f.url, SQLITE_RULE).await;
    one_is_rejected(f).await;
}

async fn one_is_rejected(f: Fixture) {
    let mut client = f.client.clone();
    let turns = TurnServiceClient::new(connect(f.replica.server.address()).await);
    let name = |number: usize| if number == 17 { "bad".to_owned() } else { format!("n{number}") };

    let requests = (0..40).map(|number| mark("T1", &name(number))).collect();
    let answer = client.batch_mark_processed(BatchMarkProcessedRequest { requests }).await;
    for (number, result) in answer.unwrap().into_inner().results.into_iter().enumerate() {
        match result.result.unwrap() {
            Item::Response(response) => assert!(response.first && number != 17, "{number}"),
            Item::Error(error) => assert_eq!((number, error.code), (17, 14), "{error:?}"),
        }
    }
    // Of an event of several names, one.
    let mut requests = ["one", "two", "three"].map(|id| mark("T1", id)).to_vec();
    for (request, alias) in requests.iter_mut().zip(["other", "bad", "another"]) {
        request.event.as_mut().unwrap().aliases = vec![alias.to_owned()];
    }
    let answer = client.batch_mark_processed(BatchMarkProcessedRequest { requests }).await;
    let results = answer.unwrap().into_inner().results.into_iter();
    let firsts: Vec<_> =
        results.map(|item| matches!(item.result, Some(Item::Response(_)))).collect();
    assert_eq!(firsts, [true, false, true]);
    for name in ["bad", "two"] {
        let look = IsProcessedRequest { event: event("T1", name), ..Default::default() };
        assert!(!client.is_processed(look).await.unwrap().into_inner().processed);
    }

    // Calls that meet in one batch.
    let calls = (0..40).map(|number| {
        let mut client = client.clone();
        let request = acquire("T1", &name(number), "bot");
        async move { (number, client.acquire_session_lease(request).await) }
    });
    let mut leases = Vec::new();
    for (number, answer) in join_all(calls).await {
        match answer {
            Ok(answer) if number != 17 => leases.push(granted(answer.into_inner())),
            Ok(_) => panic!("the session is free to take"),
            Err(status) => {
                is_to_be_tried_again(&status);
                assert_eq!(number, 17, "{status:?}");
            }
        }
    }
    for lease in &leases {
        assert!(client.release_session_lease(release(lease)).await.unwrap().into_inner().released);
    }

    let calls = (0..40).map(|number| {
        let mut turns = turns.clone();
        // By its event, or by its session.
        let bad = if number == 18 { "bad".to_owned() } else { format!("turn{number}") };
        let request = begin(&bad, &if number == 17 { name(17) } else { format!("in{number}") });
        async move { (number, turns.begin_turn(request).await) }
    });
    for (number, answer) in join_all(calls).await {
        match answer {
            Ok(answer) => {
                let outcome = answer.into_inner().outcome;
                assert!(matches!(outcome, Some(Outcome::Granted(_))), "{number}: {outcome:?}");
                assert!(number != 17 && number != 18, "{number}");
            }
            Err(status) => {
                is_to_be_tried_again(&status);
                assert!(number == 17 || number == 18, "{number}: {status:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_rejects_all_items_costs_few_statements() {
    let f = Fixture::postgres().await.restarted(&["--writers", "1"]).await;
    for code in ["P0001", "54000"] {
        execute(&f.url, &triggers(code, "NEW.team_id <> ''")).await;
        execute(&f.url, "SELECT setval('tries', 1)").await;
        let requests = (0..1_000).map(|number| mark("T1", &format!("Ev{number}"))).collect();
        let mut client = f.client.clone();
        let _ = client.batch_mark_processed(BatchMarkProcessedRequest { requests }).await;
        let mut database = PgConnection::connect(&f.url).await.unwrap();
        let tries: i64 = sqlx::query_scalar("SELECT last_value FROM tries")
            .fetch_one(&mut database)
            .await
            .unwrap();
        assert!((2..=70).contains(&tries), "{code}: {tries} statements");
    }
    // Of many that are rejected, side by side, the others are still found.
    execute(&f.url, &triggers("P0001", "NEW.team_id = 'T2'")).await;
    let team = |number| if number < 500 { "T1" } else { "T2" };
    let requests = (0..1_000).map(|number| mark(team(number), &format!("New{number}"))).collect();
    let mut client = f.client.clone();
    let answer = client.batch_mark_processed(BatchMarkProcessedRequest { requests }).await;
    let results = answer.unwrap().into_inner().results;
    let firsts = results.iter().filter(|item| matches!(item.result, Some(Item::Response(_))));
    assert_eq!(firsts.count(), 500);
}
