"""Environment steps a second on one core, with the list of admissible commands at every step. Floor: 10,000."""

from __future__ import annotations

import random
import time

from r2v.domains.household.env import Household
from r2v.domains.household.games import FAMILIES
from r2v.domains.household.scenes import SceneSettings, generate

FLOOR = 10_000


def main() -> None:
    worlds = [generate(f"benchmark/{i}", FAMILIES[i % 6], SceneSettings()).world() for i in range(300)]
    rng = random.Random(0)
    steps, start = 0, time.perf_counter()
    for world in worlds:
        env = Household(world)
        for _ in range(60):
            steps += 1
            if env.play(rng.choice(env.admissible_commands()))[2]:
                break
    rate = steps / (time.perf_counter() - start)
    verdict = "ok" if rate >= FLOOR else "SHORT"
    print(f"{steps} steps with admissible commands: {rate:,.0f} steps/s (floor {FLOOR:,}): {verdict}")


if __name__ == "__main__":
    main()
