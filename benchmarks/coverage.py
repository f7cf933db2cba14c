"""How often the 95 % interval of a success rate holds the truth: the percentile bootstrap over tasks, and the one in use.

    python benchmarks/coverage.py        # 600 draws each, seed 1; half a minute

Each task has its own chance of success, a beta with the mean `share`; `alike` is the correlation of its episodes.
"""

from __future__ import annotations

import numpy as np

from r2v.evaluation.curves import interval, resample_BT
from r2v.maths.stats import wilson_over_tasks

DRAWS = 600
CASES = ((5, 2, 0.7, 0.3), (8, 4, 0.94, 0.3), (8, 4, 0.5, 0.3), (20, 4, 0.94, 0.3), (60, 4, 0.97, 0.4), (120, 4, 0.95, 0.3),
         (120, 4, 0.99, 0.5), (120, 4, 0.7, 0.9))  # fmt: skip


def main() -> None:
    rng = np.random.default_rng(1)
    print("tasks  seeds  share  alike   bootstrap: holds, width   Wilson over tasks: holds, width")
    for tasks, seeds, share, alike in CASES:
        weights_BT, odds = resample_BT(tasks, 300, 7), (1 - alike) / alike
        held, width = np.zeros(2), np.zeros(2)
        for _ in range(DRAWS):
            chance_T = rng.beta(share * odds, (1 - share) * odds, tasks)
            success_TZ = (rng.random((seeds, tasks)) < chance_T).T.astype(float)
            ends = interval(weights_BT @ success_TZ.mean(axis=1)), wilson_over_tasks(success_TZ)
            for i, (low, high) in enumerate(ends):
                held[i] += low - 1e-12 <= share <= high + 1e-12
                width[i] += high - low
        (a, b), (c, d) = held / DRAWS, width / DRAWS
        print(f"{tasks:5}  {seeds:5}  {share:5.2f}  {alike:5.1f}   {a:16.3f}  {c:5.3f}   {b:24.3f}  {d:5.3f}")


if __name__ == "__main__":
    main()
