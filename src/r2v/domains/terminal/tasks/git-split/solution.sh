set -e
git reset -q --soft HEAD~1
git reset -q
git add src && git commit -qm "Add the parser"
git add docs && git commit -qm "Write the manual"
