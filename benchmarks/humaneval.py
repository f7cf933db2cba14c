"""Our verdicts and our speed against EvalPlus's own checker, on the same samples in one run.

    python -m venv /tmp/evalplus && /tmp/evalplus/bin/pip install --no-deps evalplus numpy psutil
    python benchmarks/humaneval.py ../shared/data/humaneval/HumanEvalPlus.jsonl.gz --evalplus /tmp/evalplus/bin/python

Samples are the canonical solution and mutants of it (an operator, a constant or a condition changed). Both check with two
workers and stop a sample at its first failure; expected outputs are computed before the clock starts. HumanEval/32 is left
out: EvalPlus 0.3.1 fails it always. So are problems whose canonical solution takes long (`--slowest`), where both only wait
for the same solution; give a large number to compare verdicts on all. Disagreements are printed whole.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from r2v.domains.humaneval.check import Verdict, check, reference
from r2v.domains.humaneval.problems import Problem, load_problems
from r2v.runtime import sandbox

THEIRS = """
import json, sys, time, os
from concurrent.futures import ProcessPoolExecutor
from evalplus.eval import untrusted_check

def one(job):
    start = time.perf_counter()
    passed = {}
    for part in ("base", "plus"):
        if part == "plus" and not passed["base"]: passed[part] = False; continue
        status, _ = untrusted_check("humaneval", job["solution"], job[part], job["entry_point"], job[part + "_expected"],
                                    job["atol"], job[part + "_seconds"], fast_check=True)
        passed[part] = status == "pass"
    return passed["base"], passed["base"] and passed["plus"], time.perf_counter() - start

def main():
    problems, jobs = json.load(open(sys.argv[1]))
    for p in problems.values():
        namespace = {}
        exec(p["canonical"], namespace)
        for part in ("base", "plus"):
            seconds, expected = [], []
            for arguments in json.loads(json.dumps(p[part])):
                start = time.perf_counter()
                expected.append(namespace[p["entry_point"]](*arguments))
                seconds.append(time.perf_counter() - start)
            p[part + "_expected"], p[part + "_seconds"] = expected, seconds
    work = [{**problems[name], "solution": solution} for name, solution in jobs]
    start = time.perf_counter()
    with ProcessPoolExecutor(2) as pool: verdicts = list(pool.map(one, work))
    print(json.dumps({"verdicts": verdicts, "seconds": time.perf_counter() - start}))

if __name__ == "__main__": main()
"""


PAIRS = (
    (ast.Add, ast.Sub), (ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.And, ast.Or),
    (ast.FloorDiv, ast.Div),
)  # fmt: skip
SWAPS = {**dict(PAIRS), **{b: a for a, b in PAIRS}, ast.Mult: ast.Add, ast.Mod: ast.FloorDiv}


class Mutate(ast.NodeTransformer):
    """Changes the one place of the given number."""

    def __init__(self, place: int) -> None:
        self.place, self.seen = place, 0

    def generic_visit(self, node: ast.AST) -> ast.AST:
        node = super().generic_visit(node)
        changeable = type(node) in SWAPS or (isinstance(node, ast.Constant) and type(node.value) is int)
        if changeable:
            self.seen += 1
            if self.seen == self.place:
                return ast.Constant(node.value + 1) if isinstance(node, ast.Constant) else SWAPS[type(node)]()
        return node


def mutants(problem: Problem, count: int) -> list[str]:
    counter = Mutate(0)
    counter.visit(ast.parse(problem.prompt + problem.canonical))
    places = random.Random(problem.id).sample(range(1, counter.seen + 1), min(count, counter.seen))
    trees = [Mutate(place).visit(ast.parse(problem.prompt + problem.canonical)) for place in places]
    return [ast.unparse(ast.fix_missing_locations(tree)) for tree in trees]


def timed(job: tuple[Problem, str]) -> tuple[Verdict, float]:
    start = time.perf_counter()
    return check(*job), time.perf_counter() - start


def our_round(jobs: list[tuple[Problem, str]]) -> tuple[float, list[tuple[Verdict, float]]]:
    with ThreadPoolExecutor(2) as pool:
        start = time.perf_counter()
        verdicts = list(pool.map(timed, jobs))
        return time.perf_counter() - start, verdicts


def their_round(command: list[str | Path]) -> tuple[float, list[tuple[bool, bool, float]]]:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return found["seconds"], found["verdicts"]


def seconds_of(problem: Problem) -> float:
    """Of its canonical solution, once what is expected is known."""
    reference(problem)
    start = time.perf_counter()
    check(problem, problem.prompt + problem.canonical)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problems", type=Path)
    parser.add_argument("--evalplus", type=Path, required=True, help="a Python that has evalplus")
    parser.add_argument("--mutants", type=int, default=3, help="wrong samples a problem")
    parser.add_argument("--every", type=int, default=1, help="use every so many problems")
    parser.add_argument("--slowest", type=float, default=0.5, help="leave out problems whose solution takes more seconds")
    parser.add_argument("--rounds", type=int, default=3, help="each checker's fastest of so many, in turns, counts")
    options = parser.parse_args()
    problems = [p for p in load_problems(options.problems)[:: options.every] if p.entry_point != "find_zero"]
    quick = [p for p in problems if seconds_of(p) <= options.slowest]
    jobs = [(p, s) for p in quick for s in (p.prompt + p.canonical, *mutants(p, options.mutants))]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(timed, jobs[:20]))
    described = {
        p.id: {
            "entry_point": p.entry_point,
            "canonical": p.prompt + p.canonical,
            "base": p.base,
            "plus": p.plus,
            "atol": p.atol,
        }
        for p in quick
    }
    with tempfile.TemporaryDirectory() as folder:
        file, script = Path(folder) / "jobs.json", Path(folder) / "theirs.py"
        file.write_text(json.dumps([described, [[p.id, s] for p, s in jobs]]))
        script.write_text(THEIRS)
        rounds = [(our_round(jobs), their_round([options.evalplus, script, file])) for _ in range(options.rounds)]
    seconds, ours = min((round[0] for round in rounds), key=lambda side: side[0])
    their_seconds, theirs = min((round[1] for round in rounds), key=lambda side: side[0])
    differ = 0
    for (problem, solution), (mine, _), (base, plus, _) in zip(jobs, ours, theirs, strict=True):
        if (mine.base, mine.passed) != (base, plus):
            differ += 1
            print(f"{problem.id}: ours {mine}, theirs base {base} plus {plus}\n{solution}\n")
    print(f"sandbox {', '.join(sandbox.layers())}")
    print(f"{len(jobs)} samples of {len(quick)} problems, {sum(v.passed for v, _ in ours)} right; {differ} verdicts differ")
    print(f"checks a second: r2v {len(jobs) / seconds:.1f}, evalplus {len(jobs) / their_seconds:.1f}")
    print(f"ratio {their_seconds / seconds:.2f}")
    pairs = [(mine, other) for (_, mine), (_, _, other) in zip(ours, theirs, strict=True) if mine < 1]
    mine, other = (sum(side) for side in zip(*pairs, strict=True))
    waiting = len(jobs) - len(pairs)
    print(f"without the {waiting} that ran into the time limit of a second, where both wait: ratio {other / mine:.2f}")


if __name__ == "__main__":
    main()
