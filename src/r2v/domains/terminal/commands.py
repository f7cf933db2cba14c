"""What kind of thing a shell command does: the class of its most telling part."""

from __future__ import annotations

import re
from typing import Literal

CommandClass = Literal["eval", "build", "run", "install", "write", "explore", "other", "image", "unknown"]
RANK: tuple[CommandClass, ...] = ("eval", "build", "install", "run", "write", "explore")
"""Most telling first: `cd app && make && make test` is an evaluation."""


def _table(names: dict[CommandClass, str]) -> dict[str, CommandClass]:
    return {name: kind for kind, listed in names.items() for name in listed.split()}


PROGRAMS = _table(
    {
        "eval": "pytest py.test tox nosetests ctest jest rspec bats shellcheck diff cmp test [ [[",
        "build": "make cmake ninja meson gcc g++ cc c++ clang clang++ ld javac rustc tsc gfortran configure",
        "install": "pip pip3 apt apt-get yum dnf apk brew conda mamba gem uv",
        "run": "node ruby perl php java bash sh Rscript julia sqlite3 psql mysql curl wget docker",
        "write": "tee touch mkdir cp mv rm rmdir ln chmod chown patch tar zip unzip gzip gunzip truncate split dd vim",
        "explore": "ls cat head tail less more grep egrep rg find pwd cd file stat wc tree sort uniq cut awk sed which type "
        "whoami env printenv echo printf history du df ps top free uname id date man od xxd hexdump strings jq readelf nm "
        "objdump column tr nl tac comm md5sum sha1sum sha256sum",
    }
)
_GIT = _table(
    {
        "eval": "fsck",
        "write": "add commit apply reset checkout switch restore rebase merge cherry-pick branch tag stash rm mv config "
        "init filter-branch am revert update-ref notes clean",
        "explore": "log status diff show blame grep reflog ls-files ls-tree rev-parse rev-list cat-file for-each-ref",
    }
)
_PACKAGES = _table(
    {"eval": "test t check", "build": "build compile package", "install": "install i ci add get update", "run": "run start"}
)
SECOND_WORDS = {"git": _GIT, "make": _table({"eval": "test tests check"})} | dict.fromkeys(
    ["npm", "yarn", "pnpm", "cargo", "go", "mvn", "gradle", "dotnet"], _PACKAGES
)
"""Programs whose kind hangs on their first word that is no option."""
MODULES = _table({"eval": "pytest unittest doctest", "install": "pip venv ensurepip", "build": "build compileall"})
"""`python -m ...`"""

_IMAGE = re.compile(r"^(?:view_image|image_read|xdg-open|feh|open|view|cat|read\w*) .*\.(?:png|jpe?g|gif|webp)\b")
_TEST_FILE = re.compile(r"(?:^|[/_-])(?:run[-_]?)?tests?(?:[-_.][\w.]*|/.*)?$")
_PYTHON = re.compile(r"python[\d.]*$")
_WRITES_TO = re.compile(r"(?<![0-9&<>=-])>>?\s*[\w./~\"'$-]")
_QUIET = re.compile(r"\d?>\s*(?:/dev/null|&\d)|&>\s*/dev/null")
_HEREDOC = re.compile(r"<<-?[ \t]*['\"\\]?(\w+)")
_SPLIT = re.compile(r"&&|\|\||[;|\n&]")
_PREFIX = re.compile(
    r"^(?:(?:sudo|time|nice|exec|command|then|do|if|while|else|!|\(|\{|timeout \S+)\s+|[A-Za-z_]\w*=\S*\s+)+"
)


def command_class(command: str) -> CommandClass:
    """The class of a command line or script; `unknown` where there is no command."""
    text = _QUIET.sub(" ", _without_heredocs(command)).strip()
    if not re.search(r"\w", text):
        return "unknown"
    if _IMAGE.match(text):
        return "image"
    parts = [_PREFIX.sub("", part.strip()).split() for part in _SPLIT.split(text)]
    found = {_class_of(words) for words in parts if words}
    if _WRITES_TO.search(text):
        found.add("write")
    return next((kind for kind in RANK if kind in found), "other")


def _without_heredocs(command: str) -> str:
    """The command without the lines that it only hands on, e.g. the text of a file that it writes."""
    kept, end = [], None
    for line in command.split("\n"):
        if end is not None:
            end = None if line.strip() == end else end
            continue
        kept.append(line)
        if match := _HEREDOC.search(line):
            end = match[1]
    return "\n".join(kept)


def _class_of(words: list[str]) -> CommandClass:
    """Of one simple command."""
    name = words[0].rsplit("/", 1)[-1]
    plain = [word for word in words[1:] if not word.startswith("-")]
    if _PYTHON.match(name):
        if "-m" in words[1:-1]:
            return MODULES.get(words[words.index("-m") + 1], "run")
        return "eval" if plain and _TEST_FILE.search(plain[0]) else "run"
    if name in SECOND_WORDS and plain and plain[0] in SECOND_WORDS[name]:
        return SECOND_WORDS[name][plain[0]]
    if name == "sed" and any(word.startswith(("-i", "--in-place")) for word in words[1:]):
        return "write"
    if name in ("bash", "sh") and plain and _TEST_FILE.search(plain[0]):
        return "eval"
    if name in PROGRAMS:
        return PROGRAMS[name]
    if "/" in words[0]:
        return "eval" if _TEST_FILE.search(words[0]) else "run"
    return "other"
