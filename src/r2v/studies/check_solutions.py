"""`r2v check-solutions`: verdicts on a file of samples, or on the canonical solutions of a problem file."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2v.core.errors import ArtifactError
from r2v.domains.humaneval.check import Verdict, check
from r2v.domains.humaneval.problems import Problem, load_problems, read_lines
from r2v.runtime.progress import Report


@dataclass(frozen=True)
class Checked:
    task_id: str
    sample: int
    """Number among the samples of its problem, from 0."""
    verdict: Verdict


def check_solutions(problems: Path, samples: Path | None, report: Report, *, workers: int) -> list[Checked]:
    """Every sample's verdict, in the file's order; of the canonical solutions if no samples are given.

    Each worker is a thread that waits for a sandboxed process. Raises ArtifactError for unreadable files; a problem whose
    canonical solution fails passes nobody.
    """
    known = {problem.id: problem for problem in load_problems(problems)}
    work = [(p, p.prompt + p.canonical) for p in known.values()] if samples is None else _read_samples(samples, known)
    numbers: dict[str, int] = {}
    result: list[Checked] = []
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(_check, problem, solution) for problem, solution in work]
        try:
            for done, _ in enumerate(as_completed(futures), start=1):
                report(done, len(futures))
            for (problem, _), future in zip(work, futures, strict=True):
                number = numbers[problem.id] = numbers.get(problem.id, -1) + 1
                result.append(Checked(problem.id, number, future.result()))
        finally:
            pool.shutdown(cancel_futures=True)
    return result


def _check(problem: Problem, solution: str) -> Verdict:
    try:
        return check(problem, solution)
    except ArtifactError as error:
        return Verdict(False, False, str(error))


def _read_samples(path: Path, problems: dict[str, Problem]) -> list[tuple[Problem, str]]:
    """{"task_id": ..., "solution": a whole program} or {..., "completion": what follows the prompt}, a line each."""
    found = []
    for number, raw in enumerate(read_lines(path), start=1):
        problem = problems.get(raw.get("task_id", ""))
        if problem is None:
            raise ArtifactError(f"{path}, line {number}: no problem {raw.get('task_id')!r} in the problem file")
        solution, completion = raw.get("solution"), raw.get("completion")
        if isinstance(solution, str):
            found.append((problem, solution))
        elif isinstance(completion, str):
            found.append((problem, problem.prompt + completion))
        else:
            raise ArtifactError(f"{path}, line {number}: a sample needs `solution` or `completion`")
    if not found:
        raise ArtifactError(f"{path} holds no samples")
    return found


def summary(checked: Sequence[Checked], canonical: bool) -> dict[str, Any]:
    """Counts for people and programs. With samples, a problem is passed when one of its samples passes."""
    passed = {c.task_id for c in checked if c.verdict.passed}
    names = dict.fromkeys(c.task_id for c in checked)
    return {
        "problems": len(names),
        "passed": len(passed),
        "failed": len(names) - len(passed),
        "failed_ids": [name for name in names if name not in passed],
        "samples": 0 if canonical else len(checked),
        "samples_passed": 0 if canonical else sum(c.verdict.passed for c in checked),
        "samples_passed_base": 0 if canonical else sum(c.verdict.base for c in checked),
    }
