import json

HIDDEN = (
    "date;payee;amount;note\n"
    '05.02.2024;"A ""quoted"" name";1.000.000,01;x\n'
    "2024-02-05;Zoo;-0,07;\n"
    '2024-02-05;Zoo;0,07-;"a\nb"\n'
    "29.02.2024; Two   words ;19.99;\n"
    "2024-02-01;Empty; ;\n"
    "01.02.2024;Small;0,29;\n"
    "01.02.2024;Small;1.15;\n"
)
WANTED = [
    ("2024-02-01", "Small", 29),
    ("2024-02-01", "Small", 115),
    ("2024-02-05", 'A "quoted" name', 100000001),
    ("2024-02-05", "Zoo", -7),
    ("2024-02-29", "Two words", 1999),
]


def grade(run):
    run("cat > hidden.csv", HIDDEN)
    rows = json.loads(run("python3 clean.py hidden.csv").out)
    found = [(row["date"], row["payee"], row["cents"]) for row in rows]
    if any(type(row["cents"]) is not int or len(row) != 3 for row in rows):
        return "the objects are not of the form asked for"
    return None if found == WANTED else "the rows are wrong on another file"
