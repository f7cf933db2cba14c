"""A soak of the gateway: sessions with outcomes, budgets and faults for some minutes; then what must never have happened.

`python benchmarks/gateway_soak.py --minutes 15` starts two models that fail one request in ten (HTTP 500, 429, and
connections that break) and the gateway as a process of its own, and plays sessions of 2 to 12 steps through it, 16 at once,
half of them streaming, some of them leaving in the middle. It ends with: answered steps missing from the ledger, sessions
that spent more than their budget (teacher calls counted by the teacher itself), server errors that no fault explains, and
the gateway's memory over time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import sqlite3
import tempfile
import time
from collections import Counter
from pathlib import Path

import aiohttp
from serving import KEY, memory_mb, model_app, wait_for

from r2v.runtime.settings import validated

SESSION_CALLS = 3
TOOL = {"name": "look", "parameters": {"type": "object", "properties": {"where": {"type": "string"}}, "required": ["where"]}}


def model(port: int, name: str, counted: str | None) -> None:
    """A made-up model with faults; writes the session mark and the usage of each request that it answered to `counted`."""
    import uvicorn

    from r2v.clients.mock import MockModel, complete

    draw, mock_model = random.Random(name), MockModel(name, error_rate=0.4)
    out = open(counted, "a", buffering=1) if counted else None  # noqa: SIM115

    def answer(body: bytes) -> tuple[int, bytes] | None:
        fault = draw.random()
        if fault < 0.03:
            return None
        if fault < 0.10:
            return 500 if fault < 0.07 else 429, b'{"error": {"message": "made-up fault"}}'
        asked = json.loads(body)
        done = complete(mock_model, asked)
        if out:
            mark, usage = asked["messages"][0]["content"].split()[-1], done["usage"]
            out.write(f"{mark} {usage['prompt_tokens']} {usage['completion_tokens']}\n")
        return 200, json.dumps(done).encode()

    uvicorn.run(model_app(answer), port=port, log_level="critical", access_log=False, lifespan="off")


def gateway(port: int, folder: str) -> None:
    serve_with(
        port - 2, server={"port": port}, store={"path": f"{folder}/ledger.db"},
        budget={"key_per_day": {"sessions": 10**9}, "session": {"teacher_calls": SESSION_CALLS, "usd": 0.2}},
    )  # fmt: skip


def serve_with(models_at: int, keys: str = KEY, **settings: object) -> None:
    """Serve, with the two models on the ports from `models_at` on."""
    from r2v.gateway.serve import serve
    from r2v.gateway.settings import GatewaySettings

    os.environ["R2V_API_KEY"] = keys
    models = {
        name: {
            "base_url": f"http://127.0.0.1:{models_at + i}/v1", "model": name, "timeout_s": 5, "breaker_failures": 50,
            "price": {"input": 1 + 9 * i, "output": 4}, "max_output_tokens": 200,
        }
        for i, name in enumerate(("slm", "teacher"))
    }  # fmt: skip
    raw = {"version": 1, "models": models, "route": {"k": 4, "router": "entropy", "threshold": 0.7}, **settings}
    serve(validated(GatewaySettings, raw), mock=False, announce=lambda *urls: None)


class Load:
    """What the clients saw."""

    def __init__(self, url: str, sessions: int, end: float) -> None:
        self.url, self.sessions, self.end = url, sessions, end
        self.begun = 0
        self.answered: list[tuple[str, str]] = []
        """Session and decision."""
        self.statuses: Counter[str] = Counter()

    async def work(self, client: aiohttp.ClientSession) -> None:
        while self.begun < self.sessions or time.monotonic() < self.end:
            self.begun += 1
            await self.session(client, f"s{self.begun}", random.Random(self.begun))

    async def session(self, client: aiohttp.ClientSession, name: str, draw: random.Random) -> None:
        messages = [asked_first(name)]
        for _ in range(draw.randint(2, 12)):
            await self.step(client, self.url, {"x-session-id": name}, messages, draw)
        if draw.random() < 0.5:
            outcome = {"session_id": name, "reward": int(draw.random() < 0.7)}
            async with client.post(f"{self.url}/v1/outcomes", json=outcome) as response:
                self.statuses[f"outcome {response.status}"] += 1

    async def step(
        self, client: aiohttp.ClientSession, url: str, headers: dict[str, str], messages: list[dict], draw: random.Random
    ) -> str:
        """Ask for a step, whose answer is added to the messages. Returns what it is counted as in `statuses`."""
        body = {"model": "r2v", "messages": messages, "tools": [{"type": "function", "function": TOOL}]}
        stream, leaves = draw.random() < 0.5, draw.random() < 0.02
        timeout = aiohttp.ClientTimeout(total=draw.uniform(0.002, 0.05) if leaves else 30)
        try:
            async with client.post(
                f"{url}/v1/chat/completions", json={**body, "stream": stream}, headers=headers, timeout=timeout
            ) as response:
                text = await response.text()
        except TimeoutError:
            self.statuses["left"] += 1
            return "left"
        # Headers that were waited for too long come without the decision, and errors then as an event.
        late = response.status == 200 and stream and "data: [DONE]" not in text
        answered = f"{'late error' if late else response.status} {response.headers.get('x-r2v-reason')}"
        self.statuses[answered] += 1
        if response.status == 200 and not late:
            decision = response.headers.get("x-r2v-decision-id") or _decision_of(text)
            self.answered.append((headers["x-session-id"], decision))
            messages += [_message(text, stream), {"role": "user", "content": f"go on {len(messages)}"}]
        return answered


def asked_first(session: str) -> dict:
    """The message that a session begins with, marked for `model`."""
    return {"role": "user", "content": f"look for the red value, says {session}"}


def _decision_of(stream: str) -> str:
    first = next(line for line in stream.splitlines() if line.startswith("data: {"))
    return str(json.loads(first[6:])["id"]).removeprefix("chatcmpl-")


def _message(text: str, stream: bool) -> dict:
    if not stream:
        message = json.loads(text)["choices"][0]["message"]
        return {"role": "assistant", "content": message.get("content") or "(calls)"}
    deltas = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert text.rstrip().endswith("data: [DONE]"), text[-200:]
    return {
        "role": "assistant",
        "content": "".join(d["choices"][0]["delta"].get("content") or "" for d in deltas) or "(calls)",
    }


async def play(port: int, pid: int, minutes: float, sessions: int) -> tuple[Load, list[float]]:
    load, memory = Load(f"http://127.0.0.1:{port}", sessions, time.monotonic() + 60 * minutes), []
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {KEY}"}) as client:

        async def watch() -> None:
            while True:
                memory.append(memory_mb(pid))
                print(f"  {load.begun} sessions, {len(load.answered)} answered steps, {memory[-1]:.0f} MB", flush=True)
                await asyncio.sleep(max(5.0, 60 * minutes / 15))

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(load.work(client) for _ in range(16)))
        watching.cancel()
    return load, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0, help="at least so long")
    parser.add_argument("--sessions", type=int, default=10_000, help="and at least so many")
    parser.add_argument("--port", type=int, default=18701)
    arguments = parser.parse_args()
    port = arguments.port
    with tempfile.TemporaryDirectory() as folder:
        counted = f"{folder}/teacher.txt"
        context = multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=model, args=(port, "slm", None)),
            context.Process(target=model, args=(port + 1, "teacher", counted)),
            context.Process(target=gateway, args=(port + 2, folder)),
        ]
        for process in processes:
            process.start()
        for i in range(3):
            wait_for(port + i)
        try:
            load, memory = asyncio.run(play(port + 2, processes[2].pid, arguments.minutes, arguments.sessions))
        finally:
            for process in processes:
                process.terminate()
                process.join()
        db = sqlite3.connect(f"{folder}/ledger.db")
        written = {row[0] for row in db.execute("SELECT id FROM steps")}
        calls = Counter(line.split()[0] for line in Path(counted).read_text().splitlines())
        dear = db.execute(
            "SELECT COUNT(*) FROM (SELECT 1 FROM steps GROUP BY session HAVING SUM(slm_usd + teacher_usd) > 0.2)"
        )
        over, over_usd = sum(count > SESSION_CALLS for count in calls.values()), dear.fetchone()[0]
        wrong = {status: n for status, n in load.statuses.items() if status[:1] == "5" and "upstream_fallback" not in status}
        quarter = max(1, len(memory) // 4)
        print(f"{load.begun} sessions, {len(load.answered)} answered steps: {dict(load.statuses)}")
        print(f"answered steps missing from the ledger  {len({decision for _, decision in load.answered} - written)}")
        print(f"sessions over their budget of calls     {over} (as the teacher counted), of USD {over_usd}")
        print(f"server errors without a fault           {wrong or 0}")
        first, last = memory[quarter : 2 * quarter], memory[-quarter:]
        print(f"memory, second quarter and last         {sum(first) / len(first):.0f} MB, {sum(last) / len(last):.0f} MB")


if __name__ == "__main__":
    main()
