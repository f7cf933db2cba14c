cat > rolling.py <<'P'
"""Standard deviations of a sliding window."""

import math
from fractions import Fraction


def deviations(xs, w):
    if w < 1:
        raise ValueError("w must be at least 1")
    if len(xs) < w:
        return []
    # Exact integers: every float is an integer over one common power of two, so nothing is lost by subtraction.
    bits = max(Fraction(x).denominator.bit_length() - 1 for x in xs)
    ns = [int(Fraction(x) * 2**bits) for x in xs]
    total = sum(ns[:w])
    squares = sum(n * n for n in ns[:w])
    found = [root(w * squares - total * total, w, bits)]
    for out, new in zip(ns, ns[w:]):
        total += new - out
        squares += new * new - out * out
        found.append(root(w * squares - total * total, w, bits))
    return found


def root(spread, w, bits):
    return math.sqrt(Fraction(spread, (w << bits) ** 2)) if spread else 0.0
P
