"""A soak of two replicas with one Redis and one Postgres, which are killed in turns; then what must never have happened.

    python benchmarks/fleet_soak.py [--minutes 20] [--every 20] [--pause 0.3]

The models of gateway_soak.py fail one request in ten. Two gateways, a journal each, share a Redis with two replicas and a
sentinel (`appendonly yes`, `store.redis_replicas: 2`) and ship to a Postgres with a streaming standby. 16 clients play
sessions whose steps alternate between the replicas, and post outcomes to either. In turns are killed with SIGKILL: Postgres
(started again), Redis (the sentinel makes another one the master, and the killed one follows it), a replica (started again),
Postgres (its standby is promoted, and gets one of its own), Redis, the other replica. In the end all that is left is
shipped, and what clients and the teacher saw is compared with Postgres: exit status 1 where an answered step is missing,
twice or out of order, a budget is exceeded, a sum or an outcome is wrong, or a request failed without a reason.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import cycle, pairwise
from pathlib import Path

import aiohttp
import redis
from gateway_soak import Load, asked_first, model, serve_with
from serving import free_port, memory_mb, wait_for

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from postgres import DURABLE

from postgres_server import Postgres
from r2v.gateway.ledger import Ledger
from r2v.gateway.shared_ledger import SharedLedger

CLIENTS, KEYS, SESSIONS_OF_KEY, DOWN_S = 16, 600, 100, 4.0
SESSION, KEY, DAY = {"teacher_calls": 3, "usd": 0.045}, {"teacher_calls": 100, "usd": 1.1}, 1000
"""What may be spent of a session, a key a day, and teacher calls of all a day for each minute of the soak."""


def key_of(session: str) -> int:
    return int(session[1:]) // SESSIONS_OF_KEY % KEYS


def secret(key: int) -> str:
    return f"sk-soak-{key:04}-0123456789abcdef"


def replica(port: int, models_at: int, path: str, url: str, redis_url: str, day: dict[str, float]) -> None:
    os.environ["R2V_SOAK_REDIS"] = redis_url
    serve_with(
        models_at, ",".join(map(secret, range(KEYS))), server={"port": port},
        store={"path": path, "url": url, "redis_env": "R2V_SOAK_REDIS", "redis_replicas": 2},
        budget={"session": SESSION, "key_per_day": KEY, "per_day": day},
    )  # fmt: skip


class RedisSet:
    """Three Redis and a sentinel, which makes another one the master where the one that is does not answer for 3 s."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ports, self.sentinel_port = folder, [free_port() for _ in range(3)], free_port()
        self.url = f"redis+sentinel://127.0.0.1:{self.sentinel_port}/soak/0"
        self.servers = {port: self._start(port, self.ports[0]) for port in self.ports}
        config = folder / "sentinel.conf"
        config.write_text(
            f"sentinel monitor soak 127.0.0.1 {self.ports[0]} 1\nsentinel down-after-milliseconds soak 3000\n"
            "sentinel failover-timeout soak 5000\n"
        )
        self._wait(self.ports[0])
        command = ["redis-server", str(config), "--sentinel", "--port", str(self.sentinel_port)]
        self.sentinel = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for(self.sentinel_port)

    def _start(self, port: int, master: int) -> subprocess.Popen[bytes]:
        (home := self.folder / f"redis-{port}").mkdir(exist_ok=True)
        command = ["redis-server", "--port", str(port), "--appendonly", "yes", "--save", "", "--dir", str(home)]
        command += ["--repl-diskless-sync-delay", "0", *(["--replicaof", f"127.0.0.1 {master}"] if port != master else [])]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while True:  # it listens before it has read its file
            with suppress(redis.ConnectionError), closing(redis.Redis(port=port)) as client:
                client.ping()
                return server
            assert server.poll() is None, "redis-server does not start"
            time.sleep(0.02)

    def master(self) -> int:
        with closing(redis.Redis(port=self.sentinel_port)) as client:
            return int(client.sentinel_get_master_addr_by_name("soak")[1])

    def kill(self) -> None:
        self.killed = self.master()
        self.servers[self.killed].kill()

    def follow(self) -> None:
        """The killed one comes back, after another one took over; until it has all that is there, writes wait for it."""
        while (master := self.master()) == self.killed:
            time.sleep(0.05)
        self.servers[self.killed] = self._start(self.killed, master)
        self._wait(master)

    def _wait(self, master: int) -> None:
        """Until both others follow."""
        with closing(redis.Redis(port=master)) as client:
            states = lambda: [v["state"] for k, v in client.info("replication").items() if k.startswith("slave")]  # noqa: E731
            while states().count("online") < 2:
                time.sleep(0.05)

    def stop(self) -> None:
        for server in (self.sentinel, *self.servers.values()):
            server.kill()


class Fleet:
    """The servers, what is done to them, and when each was down."""

    def __init__(self, folder: str, port: int, day: dict[str, float]) -> None:
        self.folder, self.port, self.day, self.counted = folder, port, day, f"{folder}/teacher.txt"
        self._spawn = multiprocessing.get_context("spawn").Process
        self.processes: dict[str, multiprocessing.process.BaseProcess] = {}
        self.down: list[tuple[str, float, float]] = []
        self.memory: dict[str, list[list[float]]] = {"a": [], "b": []}
        """In MB, of each life of each replica."""
        self.primary, self.standby = Postgres(**DURABLE), Postgres(**DURABLE)
        self.database = self.primary.database().rsplit("/", 1)[1]
        hosts = ",".join(f"127.0.0.1:{cluster.port}" for cluster in (self.primary, self.standby))
        self.url = f"postgresql://postgres@{hosts}/{self.database}?target_session_attrs=read-write"
        self.standby.follow(self.primary)
        self.redis = RedisSet(Path(folder))
        for i, name in enumerate(("slm", "teacher")):
            self._start(name, model, port + i, name, self.counted if i else None)
        for name in self.memory:
            self.start_replica(name)

    def _start(self, name: str, target: Callable[..., None], port: int, *arguments: object) -> None:
        self.processes[name] = self._spawn(target=target, args=(port, *arguments), daemon=True)
        self.processes[name].start()
        wait_for(port)

    def start_replica(self, name: str) -> None:
        port = self.replica_port(name)
        self._start(name, replica, port, self.port, self.journal(name), self.url, self.redis.url, self.day)
        self.memory[name].append([])

    def replica_port(self, name: str) -> int:
        return self.port + 2 + "ab".index(name)

    def journal(self, name: str) -> str:
        return f"{self.folder}/{name}.db"

    def fail_over(self) -> None:
        """To the standby; what was the primary becomes the standby of it."""
        self.standby.execute("SELECT pg_promote()")
        self.primary, self.standby = self.standby, self.primary
        self.standby.follow(self.primary)

    def disturb(self, every: float, end: float) -> None:
        """Kill one after another, until a time."""
        postgres = lambda: self.primary.stop(signal.SIGKILL)  # noqa: E731
        of_redis = ("Redis", self.redis.kill, self.redis.follow)
        a, b = (
            (f"replica {name}", lambda name=name: self.processes[name].kill(), lambda name=name: self.start_replica(name))
            for name in self.memory
        )
        restart, fail_over = ("Postgres", postgres, lambda: self.primary.start()), ("failover", postgres, self.fail_over)
        begin = time.monotonic()
        for i, (what, kill, start) in enumerate(cycle((restart, of_redis, a, fail_over, of_redis, b))):
            while time.monotonic() < min(end, begin + (i + 0.5) * every):
                time.sleep(min(1.0, every / 4))
                self.look()
            if (since := time.monotonic()) >= end - every / 2:
                break
            kill()
            time.sleep(DOWN_S)
            start()
            self.down.append((what, since, time.monotonic()))
            print(f"  {what}: {time.monotonic() - since:.1f} s", flush=True)

    def look(self) -> None:
        for name, lives in self.memory.items():
            lives[-1].append(memory_mb(self.processes[name].pid or 0))

    def stop_replicas(self) -> None:
        for name in self.memory:
            self.processes[name].terminate()
            self.processes[name].join()

    def remove(self) -> None:
        for process in self.processes.values():
            process.terminate()
            process.join()
        self.redis.stop()
        self.primary.remove()
        self.standby.remove()


class FleetLoad(Load):
    """Steps and outcomes go to the replicas in turns."""

    def __init__(self, urls: list[str], end: float, pause: float) -> None:
        super().__init__("", 0, end)
        self.urls, self.pause, self.refused, self.outcomes = urls, pause, [], {}
        """What was not answered, with its begin and end; the reward posted last of each session."""

    def run(self) -> None:
        async def play() -> None:
            async with aiohttp.ClientSession() as client:
                await asyncio.gather(*(self.work(client) for _ in range(CLIENTS)))

        asyncio.run(play())

    async def session(self, client: aiohttp.ClientSession, name: str, draw: random.Random) -> None:
        messages, urls = [asked_first(name)], cycle(self.urls if draw.random() < 0.5 else self.urls[::-1])
        headers = {"x-session-id": name, "authorization": f"Bearer {secret(key_of(name))}"}
        for _ in range(draw.randint(2, 12)):
            if "402" in await self._asked(lambda: self.step(client, next(urls), headers, messages, draw)):
                break
            await asyncio.sleep(self.pause)
        if len(messages) == 1 or draw.random() < 0.5:
            return
        for _ in range(draw.choice((1, 1, 2))):
            outcome = {"session_id": name, "reward": int(draw.random() < 0.7)}
            self.outcomes[name] = outcome["reward"]
            while await self._asked(lambda: self.outcome(client, next(urls), headers, outcome)) != "outcome 200":  # noqa: B023
                assert time.monotonic() < self.end + 60, f"no outcome of {name} is taken"

    async def outcome(self, client: aiohttp.ClientSession, url: str, headers: dict[str, str], outcome: dict) -> str:
        async with client.post(f"{url}/v1/outcomes", json=outcome, headers=headers) as response:
            self.statuses[counted := f"outcome {response.status}"] += 1
            return counted

    async def _asked(self, ask: Callable[[], Awaitable[str]]) -> str:
        """What it is counted as. Waits for a moment where nobody could answer."""
        begin = time.monotonic()
        try:
            counted = await ask()
        except aiohttp.ClientError:
            self.statuses[counted := "no connection"] += 1
        if "503" in counted or "late" in counted or counted == "no connection":
            self.refused.append((counted, begin, time.monotonic()))
            await asyncio.sleep(0.25)
        return counted

    def refusals(self, down: list[tuple[str, float, float]]) -> dict[str, Counter[str]]:
        """What was refused, by what was down then: Redis, a replica or, without a reason, "nothing"."""
        outages = [(what, begin, end) for what, begin, end in down if what not in ("Postgres", "failover")]
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for counted, begin, end in self.refused:
            reasons = (what for what, since, until in outages if begin < until and end > since)
            found[next(reasons, "nothing")][counted] += 1
        return found


def ship_rest(fleet: Fleet) -> int:
    """As `r2v ship` does. Returns how many rows were left."""
    left = 0
    for name in fleet.memory:
        with closing(Ledger(Path(fleet.journal(name)))) as ledger, closing(SharedLedger(fleet.url)) as shared:
            while rows := shared.ship(ledger.journal, ledger.identity)[2]:
                left += rows
    return left


def over(spent: Iterable[tuple[str, float, float]], day: dict[str, float]) -> tuple[int, list[str]]:
    """How many sessions, keys and days spent more than their budget; and how far each kind of budget was used.

    Args:
        spent: session, calls and USD.
        day: the budget of all.
    """
    sums: dict[str, dict[object, list[float]]] = {name: defaultdict(lambda: [0, 0.0]) for name in ("session", "key", "day")}
    for session, calls, usd in spent:
        for name, scope in (("session", session), ("key", key_of(session)), ("day", 0)):
            sums[name][scope][0] += calls
            sums[name][scope][1] += usd
    exceeded, used = 0, []
    for name, limit in (("session", SESSION), ("key", KEY), ("day", day)):
        found = sums[name].values()
        exceeded += sum(calls > limit["teacher_calls"] or usd > limit["usd"] + 1e-9 for calls, usd in found)
        full = sum(calls == limit["teacher_calls"] for calls, _ in found)
        calls, usd = (max((spent[i] for spent in found), default=0) for i in range(2))
        most = f"most {calls} of {limit['teacher_calls']} calls, USD {usd:.3f} of {limit['usd']:g}"
        used.append(f"{len(found)} {name}s, {full} at their calls, {most}")
    return exceeded, used


DIFFERENT = {
    "sums of sessions": """
        SELECT session, steps, teacher_calls, tokens, round((slm_usd + teacher_usd)::numeric, 6) FROM session_totals
        {} SELECT session, COUNT(*), SUM(teacher_calls), SUM(tokens), round(SUM(slm_usd + teacher_usd)::numeric, 6)
        FROM steps GROUP BY session""",
    "sums of days": """
        SELECT day, key, steps, calls, tokens, round(usd::numeric, 6) FROM day_totals
        {} SELECT floor(time / 86400)::bigint, key, SUM(step)::bigint, SUM(calls)::bigint, SUM(tokens)::bigint,
          round(SUM(usd)::numeric, 6) FROM (
          SELECT time, key, 1 AS step, teacher_calls AS calls, tokens, slm_usd + teacher_usd AS usd FROM steps
          UNION ALL SELECT time, key, 0, calls, tokens, usd FROM abandoned) rows GROUP BY 1, 2""",
    "ends of days": """
        SELECT key, SUM(ended)::bigint, SUM(failed)::bigint FROM day_totals GROUP BY key HAVING SUM(ended) > 0
        {} SELECT key, COUNT(*), COUNT(*) FILTER (WHERE o.reward < 0.5)
        FROM outcomes o JOIN session_totals USING (session) GROUP BY key""",
}
"""Two questions whose answers are the same."""


def wrong(fleet: Fleet, load: FleetLoad) -> dict[str, int]:
    """How many of each kind of what must not be there."""
    ask = lambda statement: fleet.primary.execute(statement, fleet.database)  # noqa: E731
    steps = ask("SELECT id, session, t, teacher_calls, slm_usd + teacher_usd FROM steps")
    number = {row[0]: row[2] for row in steps}
    of_session = defaultdict(list)
    for session, decision in load.answered:
        of_session[session].append(number.get(decision, -1))
    journals = [sqlite3.connect(fleet.journal(name)).execute("SELECT id FROM steps").fetchall() for name in fleet.memory]
    outcomes = defaultdict(list)
    for session, reward in ask("SELECT session, reward FROM outcomes WHERE t IS NULL"):
        outcomes[session.rsplit("/", 1)[1]].append(reward)
    abandoned = ask("SELECT session, calls, usd FROM abandoned")
    charged = [
        (session.rsplit("/", 1)[1], calls, usd) for session, calls, usd in [(r[1], *r[3:]) for r in steps] + abandoned
    ]
    answers = [line.split() for line in Path(fleet.counted).read_text().splitlines()]
    by_teacher = [(session, 1, (10 * int(prompt) + 4 * int(output)) / 1e6) for session, prompt, output in answers]
    (over_charged, used), (over_paid, paid) = over(charged, fleet.day), over(by_teacher, fleet.day)
    print("charged:      ", "; ".join(used))
    print("teacher says: ", "; ".join(paid))
    print(f"{len(steps)} steps in Postgres, {len(abandoned)} abandoned, {len(outcomes)} outcomes")
    ids = Counter(row[0] for row in steps)
    return {
        "answered steps missing in Postgres": sum(decision not in ids for _, decision in load.answered),
        "steps twice": sum(n > 1 for n in ids.values()),
        "numbers of a session given twice": len(steps) - len({row[1:3] for row in steps}),
        "sessions answered in another order": sum(any(a >= b for a, b in pairwise(ts)) for ts in of_session.values()),
        "steps of a journal missing in Postgres": sum(row[0] not in ids for journal in journals for row in journal),
        "outcomes wrong, missing or twice": sum(outcomes[name] != [reward] for name, reward in load.outcomes.items()),
        "sessions, keys and days charged over budget": over_charged,
        "sessions, keys and days over budget as the teacher counted": over_paid,
        **{f"{what} that differ from the rows": _differ(ask, both) for what, both in DIFFERENT.items()},
        "server errors": sum(n for what, n in load.statuses.items() if what[:3] in ("500", "504")),
        "requests refused while nothing was down": load.refusals(fleet.down)["nothing"].total(),
    }


def _differ(ask: Callable[[str], list[tuple]], both: str) -> int:
    one, other = both.split("{}")
    return len(ask(f"({one}) EXCEPT ({other})")) + len(ask(f"({other}) EXCEPT ({one})"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between what is killed")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds that a client waits between steps")
    parser.add_argument("--port", type=int, default=18741, help="of the models and replicas: four from here on")
    arguments = parser.parse_args()
    day = {"teacher_calls": int(DAY * arguments.minutes), "usd": 0.02 * DAY * arguments.minutes}
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(folder, arguments.port, day)
        try:
            end = time.monotonic() + 60 * arguments.minutes
            load = FleetLoad([f"http://127.0.0.1:{fleet.replica_port(name)}" for name in fleet.memory], end, arguments.pause)
            with ThreadPoolExecutor(1) as pool:
                playing = pool.submit(load.run)
                try:
                    fleet.disturb(arguments.every, end)
                finally:
                    load.end = min(load.end, time.monotonic())
                playing.result()
            fleet.look()
            fleet.stop_replicas()
            left = ship_rest(fleet)
            print(f"{load.begun} sessions, {len(load.answered)} answered steps: {dict(load.statuses)}")
            print(f"{len(fleet.down)} outages: {dict(Counter(what for what, _, _ in fleet.down))}")
            print(f"not served while it was down: { {what: dict(n) for what, n in load.refusals(fleet.down).items()} }")
            for name, lives in fleet.memory.items():
                most = max(max(life) for life in lives)
                print(f"replica {name}: MB {lives[0][0]:.0f} at the begin, {lives[-1][-1]:.0f} at the end, {most:.0f} most")
            print(f"rows that the replicas had not shipped when they ended: {left}")
            found = wrong(fleet, load)
        finally:
            fleet.remove()
    for what, count in found.items():
        print(f"{count:6} {what}")
    return int(any(found.values()) or not load.answered)


if __name__ == "__main__":
    sys.exit(main())
