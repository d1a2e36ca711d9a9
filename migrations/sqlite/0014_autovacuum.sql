-- min_reader: 8
--
-- In PostgreSQL, autovacuum gets parameters for each table. SQLite reuses the pages of deleted rows at once:
-- nothing changes here.
SELECT 1;
