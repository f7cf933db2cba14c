"""How well the code verifier tells right from wrong on recorded attempts of real models: MINT's HumanEval episodes.

    python benchmarks/code_verifier.py ../shared/data

An episode's score is that of its last proposed solution (.05 where it proposed none), from the problem's text and the code
alone. Its outcome is the recorded success. The interval is a bootstrap over tasks. The paper reports .856 at this level.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from r2v.domains.humaneval.env import goal_of
from r2v.domains.humaneval.problems import Problem, load_problems
from r2v.domains.humaneval.verifier import NO_CODE, score_code, smoke
from r2v.maths.stats import auroc

SOLUTION = re.compile(r"<solution>\s*(.*?)\s*(?:</solution>|\Z)", re.DOTALL)
RESAMPLES = 1000


def last_solution(episode: dict) -> str | None:
    found = [code for step in episode["steps"] for code in SOLUTION.findall(step["action"] or "")]
    return re.sub(r"^```\w*\n|\n```$", "", found[-1]) if found else None


def program(problem: Problem, code: str) -> str:
    """What MINT ran: the prompt's imports are there, and a bare body completes the prompt."""
    if f"def {problem.entry_point}" not in code:
        return problem.prompt + code
    return problem.prompt.split("def ", 1)[0] + code


def problems_of(data: Path) -> dict[str, Problem]:
    """By MINT's task names, which number a selection of HumanEval of its own."""
    by_prompt = {p.prompt.strip(): p for p in load_problems(data / "humaneval" / "HumanEval.jsonl.gz")}
    found = {}
    with lzma.open(data / "trajectories" / "mint" / "tasks.jsonl.xz", "rt") as file:
        for raw in map(json.loads, file):
            if raw["benchmark"] == "humaneval":
                found[raw["task"]] = by_prompt[raw["prompt"].removeprefix("Complete the following code:").strip()]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    options = parser.parse_args()
    problems = problems_of(options.data)
    episodes = []
    with lzma.open(options.data / "trajectories" / "mint" / "dev_episodes.jsonl.xz", "rt") as file:
        for line in file:
            raw = json.loads(line)
            if raw["task"].startswith("humaneval/") and raw["success"] is not None:
                episodes.append(raw)

    def score(raw: dict) -> float:
        problem, code = problems[raw["task"]], last_solution(raw)
        return NO_CODE if code is None else score_code(goal_of(problem), program(problem, code))

    with ThreadPoolExecutor(2) as pool:
        score_N = np.array(list(pool.map(score, episodes)))
    right_N = np.array([raw["success"] for raw in episodes], dtype=float)
    tasks = sorted({raw["task"] for raw in episodes})
    rows_T = [np.array([i for i, raw in enumerate(episodes) if raw["task"] == task]) for task in tasks]
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([rows_T[t] for t in rng.integers(0, len(tasks), len(tasks))])
        draws.append(auroc(score_N[rows], right_N[rows]))
    low, high = np.quantile(draws, [0.025, 0.975])
    print(
        f"{len(episodes)} episodes, {len(tasks)} tasks, {len({raw['model'] for raw in episodes})} models, "
        f"{right_N.mean():.3f} successful"
    )
    print(f"AUROC {auroc(score_N, right_N):.3f} ({low:.3f} to {high:.3f})")
    proposed = np.array([last_solution(raw) is not None for raw in episodes])
    print(
        f"with a solution proposed: {proposed.mean():.3f} of them, AUROC {auroc(score_N[proposed], right_N[proposed]):.3f}"
    )

    def smoked(raw: dict) -> float:
        problem, code = problems[raw["task"]], last_solution(raw)
        return -1.0 if code is None else smoke(goal_of(problem), problem.entry_point, program(problem, code))

    smoke_N = np.array([smoked(raw) for raw in episodes])
    print(f"the smoke test alone: AUROC {auroc(smoke_N, right_N):.3f}")
    for value in sorted(set(smoke_N.round(2).tolist())):
        chosen = np.isclose(smoke_N, value, atol=0.005)
        print(f"  smoke {value:5.2f}: {chosen.sum():5d} episodes, {right_N[chosen].mean():.3f} successful")
    per_task = [(auroc(score_N[r], right_N[r]), t) for r, t in zip(rows_T, tasks, strict=True) if 0 < right_N[r].mean() < 1]
    print("worst tasks:", ", ".join(f"{task} {value:.2f}" for value, task in sorted(per_task)[:6]))
    wrong = Counter(raw["task"] for raw, s, r in zip(episodes, smoke_N, right_N, strict=True) if s == 0.85 and r == 0)
    print("failed although all examples pass:", ", ".join(f"{task} {n}" for task, n in wrong.most_common(6)))


if __name__ == "__main__":
    main()
