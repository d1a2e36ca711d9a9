-- One delivery may be known under several names, one row each, and with a payload.
ALTER TABLE processed_events ADD COLUMN names TEXT;  -- all names of an event that has several, its own first: a JSON array
ALTER TABLE processed_events ADD COLUMN digest TEXT; -- what tells the payload from another: 128 bits, hex; null on the rows of aliases
