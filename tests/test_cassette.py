"""The cassette of answers: each question is put to the model once, by whoever asks, and a packed one needs no model."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from typer.testing import CliRunner

from r2v.cli import cli
from r2v.clients.cassette import Cassette, packed
from r2v.clients.chat import ChatPolicy, ChatSettings
from r2v.clients.settings import PriceSettings
from r2v.core.errors import ArtifactError, ModelError
from r2v.core.types import Context, Usage
from r2v.messages.chat_format import ChatFormat, command_of
from servers import running

FORMAT = ChatFormat("Answer with a number.", command_of)
QUESTIONS = 12


class Model:
    """Counts: each answer is the number of the request, so that no two are alike."""

    def __init__(self, wait_s: float = 0.0) -> None:
        self.bodies: list[dict] = []
        self.wait_s = wait_s
        self.app = Starlette(routes=[Route("/v1/chat/completions", self.complete, methods=["POST"])])

    async def complete(self, request: Request) -> JSONResponse:
        self.bodies.append(body := await request.json())
        number = len(self.bodies)
        await asyncio.sleep(self.wait_s)
        token = {"token": "x", "logprob": -0.25, "top_logprobs": [{"token": "x", "logprob": -0.25}]}
        choice = {"message": {"role": "assistant", "content": f"number {number}"}, "logprobs": {"content": [token, token]}}
        usage = {"prompt_tokens": 10, "completion_tokens": 2}  # llama.cpp counts one of several choices
        return JSONResponse({"choices": [choice] * body.get("n", 1), "usage": usage})


def settings(url: str, cassette: Path | None, **more: object) -> ChatSettings:
    return ChatSettings(
        kind="chat", base_url=f"{url}/v1", model="counter", price=PriceSettings(input=1.0, output=2.0), retries=0,
        cassette=None if cassette is None else str(cassette), **more,
    )  # fmt: skip


def ask(chosen: ChatSettings, *questions: tuple[str, int, int]):
    """The candidates for each (goal, k, seed), all asked at once."""
    policy = ChatPolicy(chosen, name="slm", chat_format=FORMAT)

    async def go():
        asked = (policy.propose(Context(goal, ("look",), (), 5), k, seed=seed) for goal, k, seed in questions)
        return await asyncio.gather(*asked)

    return asyncio.run(go())


def test_each_question_is_asked_once(tmp_path):
    model = Model()
    with running(model.app) as url:
        chosen = settings(url, tmp_path / "tape", temperature=0.7)
        first = ask(chosen, ("a", 3, 1), ("a", 3, 2), ("a", 2, 1), ("b", 3, 1), ("a", 3, 1))
        assert len(model.bodies) == 4 and first[0] == first[4] != first[1]
        assert ask(chosen, ("a", 3, 1), ("b", 3, 1)) == [first[0], first[3]]
        assert len(model.bodies) == 4
        assert ask(chosen.but(revision="2"), ("a", 3, 1)) != [first[0]] and len(model.bodies) == 5
    usages = [candidate.usage for candidate in first[0]]
    assert usages == [Usage(1, 10, 6, pytest.approx(22e-6)), Usage(), Usage()]
    likely = math.exp(-0.25)
    entropy = -likely * math.log(likely) - (1 - likely) * math.log(1 - likely)
    assert (first[0][0].logp, first[0][0].entropy) == (-0.5, pytest.approx(entropy))


def test_a_greedy_answer_depends_on_no_seed(tmp_path):
    model = Model()
    with running(model.app) as url:
        found = ask(settings(url, tmp_path / "tape"), ("a", 1, 1), ("a", 1, 2), ("b", 1, 1))
    assert found[0] == found[1] != found[2] and len(model.bodies) == 2 and "seed" not in model.bodies[0]


def test_a_packed_cassette_needs_no_model(tmp_path):
    with running(Model().app) as url:
        recorded = ask(settings(url, tmp_path / "tape"), ("a", 2, 1), ("b", 1, 1))
    cassette = Cassette(tmp_path / "tape")
    assert cassette.pack() == 2 and Cassette(tmp_path / "tape").pack() == 2
    alone = tmp_path / "other" / "tape"
    alone.parent.mkdir()
    packed(tmp_path / "tape").rename(packed(alone))
    chosen = settings("http://127.0.0.1:9", alone)
    assert ask(chosen, ("a", 2, 1), ("b", 1, 7)) == recorded
    assert [path.name for path in alone.parent.iterdir()] == ["tape.jsonl.xz"]
    with pytest.raises(ModelError, match=r"connection failed.*; the cassette .*tape holds no answer to this question"):
        ask(chosen, ("c", 1, 1))


def test_two_who_ask_at_the_same_time_get_the_same_answer(tmp_path):
    model = Model(wait_s=0.3)

    async def both():
        return await asyncio.gather(*(p.propose(Context("a", ("look",), (), 5), 1, seed=1) for p in policies))

    with running(model.app) as url:
        chosen = settings(url, tmp_path / "tape")
        policies = [ChatPolicy(chosen, name="slm", chat_format=FORMAT) for _ in range(2)]  # as two processes would
        one, other = asyncio.run(both())
    assert len(model.bodies) == 2 and one == other


RECORD = """
import asyncio, sys
from r2v.clients.chat import ChatPolicy
from test_cassette import FORMAT, QUESTIONS, Path, Context, settings
policy = ChatPolicy(settings(sys.argv[1], Path(sys.argv[2])), name="slm", chat_format=FORMAT)
async def go():
    for i in range(QUESTIONS):
        await policy.propose(Context(f"question {i}", ("look",), (), 5), 1, seed=1)
asyncio.run(go())
"""


def test_a_recording_that_is_killed_ten_times_loses_an_answer_each_at_most(tmp_path):
    model, kills = Model(wait_s=0.15), 10
    with running(model.app) as url:
        command = [sys.executable, "-c", RECORD, url, str(tmp_path / "tape")]
        for _ in range(kills):
            before = len(model.bodies)
            process = subprocess.Popen(command, cwd=Path(__file__).parent)
            while len(model.bodies) == before and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run(command, cwd=Path(__file__).parent, check=True, timeout=60)
        assert QUESTIONS <= len(model.bodies) <= QUESTIONS + kills
        asked = len(model.bodies)
        subprocess.run(command, cwd=Path(__file__).parent, check=True, timeout=60)
        assert len(model.bodies) == asked
    goals = [body["messages"][1]["content"] for body in model.bodies]
    assert all(len(list(times)) <= 1 + kills for _, times in itertools.groupby(sorted(goals)))


def test_the_command_packs_a_cassette(tmp_path, refused):
    with running(Model().app) as url:
        ask(settings(url, tmp_path / "tape"), ("a", 2, 1), ("b", 1, 1))
    found = CliRunner().invoke(cli, ["cassette", str(tmp_path / "tape")])
    assert found.exit_code == 0 and found.stdout.startswith(
        f"2 questions with their answers in {tmp_path / 'tape.jsonl.xz'}"
    )
    assert "neither" in refused("cassette", tmp_path / "other") and not list(tmp_path.glob("other*"))


@pytest.mark.parametrize("suffix", [".jsonl.xz", ".sqlite"])
def test_what_is_no_cassette_is_one_line(tmp_path, suffix):
    (tmp_path / f"tape{suffix}").write_bytes(json.dumps({"no": "cassette"}).encode() * 100)
    with pytest.raises(ArtifactError, match=f"tape{suffix}"):
        ask(settings("http://127.0.0.1:9", tmp_path / "tape"), ("a", 1, 1))
