CREATE TABLE members (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE books (id INTEGER PRIMARY KEY, title TEXT NOT NULL);
-- Days are 'YYYY-MM-DD'; returned is NULL as long as the book is out. Two members may share a name: they stay two rows,
-- then sorted by id. A book may have several rows (copies) with one title, which counts as one.
CREATE TABLE loans (
    member INTEGER NOT NULL REFERENCES members (id),
    book INTEGER NOT NULL REFERENCES books (id),
    due TEXT NOT NULL,
    returned TEXT
);
