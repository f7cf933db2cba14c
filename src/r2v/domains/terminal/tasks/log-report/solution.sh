set -e
cat > report <<'P'
#!/usr/bin/env python3
import re
import sys

LINE = re.compile(r'^\S+ \[[^\]]*\] "(\S+) (.*?)(?: HTTP/[\d.]+)?" (\d{3}) (\d+)ms$')
rows = {}
for line in open(sys.argv[1]):
    match = LINE.match(line.rstrip("\n"))
    if match and match[1] == "GET":
        path = match[2].split("?")[0]
        n, errors, slowest = rows.get(path, (0, 0, 0))
        rows[path] = n + 1, errors + (int(match[3]) >= 500), max(slowest, int(match[4]))
print("path,requests,errors,slowest_ms")
for path, (n, errors, slowest) in sorted(rows.items(), key=lambda row: (-row[1][0], row[0])):
    print(f"{path},{n},{errors},{slowest}")
P
chmod +x report
./report access.log > report.csv
