"""Standard deviations of a sliding window."""

import math


def deviations(xs, w):
    if w < 1:
        raise ValueError("w must be at least 1")
    found = []
    for start in range(len(xs) - w + 1):
        window = xs[start : start + w]
        mean = math.fsum(window) / w
        found.append(math.sqrt(math.fsum((x - mean) ** 2 for x in window) / w))
    return found
