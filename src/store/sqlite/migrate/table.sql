CREATE TABLE IF NOT EXISTS oncegate_migrations (
    version        BIGINT PRIMARY KEY,
    description    TEXT NOT NULL,
    installed_on   TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    success        BOOLEAN NOT NULL,
    checksum       BLOB NOT NULL,
    execution_time BIGINT NOT NULL,
    min_reader     INTEGER -- the oldest migration whose binary can still use the schema after this one
);
