//! Whether an older `processed_events` can be adopted; asked before anything is changed.

use sqlx::{PgConnection, Row as _, postgres::PgRow};

use crate::store::{StoreError, postgres::classify};

/// The table as a whole; no row where there is none.
pub(in super::super) const OLDER_TABLE: &str = "
SELECT c.relkind::text AS kind, c.relpersistence::text AS persistence,
    c.relispartition OR EXISTS (
        SELECT FROM pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent)) AS inherits,
    p.conname::text AS key_name, COALESCE(p.condeferrable, false) AS key_deferrable,
    ARRAY(
        SELECT a.attname::text
        FROM unnest(p.conkey) WITH ORDINALITY AS k (number, ord)
            JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.number
        ORDER BY k.ord) AS key,
    ARRAY(
        SELECT i.indexrelid::regclass::text FROM pg_index i
        WHERE i.indrelid = c.oid AND i.indisunique AND NOT i.indisprimary
            -- One whose columns contain the key refuses nothing that the key allows; but
            -- ON CONFLICT cannot use one that is deferrable, and some collations find texts
            -- equal that differ.
            AND NOT (i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
                AND COALESCE(p.conkey <@ (i.indkey::int2[])[0:i.indnkeyatts - 1], false)
                AND NOT EXISTS (
                    SELECT FROM pg_collation l
                    WHERE l.oid = ANY (i.indcollation::oid[]) AND NOT l.collisdeterministic))
        ) AS unique_indexes,
    ARRAY(
        SELECT f.conrelid::regclass::text FROM pg_constraint f
        WHERE f.confrelid = c.oid AND f.contype = 'f') AS referenced_by,
    ARRAY(
        SELECT f.conname::text FROM pg_constraint f
        WHERE f.conrelid = c.oid AND f.contype IN ('c', 'f', 'x'))
    || ARRAY(
        SELECT t.tgname::text FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal)
    || ARRAY(
        SELECT r.rulename::text FROM pg_rewrite r WHERE r.ev_class = c.oid)
    || ARRAY(
        SELECT l.polname::text FROM pg_policy l WHERE l.polrelid = c.oid) AS restrictions
FROM pg_class c LEFT JOIN pg_constraint p ON p.conrelid = c.oid AND p.contype = 'p'
WHERE c.oid = to_regclass(quote_ident(current_schema()) || '.processed_events')
";

pub(in super::super) const OLDER_COLUMNS: &str = "
SELECT a.attname::text AS name, format_type(a.atttypid, NULL) AS type,
    a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AS required,
    a.attgenerated <> '' AS generated
FROM pg_attribute a
WHERE a.attrelid = to_regclass(quote_ident(current_schema()) || '.processed_events')
    AND a.attnum > 0 AND NOT a.attisdropped
";

/// The columns of the older bots, and the types that the migrations convert.
const ADOPTED: [(&str, &[&str]); 3] = [
    ("team_id", &["text", "character varying", "character"]),
    ("event_id", &["text", "character varying", "character"]),
    ("processed_at", &["timestamp with time zone", "timestamp without time zone"]),
];

/// Refuses a table that the migrations would break, or could not use.
///
/// # Errors
/// [`StoreError::Internal`] with every difference, and what to do about it.
pub(super) async fn check(connection: &mut PgConnection) -> Result<(), StoreError> {
    let table = sqlx::query(OLDER_TABLE).persistent(false).fetch_optional(&mut *connection).await;
    let Some(table) = table.map_err(classify)? else { return Ok(()) };
    let columns = sqlx::query(OLDER_COLUMNS).persistent(false).fetch_all(connection).await;
    let columns = columns.map_err(classify)?;
    let differences = differences(&table, &columns).map_err(classify)?;
    if differences.is_empty() {
        return Ok(());
    }
    Err(StoreError::internal(format!(
        "the table processed_events cannot be adopted, and nothing was changed: {}. It must have \
         team_id and event_id of type text, processed_at of type timestamptz, and PRIMARY KEY \
         (team_id, event_id). Change it, rename it, or keep oncegate's tables in a schema of their \
         own with --database-schema",
        differences.join("; ")
    )))
}

fn differences(table: &PgRow, columns: &[PgRow]) -> Result<Vec<String>, sqlx::Error> {
    let mut found = Vec::new();
    let kind: String = table.try_get("kind")?;
    if kind != "r" {
        return Ok(vec![format!("it is {}, not a table", kind_name(&kind))]);
    }
    if table.try_get("inherits")? {
        found.push("it is a partition, inherits from a table, or is inherited by one".to_owned());
    }
    if table.try_get::<String, _>("persistence")? != "p" {
        found.push(
            "it is unlogged, so that a crash would lose every mark (ALTER TABLE processed_events \
             SET LOGGED)"
                .to_owned(),
        );
    }
    for (name, types) in ADOPTED {
        let mut all = columns.iter();
        let Some(column) = all.find(|row| row.try_get::<&str, _>("name").is_ok_and(|n| n == name))
        else {
            found.push(format!("it has no column {name}"));
            continue;
        };
        let of_type: String = column.try_get("type")?;
        if !types.contains(&of_type.as_str()) {
            let wanted = if name == "processed_at" { "timestamptz" } else { "text" };
            found.push(format!("{name} is of type {of_type}, not {wanted}"));
        }
        if column.try_get("generated")? {
            found.push(format!("{name} is a generated column"));
        }
    }
    for column in columns {
        let name: String = column.try_get("name")?;
        if column.try_get("required")? && ADOPTED.iter().all(|(adopted, _)| *adopted != name) {
            found.push(format!(
                "column {name} is NOT NULL and has no default, so that no mark could be written \
                 (ALTER TABLE processed_events ALTER COLUMN {name} DROP NOT NULL)"
            ));
        }
    }
    found.extend(key_differences(table)?);
    Ok(found)
}

fn key_differences(table: &PgRow) -> Result<Vec<String>, sqlx::Error> {
    let mut found = Vec::new();
    let key: Vec<String> = table.try_get("key")?;
    let name: Option<String> = table.try_get("key_name")?;
    match name {
        None => found.push(
            "it has no primary key (ALTER TABLE processed_events ADD PRIMARY KEY (team_id, \
             event_id))"
                .to_owned(),
        ),
        Some(name) if key != ["team_id", "event_id"] => found.push(format!(
            "its primary key is ({}) (ALTER TABLE processed_events DROP CONSTRAINT {name}, ADD \
             PRIMARY KEY (team_id, event_id))",
            key.join(", ")
        )),
        Some(name) if table.try_get("key_deferrable")? => found
            .push(format!("its primary key {name} is DEFERRABLE, which ON CONFLICT cannot use")),
        Some(_) => {}
    }
    for index in table.try_get::<Vec<String>, _>("unique_indexes")? {
        found.push(format!(
            "the unique index {index} would reject events with different keys (drop it, or \
             its constraint)"
        ));
    }
    for other in table.try_get::<Vec<String>, _>("referenced_by")? {
        found.push(format!(
            "a foreign key of {other} refers to it, so that expired rows could not be deleted"
        ));
    }
    let restrictions: Vec<String> = table.try_get("restrictions")?;
    if found.is_empty() && !restrictions.is_empty() {
        tracing::warn!(
            ?restrictions,
            "processed_events has constraints, triggers, rules or policies of its own; marks that \
             they reject fail"
        );
    }
    Ok(found)
}

/// <https://www.postgresql.org/docs/current/catalog-pg-class.html>, `relkind`.
fn kind_name(kind: &str) -> &'static str {
    match kind {
        "v" => "a view",
        "m" => "a materialized view",
        "f" => "a foreign table",
        "p" => "a partitioned table",
        "S" => "a sequence",
        "i" | "I" => "an index",
        "c" => "a composite type",
        _ => "another kind of relation",
    }
}
