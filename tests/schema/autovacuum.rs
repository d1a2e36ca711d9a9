//! The tables are vacuumed early, on a new database and on one that was migrated.

use std::collections::BTreeMap;

use oncegate::server;
use sqlx::{Connection as _, PgConnection};

use super::versions::migrate_with_shared_names;
use crate::harness::{config, execute, postgres::new_database};

/// What each table is set to, `name=value`, but for its fill factor.
async fn parameters(url: &str) -> BTreeMap<String, Vec<String>> {
    const READ: &str = "SELECT relname::text, ARRAY(
            SELECT option FROM unnest(reloptions) AS option WHERE option !~ '^fillfactor='
            ORDER BY option)
        FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'";
    let mut database = PgConnection::connect(url).await.unwrap();
    let rows = sqlx::query_as::<_, (String, Vec<String>)>(READ).fetch_all(&mut database).await;
    rows.unwrap().into_iter().filter(|(_, options)| !options.is_empty()).collect()
}

fn expected() -> BTreeMap<String, Vec<String>> {
    let small = &["autovacuum_vacuum_scale_factor=0.01"][..];
    [
        (
            "processed_events",
            &[
                "autovacuum_analyze_scale_factor=0.02",
                "autovacuum_vacuum_cost_delay=0",
                "autovacuum_vacuum_insert_scale_factor=0.02",
                "autovacuum_vacuum_scale_factor=0.01",
            ][..],
        ),
        (
            "oncegate_sessions",
            &[
                "autovacuum_analyze_scale_factor=0.02",
                "autovacuum_vacuum_cost_delay=0",
                "autovacuum_vacuum_scale_factor=0.02",
            ],
        ),
        ("oncegate_waiters", small),
        ("oncegate_replicas", small),
    ]
    .map(|(table, options)| (table.to_owned(), options.iter().map(|&o| o.to_owned()).collect()))
    .into()
}

#[tokio::test]
async fn a_new_database_is_vacuumed_early() {
    let url = new_database().await;
    server::migrate(&config(&url, &[]).store).await.unwrap();
    assert_eq!(parameters(&url).await, expected());
}

#[tokio::test]
async fn a_migrated_database_is_vacuumed_early() {
    let url = new_database().await;
    migrate_with_shared_names(&url).await;
    assert_eq!(parameters(&url).await, BTreeMap::new());
    server::migrate(&config(&url, &[]).store).await.unwrap();
    assert_eq!(parameters(&url).await, expected());
}

#[tokio::test]
async fn what_the_owner_has_set_stays() {
    let url = new_database().await;
    migrate_with_shared_names(&url).await;
    let own = "ALTER TABLE processed_events SET (autovacuum_vacuum_threshold = 7);
        ALTER TABLE sessions SET (autovacuum_enabled = off)";
    execute(&url, own).await;
    server::migrate(&config(&url, &[]).store).await.unwrap();
    let mut expected = expected();
    for (table, name, value) in [
        ("processed_events", "autovacuum_vacuum_threshold", "7"),
        ("oncegate_sessions", "autovacuum_enabled", "off"),
    ] {
        let options = expected.get_mut(table).unwrap();
        options.retain(|option| !option.starts_with(&format!("{name}=")));
        options.push(format!("{name}={value}"));
        options.sort();
    }
    assert_eq!(parameters(&url).await, expected);
}
