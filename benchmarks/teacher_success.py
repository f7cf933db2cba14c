"""Success of the household's teacher per perturbation family and strength, on generated tasks.

python benchmarks/teacher_success.py --tasks 240 --strength 1.0 2.0
"""

from __future__ import annotations

import argparse
import asyncio

from r2v.core.agent import Solo
from r2v.core.protocols import Environment
from r2v.core.types import Task
from r2v.domains.household import DOMAIN
from r2v.domains.household.env import Household
from r2v.domains.household.expert import HouseholdExpert
from r2v.domains.household.scenes import SceneSettings, generate, make_tasks
from r2v.evaluation.closed_loop import play
from r2v.perturbations import CLEAN, FAMILIES
from r2v.perturbations.wrap import Perturbed

SCENES = SceneSettings(receptacles=(5, 8), objects=(6, 11), house="small")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=240)
    parser.add_argument("--strength", type=float, nargs="+", default=[1.0, 2.0])
    arguments = parser.parse_args()
    tasks = make_tasks(7, arguments.tasks, SCENES)
    print("strength  family    success  steps")
    for strength in arguments.strength:
        for family in (CLEAN, *FAMILIES):

            def make(task: Task, z: int, family: str = family, strength: float = strength) -> tuple[Environment, str]:
                environment = Household(generate(task.id, task.family, SCENES).world())
                if family == CLEAN:
                    return environment, family
                perturbation = DOMAIN.perturbation(family, strength, environment.goal)
                return Perturbed(environment, perturbation, seed=z, salt=task.id), family

            agent = Solo(HouseholdExpert(), "teacher")
            episodes = asyncio.run(play(agent, [(task, 1) for task in tasks], make, horizon=40))
            solved = sum(bool(episode.success) for episode in episodes) / len(episodes)
            steps = sum(len(episode.steps) for episode in episodes) / len(episodes)
            print(f"{strength:<9} {family:<9} {solved:7.1%}  {steps:.1f}")


if __name__ == "__main__":
    main()
