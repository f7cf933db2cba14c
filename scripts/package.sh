#!/bin/sh
# Builds the wheel and checks it in a clean environment: it imports and decides without torch, and its command starts.
set -eu
cd "$(dirname "$0")/.."
rm -rf dist
.venv/bin/python -m build -q --wheel
clean=$(mktemp -d)
trap 'rm -rf "$clean"' EXIT
.venv/bin/python -m venv "$clean/venv"
"$clean/venv/bin/python" -m pip install -q -c constraints.txt dist/*.whl
cd "$clean"
venv/bin/python -c 'import r2v, r2v.routers.mlp, sys; assert "torch" not in sys.modules'
venv/bin/r2v --help >/dev/null
echo "package: $(ls "$OLDPWD/dist") installs, imports and starts without torch"
