#!/usr/bin/env python3
"""Mutation testing: small faults are put into the code, one at a time; the quick tests that run the line have to notice.

    scripts/mutate.py core                     all mutants of a room (see ROOMS)
    scripts/mutate.py routers --sample 60      a random sample (--seed)
    scripts/mutate.py logs/ledger.py           a file below src/r2v
    scripts/mutate.py core --sample 20 --control   the code as it is, loaded in the same way: all have to survive

Mutants live in memory only: a forked process imports the changed module from its tree. Which tests run a line is traced once
for each test file (build/mutation); a mutant is run against those, the most specific first, until one fails. What
subprocesses do is neither traced nor mutated. Not counted: mutants that cannot be imported.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import importlib
import importlib.abc
import importlib.util
import json
import math
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCE, TESTS, STATE = ROOT / "src" / "r2v", ROOT / "tests", ROOT / "build" / "mutation"
ROOMS = {
    "core": ["core/*.py"],
    "routers": ["routers/*.py"],
    "gateway": [f"gateway/{name}.py" for name in ("budgets", "candidates", "ledger", "routing", "sessions")],
    "evaluation": ["evaluation/*.py"],
}
PRELOAD = (
    "pytest", "numpy", "scipy.optimize", "hypothesis", "msgspec", "typer", "rich", "yaml", "starlette",
    "uvicorn", "aiohttp", "httpx", "openai", "anthropic", "torch",
)  # fmt: skip
"""Imported once, before the mutants fork off; nothing of r2v."""
FILES = 8
"""Test files that a mutant is tried on."""
OTHER: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,), ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,), ast.Mod: (ast.Mult,), ast.Pow: (ast.Mult,), ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,), ast.And: (ast.Or,), ast.Or: (ast.And,),
}  # fmt: skip
SWAPPED = {"min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum", "maximum": "minimum"}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
ALIKE = {"annotation", "returns", "decorator_list", "type_params", "msg"}
"""Fields that do not change what is done."""
WORDS = {"reason", "description", "help", "title", "strict", "encoding"}
"""Keyword arguments for people, or that right calls do not need."""


@dataclass(frozen=True)
class Mutant:
    file: str
    """Relative to src/r2v."""
    line: int
    place: int
    """Which node of the file (in walking order) is replaced, and by which of its variants."""
    variant: int
    change: str


def variants(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """(what changes, the changed node) of everything that may go wrong here."""

    def changed(what: str, **fields: Any) -> tuple[str, ast.AST]:
        other = copy.copy(node)
        for name, value in fields.items():
            setattr(other, name, value)
        return what, other

    match node:
        case ast.Compare(ops=[operator]):
            for new in OTHER[type(operator)]:
                yield changed(f"{type(operator).__name__} -> {new.__name__}", ops=[new()])
        case ast.BinOp(op=operator) | ast.AugAssign(op=operator) | ast.BoolOp(op=operator) if type(operator) in OTHER:
            new = OTHER[type(operator)][0]
            yield changed(f"{type(operator).__name__} -> {new.__name__}", op=new())
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield "not x, -x -> x", operand
        case ast.Constant(value=bool(value)):
            yield changed(f"{value} -> {not value}", value=not value)
        case ast.Constant(value=int(value)):
            yield changed(f"{value} -> {value + 1}", value=value + 1)
        case ast.Constant(value=float(value)) if value == 0 or abs(value) > 1e-6:  # tiny ones are guards for rounding
            yield changed(f"{value} -> {value * 2 or 1.0}", value=value * 2 or 1.0)
        case ast.Constant(value=str(value)) if value and " " not in value:
            yield changed(f"{value!r} -> {value + 'XX'!r}", value=value + "XX")
        case ast.Call(func=ast.Name(id=name)) if name in SWAPPED:
            yield changed(f"{name} -> {SWAPPED[name]}", func=ast.Name(SWAPPED[name], ast.Load()))
        case ast.Call(func=ast.Attribute(value=value, attr=name)) if name in SWAPPED:
            yield changed(f"{name} -> {SWAPPED[name]}", func=ast.Attribute(value, SWAPPED[name], ast.Load()))
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and not value.value):
            yield changed("return x -> return None", value=ast.Constant(None))
        case ast.Expr(value=ast.Call() | ast.Await()):
            yield "statement removed", ast.Pass()
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test) if isinstance(
            test, ast.Name | ast.Attribute | ast.Call
        ):
            yield changed("condition negated", test=ast.UnaryOp(ast.Not(), test))


def is_alike(node: ast.AST) -> bool:
    """Whether changes in it are no fault: docstrings, imports, types, errors' and logs' texts, `__all__`."""
    match node:
        case ast.Raise() | ast.JoinedStr() | ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant()):
            return True
        case ast.Subscript(value=ast.Name(id="Literal")) | ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Assign(targets=[ast.Name(id="__all__")]) | ast.Call(func=ast.Name(id="cast" | "TypeVar")):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="log" | "logger" | "warnings")))):
            return True
        case ast.keyword(arg=name):
            return name in WORDS
    return False


def nodes(tree: ast.AST) -> Iterator[tuple[ast.AST, ast.AST, str, int | None]]:
    """(node, parent, field, index in it) of every node that may be mutated."""
    for field, value in ast.iter_fields(tree):
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if field not in ALIKE and isinstance(child, ast.AST) and not is_alike(child):
                yield child, tree, field, index
                yield from nodes(child)


def mutants_of(file: str) -> Iterator[Mutant]:
    line = 1
    for place, (node, *_) in enumerate(nodes(ast.parse((SOURCE / file).read_text()))):
        line = getattr(node, "lineno", line)
        yield from (Mutant(file, line, place, i, what) for i, (what, _) in enumerate(variants(node)))


def mutated(mutant: Mutant, control: bool = False) -> ast.Module:
    """The module with the mutant in it; as a control, without."""
    tree = ast.parse((SOURCE / mutant.file).read_text())
    old, parent, field, index = list(nodes(tree))[mutant.place]
    new = old if control else list(variants(old))[mutant.variant][1]
    if index is None:
        setattr(parent, field, ast.copy_location(new, old))
    else:
        getattr(parent, field)[index] = ast.copy_location(new, old)
    return ast.fix_missing_locations(tree)


class Hook(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from its tree, with the mutant in it (or, as a control, without)."""

    def __init__(self, mutant: Mutant, control: bool) -> None:
        self._path = SOURCE / mutant.file
        self._name = ".".join(("r2v", *Path(mutant.file).with_suffix("").parts)).removesuffix(".__init__")
        assert not any(name.startswith("r2v") for name in sys.modules), "tests would see the code without the mutant"
        self._code = compile(mutated(mutant, control), str(self._path), "exec")
        self.state = "not loaded"

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self._path, loader=self) if name == self._name else None

    def is_package(self, name: str) -> bool:
        return self._path.name == "__init__.py"

    def exec_module(self, module: ModuleType) -> None:
        self.state = "cannot be imported"
        exec(self._code, module.__dict__)
        self.state = "loaded"


class Tracer:
    """A pytest plug-in: which test runs which lines of r2v, and how long each takes."""

    def __init__(self) -> None:
        self._test = ""
        self._calls = Counter[Any]()
        self.lines: dict[str, set[str]] = defaultdict(set)
        """`file:line` -> tests, or "" where a fixture ran it: all tests of the file."""
        self.seconds: dict[str, float] = defaultdict(float)

    def _trace(self, frame: Any, event: str, argument: object) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(str(SOURCE)):
            return None
        if event == "call":
            self._calls[frame.f_code] += 1
            if self._calls[frame.f_code] > 200:  # within one test it will do nothing new
                return None
        self.lines[f"{name}:{frame.f_lineno}"].add(self._test)
        return self._trace

    def pytest_runtest_logstart(self) -> None:
        self._test = ""
        threading.settrace(self._trace)
        sys.settrace(self._trace)

    def pytest_runtest_call(self, item: Any) -> None:
        self._test = item.nodeid
        self._calls.clear()

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration if report.passed else math.inf  # failed or skipped: of no use


def pytest_status(arguments: Iterable[str], *plugins: object) -> int:
    import pytest

    warned = "ignore::pytest.PytestAssertRewriteWarning"  # its plug-ins are imported already
    fixed = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0", "-W", warned]
    return int(pytest.main([*fixed, *arguments], plugins=list(plugins)))


def forked(work: Callable[[], int], timeout: float) -> int | None:
    """Exit status of the work, done in a process of its own; None if it took too long. Its output is in build/mutation."""
    if (child := os.fork()) == 0:
        status = 70
        try:
            os.setsid()
            sink = os.open(STATE / f"{os.getppid()}.log", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            for stream in (0, 1, 2):
                os.dup2(sink, stream)
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    until, ended, status = time.monotonic() + timeout, 0, 0
    try:
        while not ended and time.monotonic() < until:
            time.sleep(0.02)
            ended, status = os.waitpid(child, os.WNOHANG)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    if not ended:
        os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if ended else None


def traced() -> tuple[dict[str, set[str]], dict[str, tuple[int, float]]]:
    """(`file:line` -> tests, test -> (lines that it runs itself, seconds)); only what has changed is traced again."""
    common = [*sorted(SOURCE.rglob("*.py")), *(path for path in sorted(TESTS.glob("*.py")) if "test_" not in path.name)]
    code = b"".join(path.read_bytes() for path in common)
    lines, costs = defaultdict[str, set[str]](set), dict[str, tuple[int, float]]()
    for test in sorted(TESTS.glob("test_*.py")):
        kept = STATE / f"{test.stem}-{hashlib.sha256(code + test.read_bytes()).hexdigest()[:16]}.json"
        if not kept.exists():
            print(f"mutate: tracing {test.name}", flush=True)
            forked(partial(trace, test, kept), 1800)
        if not kept.exists():
            sys.exit(f"mutate: pytest cannot run {test.name}; see {STATE / f'{os.getpid()}.log'}")
        of_file, took = json.loads(kept.read_text())
        width = Counter(test for tests in of_file.values() for test in tests)
        costs |= {test: (width[test], seconds) for test, seconds in took.items()}
        for where, tests in of_file.items():
            lines[where.removeprefix(f"{SOURCE}/")] |= set(took) if "" in tests else set(tests) & set(took)
    return lines, costs


def trace(test: Path, kept: Path) -> int:
    tracer = Tracer()
    status = pytest_status(["-m", "quick", str(test)], tracer)
    sys.settrace(None)
    if status in (0, 1, 5):
        lines = {where: sorted(tests) for where, tests in tracer.lines.items()}
        kept.write_text(json.dumps([lines, {k: v for k, v in tracer.seconds.items() if v < math.inf}]))
    return status


def tests_for(mutant: Mutant, lines: dict[str, set[str]], costs: dict[str, tuple[int, float]], budget: float) -> list[str]:
    """Tests that run the mutant's line, those that run the fewest lines first; for what runs at import, those that run the
    most of the file's functions, then the quickest beside them. At most `budget` seconds, and few files: each is imported.
    """
    functions = [n for n in ast.walk(ast.parse((SOURCE / mutant.file).read_text())) if isinstance(n, FUNCTION)]
    inside = {line for n in functions for line in range(n.body[0].lineno, (n.end_lineno or 0) + 1)}
    own = Counter(test for line in inside for test in lines.get(f"{mutant.file}:{line}", ()))
    tests = lines.get(f"{mutant.file}:{mutant.line}", set()) if mutant.line in inside else set()
    beside = {test.split("::")[0] for test in own}
    order = {test: costs[test][0] for test in tests} or {t: -own[t] for t in costs if t.split("::")[0] in beside}
    chosen, files, spent = list[str](), set[str](), 0.0
    for test in sorted(order, key=lambda test: (order[test], costs[test][1])):
        file = test.split("::")[0]
        if spent + costs[test][1] <= budget and (file in files or len(files) < FILES):
            chosen.append(test)
            files.add(file)
            spent += costs[test][1]
    return chosen or sorted(order, key=lambda test: costs[test][1])[:1]


def wilson(hits: int, n: int) -> str:
    """95 % interval of a share, in percent."""
    z2, p = 1.96**2, hits / n
    middle, half = p + z2 / (2 * n), math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
    return f"{100 * (middle - half) / (1 + z2 / n):.0f} to {100 * (middle + half) / (1 + z2 / n):.0f} %"


def outcome(mutant: Mutant, tests: list[str], control: bool, timeout: float) -> str:
    def work() -> int:
        hook = Hook(mutant, control)
        sys.meta_path.insert(0, hook)
        status = pytest_status(["-x", *tests])
        return {"loaded": status, "cannot be imported": 90, "not loaded": 91}[hook.state]

    if not tests:
        return "no test"
    status = forked(work, timeout)
    # 2, 4: tests or conftest.py cannot be imported, though the mutant itself can (else 90).
    names = {0: "survived", 1: "killed", 2: "killed", 4: "killed", None: "timeout", 90: "unimportable"}
    return names.get(status, f"error {status}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", nargs="+", help=f"rooms ({', '.join(ROOMS)}) or files below src/r2v")
    parser.add_argument("--sample", type=int, default=1_000_000, help="so many mutants of each room")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=90, help="seconds a mutant may take; a longer one counts as killed")
    parser.add_argument("--budget", type=float, default=10, help="seconds of tests (as traced) per mutant")
    parser.add_argument("--control", action="store_true", help="load the code as it is; what does not survive is an error")
    options = parser.parse_args()
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the mutant ends, too
    sys.path[:0] = [str(ROOT / "src"), str(TESTS), str(ROOT)]
    os.environ.update(OMP_NUM_THREADS="1", HYPOTHESIS_STORAGE_DIRECTORY=str(STATE / "hypothesis"))
    STATE.mkdir(parents=True, exist_ok=True)
    for name in PRELOAD:
        importlib.import_module(name)
    lines, costs = traced()
    for room in options.what:
        files = sorted({path for pattern in ROOMS.get(room, [room]) for path in SOURCE.glob(pattern)})
        if len(files) < len(ROOMS.get(room, [room])):
            parser.error(f"{room} names files that are not there")
        every = [mutant for file in files for mutant in mutants_of(str(file.relative_to(SOURCE)))]
        start, counts = time.monotonic(), Counter[str]()
        for mutant in random.Random(options.seed).sample(every, min(options.sample, len(every))):
            tests = tests_for(mutant, lines, costs, options.budget)
            result = outcome(mutant, tests, options.control, options.timeout)
            counts[result] += 1
            if result != "killed":
                print(f"  {result:<9} src/r2v/{mutant.file}:{mutant.line}  {mutant.change}", flush=True)
        killed, n = counts["killed"] + counts["timeout"], counts.total() - counts["unimportable"]
        share = f"{killed} of {n} killed = {100 * killed / n:.1f} % (95 %: {wilson(killed, n)})"
        took = f"{len(every)} mutants in all, seed {options.seed}, {time.monotonic() - start:.0f} s"
        print(f"mutate: {room}: {share}; {dict(counts)}; {took}", flush=True)


if __name__ == "__main__":
    main()
