set -e
cat > intervals/sets.py <<'P'
"""Sets of numbers as lists of half-open intervals (start, end): start belongs to it, end does not."""


def normal(parts):
    """The same set as a sorted list of intervals that neither overlap nor touch. Empty ones (start >= end) are left out."""
    result = []
    for start, end in sorted((start, end) for start, end in parts if start < end):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def length(parts):
    """How much the set covers; what is covered twice counts once."""
    return sum(end - start for start, end in normal(parts))


def intersect(a, b):
    """The numbers that are in both, in normal form."""
    return normal([(max(s, u), min(e, v)) for s, e in normal(a) for u, v in normal(b)])


def gaps(parts, start, end):
    """What is missing of the set between start and end, in normal form."""
    missing = []
    for a, b in intersect(parts, [(start, end)]):
        missing.append((start, a))
        start = b
    return normal([*missing, (start, end)])
P
python3 -m unittest -q
