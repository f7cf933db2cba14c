"""What verifiers are worth: AUROC of the score of the executed action against the outcome of its episode, and cost a step.

    python benchmarks/verifiers.py ../shared/data/trajectories [--only mint knowagent household] [--steps 20000]
        [--episodes NAME=FILE.parquet ...] [--judge FILE.yaml --asked 150] [--json FILE]

AUROC is among steps of the same number, because late steps are of episodes that last, which fail more often; `all` is over
all pairs; `within` compares steps of one model and number alone. The 95 % intervals are of resampled groups of tasks. A
learned verifier scores a step by a model that saw no episode of its task; with `models left out`, none of its model either.
`Brier` is of P(the episode is solved) made of the score, calibrated (Platt) on other tasks; in brackets that of the mere
share solved there. `mean` is the score of steps of solved and of failed episodes, as the paper prints it.
`shuffled` is the same with outcomes that are dealt out anew among the episodes: .5 or a little less, because where more is
solved a model that saw less gives the values. The household's episodes are the expert's, with a share of actions replaced by
random ones (0 to .8), under perturbations; `right` is the AUROC of its own actions against the random ones. `--episodes`
takes those of a run (`6-rollout/router.parquet`), and then the score that its own verifier gave the executed action, too.

With `--judge` (YAML: the settings of the verifier `judge`) a model is asked about one step of each of so many episodes; the
others are measured on the same steps. Seconds are of this machine, tokens are those that its server counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2v.clients.judging import log_odds
from r2v.core.agent import Noisy, Solo
from r2v.core.groups import folds, groups, splits
from r2v.core.loop import run_episode
from r2v.core.protocols import Verifier
from r2v.core.seeds import derive_seed
from r2v.core.types import Episode, Memory
from r2v.domains import load_domain
from r2v.evaluation.curves import interval, resample_BT
from r2v.learning.process_reward import fit_process_reward, held_out_values, save_process_reward, step_rows, task_folds
from r2v.learning.reading import ReadRows
from r2v.logs.detection import detect
from r2v.logs.importing import import_logs
from r2v.maths import Floats
from r2v.maths.calibration import brier, fit_scaling
from r2v.maths.stats import auroc_B, auroc_equal_B
from r2v.messages.conversation import tools_of
from r2v.perturbations import family_of
from r2v.perturbations.wrap import perturbed
from r2v.runtime.settings import load
from r2v.runtime.store import read_episodes, write_json
from r2v.studies.evidence import drawn_within
from r2v.studies.train_verifier import drawn_steps
from r2v.verifiers import verifier_named
from r2v.verifiers.judge import JudgeVerifier

RECORDED = {"mint": "mint/dev_episodes.jsonl.xz", "knowagent": "knowagent_alfworld/episodes.jsonl.xz"}
RULES = {"mint": ("tool_calls",), "knowagent": ("household", "tool_calls"), "household": ("household", "tool_calls")}
"""Rule verifiers of each set; `tool_calls` alone of others."""
RESAMPLES, SHUFFLES, HORIZON, MODEL_FOLDS = 300, 3, 50, 3
DECAYS = {"learned, Monte-Carlo": 1.0, "learned, TD(.9)": 0.9, "learned, TD(.5)": 0.5}
HOUSEHOLD_TASKS, NOISES = 400, (0.0, 0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True, eq=False)
class Scored:
    """Steps of one set: what happened, and who has to stay together."""

    rows: ReadRows
    solved_N: Floats
    weights_BG: Floats
    group_N: NDArray[np.int64]
    right_N: Floats | None = None
    """Whether the action is the expert's own, where that is known."""
    area_B: dict[str, Floats] = field(default_factory=dict)
    """AUROC of each verifier over the resamples, for paired differences."""

    def line(self, name: str, score_N: Floats, keep: NDArray[np.int64] | None = None, cost: str = "") -> dict[str, Any]:
        """Print what a verifier is worth; the same as numbers."""
        at = np.arange(len(self.rows)) if keep is None else keep
        y_N, group_N, t_N = self.solved_N[at], self.group_N[at], self.rows.t_N[at]
        equal_B = auroc_equal_B(score_N, y_N, group_N, t_N, self.weights_BG)
        self.area_B[name] = equal_B
        all_B = auroc_B(score_N, y_N, group_N, self.weights_BG)
        within_N = t_N + (self.rows.t_N.max() + 1) * self.rows.agent_N[at]
        within = float(auroc_equal_B(score_N, y_N, group_N, within_N, self.weights_BG[:1])[0])
        right = auroc_equal_B(score_N, self.right_N[at], group_N, t_N, self.weights_BG) if self.right_N is not None else None
        found = {
            "right": None if right is None else [float(right[0]), *interval(right[np.isfinite(right)])],
            "verifier": name, "steps": len(at), "auroc": float(equal_B[0]), "ci95": interval(equal_B[np.isfinite(equal_B)]),
            "all": float(all_B[0]), "all_ci95": interval(all_B[np.isfinite(all_B)]), "within_model": within, "cost": cost,
            "mean_solved": float(score_N[y_N == 1].mean()), "mean_failed": float(score_N[y_N == 0].mean()),
            **self._brier(score_N, at),
        }  # fmt: skip
        ends, all_ends = (", ".join(f"{q:.3f}" for q in found[key]) for key in ("ci95", "all_ci95"))
        if right is not None:
            cost = f"right {right[0]:.3f}  {cost}"
        print(
            f"   {name:36} {equal_B[0]:.3f} ({ends})  all {all_B[0]:.3f} ({all_ends})  within {within:.3f}  "
            f"Brier {found['brier']:.3f} ({found['base_brier']:.3f})  "
            f"mean {found['mean_solved']:.3f} {found['mean_failed']:.3f}  {cost}",
            flush=True,
        )
        return found

    def _brier(self, score_N: Floats, at: NDArray[np.int64]) -> dict[str, float]:
        """Brier score of the score, calibrated on the tasks of other folds, and of the share solved in those."""
        y_N, logit_N = self.solved_N[at], log_odds(score_N)
        p_N, base_N = np.zeros(len(at)), np.zeros(len(at))
        for held, rest in splits(task_folds(self.rows, 0)[at]):
            slope, bias = fit_scaling(logit_N[rest], y_N[rest], with_bias=True)
            p_N[held], base_N[held] = 1 / (1 + np.exp(-(slope * logit_N[held] + bias))), y_N[rest].mean()
        return {"brier": brier(p_N, y_N), "base_brier": brier(base_N, y_N)}


def scores_by(verifier_of: Callable[[Episode], Verifier], episodes: Sequence[Episode]) -> tuple[Floats, float]:
    """(score of each executed action, microseconds of processor time a step)."""

    async def every() -> list[float]:
        found = []
        for episode in episodes:
            verifier = verifier_of(episode)
            for step, context in zip(episode.steps, episode.contexts(HORIZON), strict=True):
                found += await verifier.score(context, [step.choice.action])
        return found

    start = time.process_time()
    scores = asyncio.run(every())
    return np.array(scores), 1e6 * (time.process_time() - start) / max(1, len(scores))


def cost_of_learned(rows: ReadRows, success_E: Floats, episodes: Sequence[Episode]) -> float:
    """Microseconds a step of the verifier, from its folder."""
    with tempfile.TemporaryDirectory() as folder:
        save_process_reward(fit_process_reward(rows, success_E), Path(folder))
        verifier = verifier_named(json.dumps({"kind": "learned", "path": folder}))
        return scores_by(lambda episode: verifier, episodes)[1]


def rule(name: str) -> Callable[[Episode], Verifier]:
    return lambda episode: verifier_named(name, tools_of(episode.tools.encode() or b"null"))


def household_episodes() -> list[Episode]:
    """The expert's, with mistakes, on generated tasks under perturbations."""
    domain = load_domain("household")
    settings = domain.settings(horizon=40)
    expert = domain.expert()
    assert expert is not None and domain.random_action is not None
    tasks = domain.fresh_tasks(settings, HOUSEHOLD_TASKS, 5)

    async def play() -> list[Episode]:
        found = []
        for i, task in enumerate(tasks):
            noise, z = NOISES[i % len(NOISES)], 1 + i % 3
            family = family_of(task.id, z, domain.families)
            environment = domain.environment(settings, task)
            made = domain.perturbation(family, 1.0, environment.goal)
            agent = Noisy(Solo(domain.expert(), "teacher"), noise, domain.random_action)
            environment = perturbed(environment, made, seed=z, salt=task.id)
            seed = derive_seed("verifiers", i)
            found.append(
                await run_episode(environment, agent, task, seed=seed, perturbation=family, horizon=40, memory=Memory())
            )
        return found

    return asyncio.run(play())


def measure(name: str, episodes: Sequence[Episode], most: int, judge: JudgeVerifier | None, asked: int) -> dict[str, Any]:
    """Print the lines of one set."""
    start = time.perf_counter()
    episodes = [e for e in episodes if e.success is not None and e.steps]
    episodes = [episodes[i] for i in sorted(drawn_within([len(e.steps) for e in episodes], most, 0))]
    found = groups(episodes)
    rows = step_rows(episodes, found.group_E, HORIZON)
    success_E = np.array([float(bool(e.success)) for e in episodes])
    group_N = np.unique(rows.group_N, return_inverse=True)[1]
    weights_BG = resample_BT(int(group_N.max()) + 1, RESAMPLES, 0)
    sources = np.array([step.choice.source for episode in episodes for step in episode.steps])
    right_N = (sources != "noise").astype(float) if (sources == "noise").any() else None
    data = Scored(rows, success_E[rows.episode_N], weights_BG, group_N, right_N)
    print(
        f"{name}: {len(episodes)} episodes, {len(rows)} steps, {found.count} groups of tasks, solved {success_E.mean():.2f}"
    )
    lines, kept = [], {}
    for verifier in RULES.get(name, ("tool_calls",)):
        kept[f"rule {verifier}"], us = scores_by(rule(verifier), episodes)
        lines.append(data.line(f"rule {verifier}", kept[f"rule {verifier}"], cost=f"{us:.0f} us a step"))
    if name not in RULES and all(s.choice.scores for e in episodes for s in e.steps):  # a run's own, given as it was played
        kept["of the run"] = np.array([max(step.choice.scores) for episode in episodes for step in episode.steps])
        lines.append(data.line("of the run", kept["of the run"]))
    fold_N = task_folds(rows, 0)
    us = cost_of_learned(rows, success_E, episodes[:100])
    for label, decay in DECAYS.items():
        kept[label] = held_out_values(rows, data.solved_N, fold_N, decay=decay)
        lines.append(data.line(label, kept[label], cost=f"{us:.0f} us a step" if decay == 1 else ""))
    first = "learned, Monte-Carlo"
    before_N = np.where(rows.t_N == 0, success_E.mean(), np.roll(kept[first], 1))
    lines.append(data.line("learned, progress", (1 + kept[first] - before_N) / 2))
    if len(rows.agents) >= MODEL_FOLDS:
        both_N2 = np.column_stack([fold_N, folds(rows.agent_N, MODEL_FOLDS, 0)])
        lines.append(data.line(f"{first}, models left out", held_out_values(rows, data.solved_N, both_N2, decay=1.0)))
    for seed in range(SHUFFLES):
        dealt_N = np.random.default_rng(seed).permutation(success_E)[rows.episode_N]
        shuffled = replace(data, solved_N=dealt_N, right_N=None)
        value_N = held_out_values(rows, dealt_N, fold_N, decay=1.0)
        lines.append(shuffled.line(f"{first}, shuffled", value_N))
    differences = {}
    for one, other in (*((label, first) for label in DECAYS if label != first), (first, next(iter(kept)))):
        gap_B = data.area_B[one] - data.area_B[other]
        low, high = differences[f"{one}, less {other}"] = interval(gap_B)
        print(f"   {f'{one}, less {other}':50} {gap_B[0]:+.3f} ({low:+.3f} to {high:+.3f})")
    if judge is not None:
        lines += judged(data, episodes, kept, judge, asked)
    print(f"   {time.perf_counter() - start:.0f} s", flush=True)
    return {
        "set": name,
        "episodes": len(episodes),
        "steps": len(rows),
        "groups": found.count,
        "lines": lines,
        "differences": differences,
    }


def judged(
    data: Scored, episodes: Sequence[Episode], kept: dict[str, Floats], judge: JudgeVerifier, asked: int
) -> list[dict[str, Any]]:
    """The judge on one step of each of some episodes, one after the other, beside the others on the same steps."""
    first_E = np.searchsorted(data.rows.episode_N, np.arange(len(episodes)))
    place = {id(episode): i for i, episode in enumerate(episodes)}

    async def ask() -> tuple[list[int], list[float], list[float], int, int, int]:
        at, said, seconds, prompt, written, failed = [], [], [], 0, 0, 0
        for episode, t in drawn_steps(episodes, asked, 0):
            begin, paid = time.perf_counter(), judge.usd
            try:
                scores, usage = await judge.ask(episode.contexts(HORIZON)[t], [episode.steps[t].choice.action])
            except ValueError as error:
                failed += 1
                print(f"   {error}")
                continue
            if judge.usd > paid:  # not from the cache
                seconds.append(time.perf_counter() - begin)
            at.append(int(first_E[place[id(episode)]]) + t)
            said.append(scores[0])
            prompt, written = prompt + (usage.prompt_tokens or 0), written + (usage.completion_tokens or 0)
        return at, said, seconds, prompt, written, failed

    at, said, seconds, prompt, written, failed = asyncio.run(ask())
    keep, n = np.array(at), len(at)
    cost = f"{prompt / n:.0f} + {written / n:.1f} tokens, {np.mean(seconds or [np.nan]):.2f} s a step, {failed} malformed"
    print(f"   one step of each of {n} episodes, {len(set(said))} different scores; of such few, look at `all`")
    data = replace(data, right_N=None)
    lines = [data.line(f"judge {judge.model.model}", np.array(said), keep, cost)]
    for seed in range(SHUFFLES):
        shuffled = np.random.default_rng(seed).permutation(said)
        lines.append(data.line("judge, shuffled", shuffled, keep))
    return lines + [data.line(f"{name}, same steps", score_N[keep], keep) for name, score_N in kept.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="*", default=[*RECORDED, "household"])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--episodes", nargs="*", default=[], metavar="NAME=FILE")
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--asked", type=int, default=150)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    judge = None if arguments.judge is None else load(arguments.judge, JudgeVerifier)
    results = []
    for name in arguments.only:
        if name == "household":
            episodes = household_episodes()
        else:
            path = arguments.data / RECORDED[name]
            episodes, _ = import_logs(path, detect(path))
        results.append(measure(name, episodes, arguments.steps, judge, arguments.asked))
    for name, _, file in (given.partition("=") for given in arguments.episodes):
        results.append(measure(name, read_episodes(Path(file)), arguments.steps, judge, arguments.asked))
    if arguments.json is not None:
        write_json(arguments.json, results)


if __name__ == "__main__":
    main()
