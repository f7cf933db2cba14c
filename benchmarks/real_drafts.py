"""What the first drafts of a HumanEval+ run are worth: why a router gains, or does not.

    HUMANEVAL_OVERRIDE_PATH=HumanEvalPlus.jsonl.gz python benchmarks/real_drafts.py runs/real

Of the first step of each test episode, judged by all tests of HumanEval+: one of the K candidates of the SLM, the one that
its verifier picks, any of them, and the teacher's answer. Of whole episodes: on how many the SLM alone and the teacher alone
ended differently, and how many programs each of them fixed or broke between its first and its last step (as SCoRe counts
retries). Intervals are a bootstrap over tasks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from r2v.core.features import best
from r2v.core.types import Episode
from r2v.domains.humaneval.check import check
from r2v.domains.humaneval.env import task_of
from r2v.domains.humaneval.problems import Problem, load_problems
from r2v.domains.humaneval.verifier import code_of
from r2v.evaluation.curves import interval, resample_BT
from r2v.pipeline.run_folder import RunFolder

RESAMPLES = 2000


def right(problem: Problem, text: str) -> bool:
    code = code_of(text)
    return code is not None and check(problem, code).passed


def ends_of(problem: Problem, episode: Episode) -> tuple[bool, bool]:
    """Whether the first and the last program of an episode are right."""
    programs = [step.choice.action.text for step in episode.steps if code_of(step.choice.action.text) is not None]
    return (False, False) if not programs else (right(problem, programs[0]), right(problem, programs[-1]))


def line(name: str, value_N: Sequence[float], task_N: Sequence[str]) -> None:
    """Print the mean of a value an episode."""
    tasks = sorted(set(task_N))
    mean_T = np.array([np.mean([v for v, t in zip(value_N, task_N, strict=True) if t == task]) for task in tasks])
    low, high = interval(np.asarray(resample_BT(len(tasks), RESAMPLES, 0) @ mean_T))
    print(f"   {name:44} {mean_T.mean():+.3f} ({low:+.3f} to {high:+.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = RunFolder(parser.parse_args().run)
    path = run.settings.domain.task_file(run.settings.environment)
    assert path is not None
    problems = {task_of(problem).id: problem for problem in load_problems(path)}
    agents: dict[str, dict[tuple[str, int], Episode]] = {}
    for episode in run.evaluated():
        agents.setdefault(episode.agent, {})[episode.task.id, episode.seed] = episode
    if unknown := {task for task, _ in agents["slm_only"]} - problems.keys():
        raise SystemExit(
            f"real_drafts: {path} lacks {len(unknown)} of the run's problems; name its file in $HUMANEVAL_OVERRIDE_PATH"
        )
    alone, teacher = agents["slm_only"], agents["teacher"]
    first = {key: alone[key].steps[0].choice for key in alone}
    texts = {key: [*(c.action.text for c in choice.candidates), teacher[key].steps[0].choice.action.text]
             for key, choice in first.items()}  # fmt: skip
    with ThreadPoolExecutor(2) as pool:
        jobs = {key: [pool.submit(right, problems[key[0]], text) for text in drafts] for key, drafts in texts.items()}
        solved = {key: [job.result() for job in row] for key, row in jobs.items()}
        retried = {
            name: [*pool.map(lambda key, played=played: ends_of(problems[key[0]], played[key]), alone)]
            for name, played in (("SLM", alone), ("teacher", teacher))
        }
    tasks = [task for task, _ in solved]
    picked = {key: row[best(first[key].candidates, first[key].scores)] for key, row in solved.items()}
    print(f"first drafts of {len(solved)} episodes, {len(set(tasks))} tasks")
    line("one candidate of the SLM", [float(np.mean(row[:-1])) for row in solved.values()], tasks)
    line("the one that the verifier picks", [float(picked[key]) for key in solved], tasks)
    line("any candidate", [float(any(row[:-1])) for row in solved.values()], tasks)
    line("the teacher's answer", [float(row[-1]) for row in solved.values()], tasks)
    line("teacher less picked", [float(row[-1]) - picked[key] for key, row in solved.items()], tasks)
    ends = [(bool(alone[key].success), bool(teacher[key].success)) for key in solved]
    print("episodes to their end")
    line("SLM alone", [float(a) for a, _ in ends], tasks)
    line("teacher alone", [float(b) for _, b in ends], tasks)
    line("solved by the teacher alone only", [float(b and not a) for a, b in ends], tasks)
    line("solved by the SLM alone only", [float(a and not b) for a, b in ends], tasks)
    for name, found in retried.items():
        print(f"first and last program of the {name} alone")
        line("first is right", [float(first) for first, _ in found], tasks)
        line("last is right", [float(last) for _, last in found], tasks)
        line("fixed", [float(last and not first) for first, last in found], tasks)
        line("broken", [float(first and not last) for first, last in found], tasks)


if __name__ == "__main__":
    main()
