"""Sets of numbers as lists of half-open intervals (start, end): start belongs to it, end does not."""


def normal(parts):
    """The same set as a sorted list of intervals that neither overlap nor touch. Empty ones (start >= end) are left out."""
    result = []
    for start, end in sorted(parts):
        if result and start < result[-1][1]:
            result[-1] = (result[-1][0], end)
        else:
            result.append((start, end))
    return result


def length(parts):
    """How much the set covers; what is covered twice counts once."""
    return sum(end - start for start, end in parts)


def intersect(a, b):
    """The numbers that are in both, in normal form."""
    result, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        start, end = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if start <= end:
            result.append((start, end))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return result


def gaps(parts, start, end):
    """What is missing of the set between start and end, in normal form."""
    missing = []
    for a, b in normal(parts):
        if a > start:
            missing.append((start, a))
        start = b
    missing.append((start, end))
    return missing
