import json

DRIVER = """
import json, sqlite3, sys
given = json.load(sys.stdin)
db = sqlite3.connect(given["file"])
if given["file"] == ":memory:":
    db.executescript(given["schema"])
    for table, rows in given["rows"].items():
        db.executemany("INSERT INTO " + table + " VALUES (" + ",".join("?" * len(rows[0])) + ")", rows)
print(json.dumps(db.execute(open("report.sql").read()).fetchall()))
"""
SCHEMA = """
CREATE TABLE members (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE books (id INTEGER PRIMARY KEY, title TEXT NOT NULL);
CREATE TABLE loans (member INTEGER NOT NULL, book INTEGER NOT NULL, due TEXT NOT NULL, returned TEXT);
"""
ROWS = {
    "members": [[9, "Zed"], [8, "Amy"], [7, "Amy"], [6, "Never"]],
    "books": [[1, "B"], [2, "A"], [3, "B"], [4, "C"]],
    "loans": [
        [9, 1, "2024-01-01", "2024-01-02"], [9, 3, "2024-01-01", "2023-12-01"], [9, 2, "2024-06-30", None],
        [8, 2, "2024-06-29", None], [8, 1, "2025-01-01", "2025-01-03"], [7, 4, "2024-08-01", None],
    ],
}  # fmt: skip
GIVEN = [["Ada", 3, 2, "Maps"], ["Cy", 2, 1, "Knots"], ["Bo", 2, 0, "Knots"]]
WANTED = [["Amy", 2, 2, "A"], ["Zed", 3, 1, "B"], ["Amy", 1, 0, "C"]]


def grade(run):
    for file, wanted in (("library.db", GIVEN), (":memory:", WANTED)):
        asked = json.dumps({"file": file, "schema": SCHEMA, "rows": ROWS})
        if json.loads(run(f"python3 -c '{DRIVER}'", asked).out) != wanted:
            return f"report.sql is wrong on {'another database' if file == ':memory:' else file}"
    return None
