cat > report.sql <<'S'
SELECT m.name, COUNT(*),
       SUM(COALESCE(l.returned, '2024-06-30') > l.due) AS late,
       (SELECT b.title FROM loans k JOIN books b ON b.id = k.book WHERE k.member = m.id
        GROUP BY b.title ORDER BY COUNT(*) DESC, b.title LIMIT 1)
FROM members m JOIN loans l ON l.member = m.id
GROUP BY m.id
ORDER BY late DESC, m.name, m.id
S
python3 -c "
import sqlite3
for row in sqlite3.connect('library.db').execute(open('report.sql').read()): print(row)"
