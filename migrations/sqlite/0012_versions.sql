-- min_reader: 8
--
-- Distinguishes one state of a row from another: a decision is written only if the rows that it rests on
-- are as they were read. Chosen at random with each write; 0 on rows that no such binary wrote.
ALTER TABLE processed_events ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE oncegate_sessions ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
