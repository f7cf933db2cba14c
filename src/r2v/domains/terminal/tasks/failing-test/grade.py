import json
import random

DRIVER = """
import json, sys
import intervals
print(json.dumps([getattr(intervals, name)(*[[tuple(p) for p in a] if isinstance(a, list) else a for a in given])
                  for name, given in json.load(sys.stdin)]))
"""
TESTS = "52af90f2f026ffdc6eff925b2b73119b348f9adc0ecd754c8812212489c3077c"


def cells(parts):
    return {x for a, b in parts for x in range(a, b)}


def runs(numbers):
    found = []
    for x in sorted(numbers):
        if found and found[-1][1] == x:
            found[-1][1] = x + 1
        else:
            found.append([x, x + 1])
    return found


def wanted(name, given):
    if name == "normal":
        return runs(cells(given[0]))
    if name == "length":
        return len(cells(given[0]))
    if name == "intersect":
        return runs(cells(given[0]) & cells(given[1]))
    return runs(set(range(given[1], given[2])) - cells(given[0]))


def grade(run):
    rng = random.Random(3)

    def some():
        return [[a := rng.randint(-9, 9), a + rng.randint(-2, 6)] for _ in range(rng.randint(0, 5))]

    cases = []
    for _ in range(60):
        low = rng.randint(-12, 6)
        cases += [("normal", [some()]), ("length", [some()]), ("intersect", [some(), some()])]
        cases.append(("gaps", [some(), low, low + rng.randint(0, 14)]))
    if json.loads(run(f"python3 -c '{DRIVER}'", json.dumps(cases)).out) != [wanted(*case) for case in cases]:
        return "a function does not do what its docstring says"
    if run("cat tests/__init__.py tests/test_sets.py | sha256sum").out.split()[0] != TESTS:
        return "the tests were touched"
    return None if run("python3 -m unittest").code == 0 else "the tests fail"
