python3 - <<'P'
import sqlite3

db = sqlite3.connect("library.db")
db.executescript(open("schema.sql").read())
db.executemany("INSERT INTO members VALUES (?, ?)", [(1, "Ada"), (2, "Bo"), (3, "Cy"), (4, "Dee")])
db.executemany("INSERT INTO books VALUES (?, ?)", [(1, "Tides"), (2, "Maps"), (3, "Maps"), (4, "Knots")])
loans = [
    (1, 1, "2024-01-10", "2024-01-09"), (1, 2, "2024-02-10", "2024-02-11"), (1, 3, "2024-05-10", None),
    (2, 1, "2024-07-10", None), (2, 4, "2024-03-10", "2024-03-10"), (3, 4, "2024-06-30", None), (3, 4, "2024-06-29", None),
]
db.executemany("INSERT INTO loans VALUES (?, ?, ?, ?)", loans)
db.commit()
P
