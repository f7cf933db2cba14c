import sys

floors = int(sys.argv[1])
floor, calls = 1, set()

for line in sys.stdin:
    words = line.split()
    if words[0] == "call":
        calls.add(int(words[1]))
    if words[0] == "tick":
        if calls and floor < max(calls):
            floor += 1
        print(floor, "closed", "up")
