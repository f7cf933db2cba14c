#!/bin/sh
# Makes .venv with pinned dependencies and a CPU build of torch. Usage: scripts/setup.sh EXTRAS (e.g. train,dev)
# Does nothing when it already did so for the same extras, pins and pyproject.toml.
set -eu
cd "$(dirname "$0")/.."
extras=$1

stamp=.venv/.setup-$(echo "$extras" | tr ',' '-')
if [ -e "$stamp" ] && [ "$stamp" -nt pyproject.toml ] && [ "$stamp" -nt constraints.txt ]; then
    exit 0
fi

if [ ! -x .venv/bin/python ]; then
    for python in python3 python3.13 python3.12 python3.11 none; do
        if [ "$python" = none ]; then
            echo "setup: no Python 3.11 or newer found; install one (Debian/Ubuntu: apt install python3 python3-venv)" >&2
            exit 1
        fi
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi
    done
    echo "setup: making .venv with $("$python" --version)"
    if ! "$python" -m venv .venv; then
        rm -rf .venv
        echo "setup: this Python cannot make virtual environments (Debian/Ubuntu: apt install python3-venv)" >&2
        exit 1
    fi
fi

# Some source packages call `python` while they build, and plain Debian has only python3.
PATH="$PWD/.venv/bin:$PATH"
export PATH PIP_DISABLE_PIP_VERSION_CHECK=1
pip="python -m pip install -q -c constraints.txt"

case ",$extras," in *,train,*)
    if ! python -c 'import torch' 2>/dev/null; then
        torch=$(sed -n 's/^torch==//p' constraints.txt)
        echo "setup: installing torch $torch (CPU build)"
        # On Linux the registry's own build brings gigabytes of CUDA; macOS has only CPU builds there.
        if [ "$(uname -s)" = Linux ]; then
            $pip "torch==$torch+cpu" 2>/dev/null || $pip "torch==$torch+cpu" --extra-index-url https://download.pytorch.org/whl/cpu
        else
            $pip "torch==$torch"
        fi
    fi ;;
esac
echo "setup: installing r2v[$extras]"
$pip -e ".[$extras]"
touch "$stamp"
