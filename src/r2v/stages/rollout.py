"""6 rollout: the deployed SLM plays alone, under perturbation seeds, and is labelled with its own outcomes.

(The paper's released code labelled steps with the recorded teacher's outcome; see method, section 2.)
"""

from __future__ import annotations

from r2v.build.parts import Player
from r2v.stages.play import play_episodes
from r2v.stages.prefer import chosen_slm
from r2v.stages.runner import Bench
from r2v.stages.splits import read_split
from r2v.store import write_episodes


def rollout(bench: Bench) -> None:
    tasks = read_split(bench.read("collect") / "tasks.json", "router")
    player = Player("routed", slm=chosen_slm(bench))
    episodes = play_episodes(bench, player, tasks, bench.settings.perturbations.rollout, "router")
    write_episodes(bench.out / "router.parquet", episodes)
