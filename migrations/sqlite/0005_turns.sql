-- A run claims an event before it works on it, and finishes it afterwards.
ALTER TABLE processed_events ADD COLUMN claimed_until INTEGER; -- when the claim lapses or ended; null once the event is handled
ALTER TABLE processed_events ADD COLUMN attempt INTEGER;       -- how many runs have claimed the event; null for a mark
ALTER TABLE processed_events ADD COLUMN holder TEXT;           -- who claimed it last
ALTER TABLE processed_events ADD COLUMN result BLOB;           -- what its turn left; null where it was given up
ALTER TABLE processed_events ADD COLUMN repeated INTEGER;      -- the claim was told again, to a repetition of its request
