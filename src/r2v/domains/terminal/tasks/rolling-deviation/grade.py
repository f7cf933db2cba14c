import json
import math
import random

DRIVER = """
import json, sys
from rolling import deviations
found = []
for xs, w in json.load(sys.stdin):
    found.append(deviations(xs, w))
try:
    deviations([1.0], 0)
    found.append("no error")
except ValueError:
    found.append("ValueError")
print(json.dumps(found))
"""


def slowly(xs, w):
    found = []
    for start in range(len(xs) - w + 1):
        window = xs[start : start + w]
        middle = window[0]
        shifted = [x - middle for x in window]
        mean = math.fsum(shifted) / w
        found.append(math.sqrt(math.fsum((x - mean) ** 2 for x in shifted) / w))
    return found


def close(found, wanted):
    return len(found) == len(wanted) and all(
        type(f) is float and (f == v if v == 0 else abs(f - v) <= 1e-6 * v) for f, v in zip(found, wanted, strict=True)
    )


def grade(run):
    rng = random.Random(11)
    cases = [
        ([1.0, 2.0, 4.0, 8.0], 2),
        ([3.5] * 6, 4),
        ([1e9 + rng.gauss(0, 1) for _ in range(400)], 25),
        ([-1e9 + 1000 * i + rng.gauss(0, 1) for i in range(400)], 3),
        ([1e6, 0.1, 0.1, 0.1, 0.1, 1e6], 3),
        ([2.0], 3),
        ([5.0, 6.0, 9.0], 1),
    ]
    *found, error = json.loads(run(f"python3 -c '{DRIVER}'", json.dumps(cases)).out)
    if error != "ValueError" or not all(close(f, slowly(*case)) for f, case in zip(found, cases, strict=True)):
        return "rolling.py is wrong"
    level = [1e9 + i / 100 for i in range(300_000)]
    xs = [x + (i * 7919 % 1000) / 500 for i, x in enumerate(level)]
    driver = DRIVER.replace("found.append(deviations(xs, w))", "found += deviations(xs, w)[::90000]")
    timed = run(f"python3 -c '{driver}'", json.dumps([[xs, 30_000]]))
    if timed.code is None:
        return "rolling.py is too slow"
    return (
        None
        if close(json.loads(timed.out)[:-1], [slowly(xs[i : i + 30_000], 30_000)[0] for i in range(0, 270_001, 90_000)])
        else "wrong at length"
    )
