#!/usr/bin/env python3
"""Mutation testing: small faults are put into the code, one at a time; the tests that run the line have to notice.

    scripts/mutate.py core                     all mutants of a room (see ROOMS)
    scripts/mutate.py routers --sample 200     a sample, the same one each time (--seed)
    scripts/mutate.py core/features.py --tests tests/test_features_routers.py

Mutants live in memory only (an import hook compiles the changed tree): two run at once, and the working tree stays as it is.
Which tests run a line is found by tracing the quick tests once; a mutant is then run against those, the fastest first, up to
--budget seconds of them. What other processes do (the command line in a subprocess) is neither traced nor mutated. Results
are kept in build/mutation.jsonl; a run that was stopped goes on, and survivors are tried again after a test was changed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "r2v"
STATE = ROOT / "build"
ROOMS = {
    "core": ("core/*.py",),
    "routers": ("routers/*.py",),
    "gateway": tuple(f"gateway/{name}.py" for name in ("accounts", "budgets", "prices", "redis_state", "routing")),
    "evaluation": ("evaluation/*.py",),
}
PRELOAD = (
    "pytest", "numpy", "scipy.optimize", "hypothesis", "msgspec", "typer", "rich", "yaml", "starlette",
    "uvicorn", "aiohttp", "httpx", "openai", "anthropic", "pyarrow", "torch",
)  # fmt: skip
"""Imported once, before the mutants fork off; nothing of r2v."""

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum", "maximum": "minimum"}


@dataclass(frozen=True)
class Mutant:
    file: str
    """Relative to src/r2v."""
    line: int
    place: int
    """Which node of the file (in walking order) is replaced, and by which of its variants."""
    variant: int
    change: str

    @property
    def id(self) -> str:
        return f"{self.file}:{self.line}#{self.place}.{self.variant} {self.change}"


def variants(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """(what changes, the changed node) of everything that may go wrong here."""

    def changed(what: str, **fields: Any) -> tuple[str, ast.AST]:
        other = copy.deepcopy(node)
        for name, value in fields.items():
            setattr(other, name, value)
        return what, other

    match node:
        case ast.Compare(ops=[operator]):
            for other in COMPARISONS[type(operator)]:
                yield changed(f"{type(operator).__name__} -> {other.__name__}", ops=[other()])
        case ast.BinOp(op=operator) | ast.AugAssign(op=operator) if type(operator) in OPERATORS:
            other_op = OPERATORS[type(operator)]
            yield changed(f"{type(operator).__name__} -> {other_op.__name__}", op=other_op())
        case ast.BoolOp(op=ast.And()):
            yield changed("and -> or", op=ast.Or())
        case ast.BoolOp():
            yield changed("or -> and", op=ast.And())
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "not x -> x", operand
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield "-x -> x", operand
        case ast.Constant(value=bool(value)):
            yield changed(f"{value} -> {not value}", value=not value)
        case ast.Constant(value=int(value)):
            yield changed(f"{value} -> {value + 1}", value=value + 1)
        case ast.Constant(value=float(value)):
            yield changed(f"{value} -> {value * 2 or 1.0}", value=value * 2 or 1.0)
        case ast.Constant(value=str(value)) if value and " " not in value:
            yield changed(f"{value!r} -> {value + 'XX'!r}", value=value + "XX")
        case ast.Call(func=ast.Name(id=name)) if name in FUNCTIONS:
            yield changed(f"{name} -> {FUNCTIONS[name]}", func=ast.Name(FUNCTIONS[name], ast.Load()))
        case ast.Call(func=ast.Attribute(value=value, attr=name)) if name in FUNCTIONS:
            yield changed(f"{name} -> {FUNCTIONS[name]}", func=ast.Attribute(value, FUNCTIONS[name], ast.Load()))
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield changed("return x -> return None", value=ast.Constant(None))
        case ast.Expr(value=ast.Call() | ast.Await()):
            yield "statement removed", ast.Pass()
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test) if isinstance(
            test, ast.Name | ast.Attribute | ast.Call
        ):
            yield changed("condition negated", test=ast.UnaryOp(ast.Not(), test))


def nodes(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
    """(parent, field, index in it) of every node that may be mutated: not docstrings, types, and words for people."""
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list", "type_params", "msg"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue
            if isinstance(child, ast.Subscript) and ast.unparse(child.value) == "Literal":
                continue
            if isinstance(child, ast.Assign) and ast.unparse(child.targets[0]) == "__all__":
                continue
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            yield tree, field, index
            yield from nodes(child)


def _at(place: tuple[ast.AST, str, int | None]) -> ast.AST:
    parent, field, index = place
    value = getattr(parent, field)
    return value if index is None else value[index]  # type: ignore[no-any-return]


def mutants_of(file: str) -> list[Mutant]:
    tree = ast.parse((SOURCE / file).read_text())
    found, line = [], 1
    for place, where in enumerate(nodes(tree)):
        node = _at(where)
        line = getattr(node, "lineno", line)
        found += [Mutant(file, line, place, i, what) for i, (what, _) in enumerate(variants(node))]
    return found


def mutated(mutant: Mutant) -> ast.Module:
    tree = ast.parse((SOURCE / mutant.file).read_text())
    parent, field, index = where = list(nodes(tree))[mutant.place]
    old, new = _at(where), list(variants(_at(where)))[mutant.variant][1]
    if hasattr(old, "lineno"):
        ast.copy_location(new, old)
    if index is None:
        setattr(parent, field, new)
    else:
        getattr(parent, field)[index] = new
    return ast.fix_missing_locations(tree)


class Hook(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a changed tree."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant
        self._path = SOURCE / mutant.file
        parts = ("r2v", *Path(mutant.file).with_suffix("").parts)
        self._name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        folders = [str(self._path.parent)] if self._path.name == "__init__.py" else None
        spec = importlib.machinery.ModuleSpec(name, self, origin=str(self._path), is_package=folders is not None)
        spec.has_location = True
        spec.submodule_search_locations = folders
        return spec

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(mutated(self._mutant), str(self._path), "exec"), module.__dict__)


class Tracer:
    """A pytest plug-in: which test runs which lines of the given files, and how long each takes."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = {str(SOURCE / file): file for file in files}
        self._test = ""
        self._setup = True
        self.by_line: dict[str, set[str]] = defaultdict(set)
        """`file:line` -> tests, or test files where a fixture ran it: all their tests."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.left_out: set[str] = set()
        """Skipped, or failed without a mutant."""

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._line if frame.f_code.co_filename in self._files else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        where = f"{self._files[frame.f_code.co_filename]}:{frame.f_lineno}"
        self.by_line[where].add(self._test.split("::")[0] if self._setup else self._test)
        return self._line

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._test, self._setup = nodeid, True
        threading.settrace(self._call)
        sys.settrace(self._call)

    def pytest_runtest_call(self) -> None:
        self._setup = False

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration
        if not report.passed:
            self.left_out.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        sys.settrace(None)
        threading.settrace(None)


ARGUMENTS = [
    "-q",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:xdist",
    "--hypothesis-seed=0",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
]


def _fingerprint(paths: Sequence[Path]) -> str:
    whole = hashlib.sha256()
    for path in sorted(paths):
        whole.update(path.read_bytes())
    return whole.hexdigest()[:16]


def _in_child(work: Callable[[], int], output: str = os.devnull) -> int:
    """Starts `work` in a forked process group; its process id."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    status = 70
    try:
        sink = os.open(output, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        for stream in (0, 1, 2):
            os.dup2(sink, stream)
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def traced(files: Sequence[str], tests: Sequence[str], cache: str) -> tuple[dict[str, list[str]], dict[str, float]]:
    """(`file:line` -> tests, seconds by test); kept in a file until code or tests change."""
    path, output = STATE / f"mutation-lines-{cache}.json", STATE / "mutation-trace.log"
    if not path.exists():
        print("mutate: tracing which tests run which lines", flush=True)

        def work() -> int:
            import pytest

            tracer = Tracer(files)
            status = int(pytest.main([*ARGUMENTS, "-m", "quick", *tests], plugins=[tracer]))
            if status in (0, 1):
                seconds = {test: taken for test, taken in tracer.seconds.items() if test not in tracer.left_out}
                found = {
                    "lines": {where: sorted(tests) for where, tests in tracer.by_line.items()},
                    "seconds": seconds,
                    "left_out": sorted(tracer.left_out),
                }
                path.with_suffix(".part").write_text(json.dumps(found))
                path.with_suffix(".part").rename(path)
            return status

        status = os.waitstatus_to_exitcode(os.waitpid(_in_child(work, str(output)), 0)[1])
        if not path.exists():
            raise SystemExit(f"mutate: pytest cannot run the tests (status {status}); see {output}")
    found = json.loads(path.read_text())
    for test in found["left_out"]:
        print(f"mutate: left out: {test} (skipped, or fails without a mutant)")
    return found["lines"], found["seconds"]


def tests_for(mutant: Mutant, lines: dict[str, list[str]], seconds: dict[str, float], budget: float) -> list[str]:
    """The fastest tests that run the mutant's line; for what runs at import, those that run anything of its file."""
    entries = set(lines.get(f"{mutant.file}:{mutant.line}", ()))
    if not entries:
        entries = {test for where, tests in lines.items() if where.startswith(f"{mutant.file}:") for test in tests}
    chosen: list[str] = []
    spent = 0.0
    for test in sorted(seconds, key=lambda test: seconds[test]):
        if test in entries or test.split("::")[0] in entries:
            spent += seconds[test]
            if chosen and spent > budget:
                break
            chosen.append(test)
    return chosen


def examine(
    mutants: Sequence[Mutant], chosen: dict[str, list[str]], jobs: int, timeout: float
) -> Iterator[tuple[Mutant, str]]:
    """(mutant, killed | timeout | survived), as they end."""
    waiting, running = list(reversed(mutants)), dict[int, tuple[Mutant, float]]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                mutant = waiting.pop()

                def work(mutant: Mutant = mutant) -> int:
                    import pytest

                    sys.meta_path.insert(0, Hook(mutant))
                    return int(pytest.main([*ARGUMENTS, "-x", *chosen[mutant.id]]))

                running[_in_child(work)] = mutant, time.monotonic() + timeout
            child, status = os.waitpid(-1, os.WNOHANG)
            if child in running:
                mutant, _ = running.pop(child)
                yield mutant, "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
                continue
            for process, (mutant, until) in list(running.items()):
                if time.monotonic() > until:
                    os.killpg(process, signal.SIGKILL)
                    os.waitpid(process, 0)
                    del running[process]
                    yield mutant, "timeout"
            time.sleep(0.02)
    finally:
        for process in running:
            os.killpg(process, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", nargs="+", help=f"rooms ({', '.join(ROOMS)}) or files below src/r2v")
    parser.add_argument("--sample", type=int, help="so many mutants of each room")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=90, help="seconds a mutant may take; a longer one counts as killed")
    parser.add_argument("--budget", type=float, default=20, help="seconds of tests (as measured without mutants) per mutant")
    parser.add_argument("--tests", nargs="+", default=[str(ROOT / "tests")], help="test files to choose from")
    parser.add_argument("--at-least", type=float, default=0.0, help="exit status 1 if a room's score is lower (percent)")
    options = parser.parse_args()
    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the mutants end, too
    sys.path.insert(0, str(ROOT / "tests"))
    os.environ.update(OMP_NUM_THREADS="1", HYPOTHESIS_STORAGE_DIRECTORY=str(STATE / "hypothesis"))
    STATE.mkdir(exist_ok=True)
    for name in PRELOAD:
        importlib.import_module(name)

    rooms = {}
    for what in options.what:
        patterns = ROOMS.get(what, (what.removeprefix("src/r2v/"),))
        rooms[what] = sorted({str(p.relative_to(SOURCE)) for pattern in patterns for p in SOURCE.glob(pattern)})
        if not rooms[what]:
            print(f"mutate: there is no room and no file {what}; rooms are {', '.join(ROOMS)}", file=sys.stderr)
            return 2
    everything = sorted({file for files in rooms.values() for file in files})
    test_print = _fingerprint(list((ROOT / "tests").glob("*.py")))
    code_print = _fingerprint([SOURCE / file for file in everything])
    scope = hashlib.sha256(" ".join([*everything, *options.tests]).encode()).hexdigest()[:8]
    lines, seconds = traced(everything, options.tests, f"{scope}-{code_print}-{test_print}")

    kept: dict[str, str] = {}
    log = STATE / "mutation.jsonl"
    for line in log.read_text().splitlines() if log.exists() else ():
        mark, tests, result = json.loads(line)
        if result != "survived" or tests == f"{scope}-{test_print}":
            kept[mark] = result

    low = False
    for room, files in rooms.items():
        hashes = {file: _fingerprint([SOURCE / file]) for file in files}
        mutants = [mutant for file in files for mutant in mutants_of(file)]
        every = len(mutants)
        if options.sample is not None and options.sample < every:
            mutants = random.Random(options.seed).sample(mutants, options.sample)
        marks = {mutant.id: f"{hashes[mutant.file]} {mutant.id}" for mutant in mutants}
        chosen = {mutant.id: tests_for(mutant, lines, seconds, options.budget) for mutant in mutants}
        results = {m: kept[marks[m.id]] for m in mutants if marks[m.id] in kept}
        results |= {m: "no test" for m in mutants if not chosen[m.id]}
        todo = [mutant for mutant in mutants if mutant not in results]
        print(f"mutate: {room}: {len(mutants)} of {every} mutants, {len(todo)} to run", flush=True)
        start = time.monotonic()
        for mutant, result in examine(todo, chosen, options.jobs, options.timeout):
            results[mutant] = result
            with log.open("a") as stream:
                stream.write(json.dumps([marks[mutant.id], f"{scope}-{test_print}", result]) + "\n")
        counts = Counter(results.values())
        for mutant in sorted(mutants, key=lambda m: (m.file, m.line, m.place)):
            if results[mutant] in ("survived", "no test"):
                print(f"  {results[mutant]:<9} src/r2v/{mutant.file}:{mutant.line}  {mutant.change}")
        score = 100 * (counts["killed"] + counts["timeout"]) / max(len(mutants), 1)
        low |= score < options.at_least
        facts = ", ".join(f"{count} {result}" for result, count in sorted(counts.items()))
        print(f"mutate: {room}: {score:.1f} % killed ({facts}; {time.monotonic() - start:.0f} s)", flush=True)
    return int(low)


if __name__ == "__main__":
    sys.exit(main())
