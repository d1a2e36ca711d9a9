-- What an older table holds without a time zone is UTC, whatever the server's zone is.
SET LOCAL TimeZone = 'UTC';

CREATE TABLE IF NOT EXISTS oncegate_migrations (
    version        bigint PRIMARY KEY,
    description    text NOT NULL,
    installed_on   timestamptz NOT NULL DEFAULT now(),
    success        boolean NOT NULL,
    checksum       bytea NOT NULL,
    execution_time bigint NOT NULL
);

ALTER TABLE oncegate_migrations ADD COLUMN IF NOT EXISTS min_reader bigint;

COMMENT ON COLUMN oncegate_migrations.min_reader IS
    'The oldest migration whose binary can still use the schema after this one';
