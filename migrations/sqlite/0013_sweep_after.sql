-- min_reader: 8
--
-- In PostgreSQL, sweeps find rows by a coarse column, so that the usual change of a row writes to no index.
-- SQLite's rows stay in place when they change, and one entry of an index is cheap: nothing changes here.
SELECT 1;
