set -e
git init -q --template= -b main .
mkdir src docs
printf 'def read(path):\n    return open(path).read()\n' > src/files.py
printf 'Manual\n======\n' > docs/manual.txt
git add . && git commit -qm "Start"
printf 'def words(text):\n    return text.split()\n' > src/parser.py
printf 'from files import read\nfrom parser import words\n' > src/main.py
printf 'Manual\n======\n\nwords splits a text.\n' > docs/manual.txt
printf 'python3 src/main.py FILE\n' > docs/usage.txt
git add . && git commit -qm "Parser and manual"
rm -rf .git/logs
git read-tree HEAD
