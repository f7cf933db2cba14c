set -e
git init -q --template= -b main .
mkdir deploy
printf 'print("hello")\n' > app.py
git add . && git commit -qm "Say hello"
printf '[login]\nkey = tide-4417-orchid\n' > deploy/credentials.ini
printf 'set -e\npython3 app.py\n' > deploy/run.sh
git add . && git commit -qm "Add deployment"
printf 'print("hello, world")\n' > app.py
git add . && git commit -qm "Release 1.0"
git tag v1.0
mkdir settings && git mv deploy/credentials.ini settings/login.ini
printf 'region = north\n' > settings/app.ini
git add . && git commit -qm "Collect the settings"
printf 'print("hello, all")\n' > app.py
git add . && git commit -qm "Greet everybody"
rm -rf .git/logs
git read-tree HEAD
