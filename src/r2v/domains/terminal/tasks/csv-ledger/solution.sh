cat > clean.py <<'P'
import csv
import json
import re
import sys
from decimal import Decimal


def cents(text):
    negative = text.startswith("-") or text.endswith("-")
    text = text.strip("-+ ")
    if "," in text:
        text = text.replace(".", "").replace(",", ".")
    value = int(Decimal(text) * 100)
    return -value if negative else value


def day(text):
    match = re.fullmatch(r"(\d+)\.(\d+)\.(\d{4})", text)
    return f"{match[3]}-{int(match[2]):02d}-{int(match[1]):02d}" if match else text


rows = set()
with open(sys.argv[1], newline="") as file:
    for row in csv.DictReader(file, delimiter=";"):
        if row["amount"].strip():
            rows.add((day(row["date"].strip()), " ".join(row["payee"].split()), cents(row["amount"].strip())))
print(json.dumps([{"date": d, "payee": p, "cents": c} for d, p, c in sorted(rows)]))
P
python3 clean.py ledger.csv
