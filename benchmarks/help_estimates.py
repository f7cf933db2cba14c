"""Do the two estimators of the benefit of help agree? `python benchmarks/help_estimates.py RUN` (a run with routers=all)

The value of the teacher's step against the SLM's, at steps of episodes with random help, help going on at random afterwards:
by branching (both futures of a step are played), and from the log alone (inverse propensity; doubly robust around a linear
model fitted on other tasks). Overall, and where the teacher would act differently. 95 % intervals by bootstrap over tasks.
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import dataclass
from pathlib import Path
from random import Random as Draw

import numpy as np

from r2v.core.agent import Routed
from r2v.core.features import FEATURES, batch
from r2v.core.loop import run_together
from r2v.core.types import Context, Decision, Episode, Features, Memory
from r2v.evaluation.branches import differs
from r2v.learning.linear import fit_ridge
from r2v.maths.offpolicy import doubly_robust_N, ips_N
from r2v.pipeline.agents import make_environment, make_models, make_teacher
from r2v.pipeline.run_folder import RunFolder
from r2v.pipeline.settings import RunSettings
from r2v.routers.random import Random

STEPS = 4
"""Branched steps of an episode."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Forced:
    """Random escalation, but a fixed route at step t."""

    inner: Random
    t: int
    ask: bool
    name: str = "forced"

    def decide(self, context: Context, features: Features, memory: Memory, *, seed: int) -> Decision:
        if context.t == self.t:
            return Decision("escalate" if self.ask else "continue", "scheduled", None, None, None, 1.0, (), "forced")
        return self.inner.decide(context, features, memory, seed=seed)


async def branched(settings: RunSettings, slm: Path, episodes: list[Episode], rate: float) -> np.ndarray:
    """(episode, t, gain) of some steps of each."""
    parts = make_models(settings, slm)
    inner, horizon = Random(threshold=rate), settings.environment.horizon

    async def one(i: int, episode: Episode) -> list[tuple[int, int, float]]:
        steps = Draw(i).sample(range(len(episode.steps)), min(STEPS, len(episode.steps)))
        arms = [Routed(parts, Forced(inner, t, ask)) for t in steps for ask in (True, False)]
        environment, family = make_environment(settings, episode.task, episode.seed)
        played = await run_together(
            environment, arms, episode.task, seed=episode.seed, perturbation=family, horizon=horizon, memory=Memory()
        )
        return [
            (i, t, float(bool(helped.success)) - float(bool(alone.success)))
            for t, helped, alone in zip(steps, played[::2], played[1::2], strict=True)
        ]

    return np.array([row for rows in await asyncio.gather(*map(one, range(len(episodes)), episodes)) for row in rows])


def interval(value_N: np.ndarray, owner_N: np.ndarray, weight_N: np.ndarray | None = None) -> str:
    """Mean over steps, with its interval. `weight_N`: how many steps each row stands for."""
    weight_N = np.ones(len(value_N)) if weight_N is None else weight_N
    owner_N = np.unique(owner_N, return_inverse=True)[1]
    total_T, count_T = np.bincount(owner_N, value_N * weight_N), np.bincount(owner_N, weight_N)
    drawn_BT = np.random.default_rng(0).multinomial(len(count_T), np.full(len(count_T), 1 / len(count_T)), RESAMPLES)
    low, high = np.quantile((drawn_BT @ total_T) / (drawn_BT @ count_T), [0.025, 0.975])
    return f"{total_T.sum() / count_T.sum():+.4f}  [{low:+.4f}, {high:+.4f}]  ({len(value_N)} steps)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run with routers=all")
    parser.add_argument("--rate", type=float, default=0.3, help="which of the run's exploration rates (default .3)")
    parser.add_argument("--episodes", type=int, default=800, help="at most so many episodes")
    arguments = parser.parse_args()
    run = RunFolder(arguments.run)
    settings, explored = run.settings, run.explored()
    episodes = [
        e for e in explored if e.success is not None and e.steps and e.steps[0].choice.decision.threshold == arguments.rate
    ][: arguments.episodes]
    horizon, teacher = settings.environment.horizon, make_teacher(settings)

    async def answers() -> list[list[bool]]:
        return [await differs(episode, teacher, horizon) for episode in episodes]

    differ_N = np.array([d for of_episode in asyncio.run(answers()) for d in of_episode])
    tasks = sorted({e.task.id for e in episodes})
    task_N = np.array([tasks.index(e.task.id) for e in episodes for _ in e.steps])
    x_NF, present_NF = batch([s.choice.features for e in episodes for s in e.steps])
    a_N = np.array([float(s.choice.source == "teacher") for e in episodes for s in e.steps])
    success_N = np.array([float(e.success) for e in episodes for _ in e.steps])
    e_N, ones_N = np.full(len(a_N), arguments.rate), np.ones(len(a_N))
    helped_N, alone_N = np.zeros(len(a_N)), np.zeros(len(a_N))
    rows = [s.choice.features for e in episodes for s in e.steps]
    for fold in range(2):
        out = task_N % 2 == fold
        for arm, predicted in ((1, helped_N), (0, alone_N)):
            use = ~out & (a_N == arm)
            model = fit_ridge(x_NF[use], present_NF[use], success_N[use], task_N[use], FEATURES, "success")
            predicted[out] = [model.value(rows[i]) for i in np.flatnonzero(out)]
    ips = ips_N(a_N, e_N, success_N, ones_N)
    robust = doubly_robust_N(a_N, e_N, success_N, ones_N, helped_N, alone_N)
    tried = asyncio.run(branched(settings, run.slm, episodes, arguments.rate))
    start_E = np.cumsum([0, *(len(e.steps) for e in episodes)])
    length_B = np.array([len(episodes[int(i)].steps) for i in tried[:, 0]], dtype=float)  # a long episode has more steps
    row_B = start_E[tried[:, 0].astype(int)] + tried[:, 1].astype(int)
    print(f"{len(episodes)} episodes with random help at rate {arguments.rate}, {len(tasks)} tasks")
    for name, keep_N in (("every step", np.ones(len(a_N), dtype=bool)), ("where the teacher differs", differ_N)):
        print(f"\n{name} ({keep_N.mean():.0%} of steps)")
        some_B = keep_N[row_B]
        print(f"  branching            {interval(tried[some_B, 2], task_N[row_B][some_B], length_B[some_B])}")
        print(f"  inverse propensity   {interval(ips[keep_N], task_N[keep_N])}")
        print(f"  doubly robust        {interval(robust[keep_N], task_N[keep_N])}")


if __name__ == "__main__":
    main()
