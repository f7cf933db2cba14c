# events (t = tick, s = stop, a number = a call, ? = a line that is no event)
# -> the states of the ticks, e.g. 2c+ = 2 closed up
CASES = (
    (6, "t 3 t t t t t t t", "1c 2c+ 3c+ 3o+ 3o+ 3o+ 3c+ 3c"),
    (6, "1 t t 1 t t t t", "1o 1o 1o 1o 1c 1c"),
    (9, "5 t t 2 9 t t t t t t t", "2c+ 3c+ 4c+ 5c+ 5o+ 5o+ 5o+ 5c+ 6c+"),
    (9, "4 t t t t 2 6 t t t t", "2c+ 3c+ 4c+ 4o+ 4o+ 4o+ 4c+ 5c+"),
    (5, "3 t t t t t t t t 5 1 t t t", "2c+ 3c+ 3o+ 3o+ 3o+ 3c+ 3c 3c 2c- 1c- 1o-"),
    (5, "4 t s t 2 t s t 3 t t t", "2c+ 2c! 2c! 2c 3c+ 3o+ 3o+"),
    (5, "1 t s t t t s t t t t", "1o 1o! 1o! 1o! 1o 1o 1c 1c"),
    (3, "? 0 4 -1 t ? 3 t t t", "1c 2c+ 3c+ 3o+"),
    (4, "2 t 2 t 1 t t t t t t 4 t t t t t t", "2c+ 2o+ 2o+ 2o+ 2c+ 1c- 1o- 1o- 1o- 1c- 2c+ 3c+ 4c+ 4o+"),
)
DOORS = {"o": "open", "c": "closed"}
WAYS = {"": "-", "+": "up", "-": "down", "!": "stopped"}


def grade(run):
    for floors, events, states in CASES:
        lines = [{"t": "tick", "s": "stop", "?": "hello there"}.get(word, f"call {word}") for word in events.split()]
        wanted = [f"{state[0]} {DOORS[state[1]]} {WAYS[state[2:]]}" for state in states.split()]
        if run(f"python3 lift.py {floors}", "\n".join(lines) + "\n").out.splitlines() != wanted:
            return f"lift.py is wrong for {events!r} with {floors} floors"
    return None
