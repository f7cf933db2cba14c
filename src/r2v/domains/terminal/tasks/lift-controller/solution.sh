cat > lift.py <<'P'
import re
import sys

OPEN_TICKS = 2


class Lift:
    def __init__(self, floors):
        self.floors = floors
        self.floor, self.left, self.direction, self.calls, self.stopped = 1, None, 0, set(), False

    def call(self, n):
        if self.stopped or not 1 <= n <= self.floors:
            return
        if n == self.floor and self.left is not None:
            self.left = OPEN_TICKS
        else:
            self.calls.add(n)

    def stop(self):
        self.stopped = not self.stopped
        self.calls.clear()
        self.direction = 0

    def tick(self):
        if not self.stopped:
            self.move()
        door = "closed" if self.left is None else "open"
        way = "stopped" if self.stopped else {1: "up", -1: "down", 0: "-"}[self.direction]
        return f"{self.floor} {door} {way}"

    def move(self):
        if self.left is not None:
            self.left = self.left - 1 if self.left else None
        elif self.floor in self.calls:
            self.calls.remove(self.floor)
            self.left = OPEN_TICKS
        elif not self.calls:
            self.direction = 0
        else:
            if not self.direction:
                nearest = min(self.calls, key=lambda n: (abs(n - self.floor), n))
                self.direction = 1 if nearest > self.floor else -1
            elif not any((n - self.floor) * self.direction > 0 for n in self.calls):
                self.direction = -self.direction
            self.floor += self.direction


lift = Lift(int(sys.argv[1]))
for line in sys.stdin:
    line = line.strip()
    if match := re.fullmatch(r"call (\d+)", line):
        lift.call(int(match[1]))
    elif line == "tick":
        print(lift.tick())
    elif line == "stop":
        lift.stop()
P
printf 'call 3\ntick\ntick\ntick\n' | python3 lift.py 5
