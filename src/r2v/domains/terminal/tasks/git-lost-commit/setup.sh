set -e
git init -q --template= -b main .
printf 'class Clock:\n    def now(self):\n        raise NotImplementedError\n' > clock.py
git add . && git commit -qm "Add a clock"
printf '# Limiter\n' > README.md
git add . && git commit -qm "Start a README"
bucket() { printf 'class Bucket:\n    def __init__(self, rate, burst):\n%s        self.rate, self.burst = rate, burst\n' "$1" > bucket.py; }
bucket ''
git add . && git commit -qm "Add the token bucket"
git reset -q --hard HEAD~1
bucket '        if burst <= 0:
            raise ValueError("burst must be positive")
'
git add . && git commit -qm "Add the token bucket"
git reset -q --hard HEAD~1
printf 'notes\n' > notes.txt
git add . && git commit -qm "Add the token bucket later"
git reset -q --hard HEAD~1
rm -rf .git/logs .git/ORIG_HEAD
git read-tree HEAD
