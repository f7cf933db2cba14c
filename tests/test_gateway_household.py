"""Household episodes through HTTP: a real tiny model behind `serve-model`, the gateway, and the decisions of the loop."""

from __future__ import annotations

import asyncio
import math
import statistics
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field

import httpx
import msgspec
import openai
import pytest
import torch

from r2v.clients.local.policy import Drawn, LocalPolicy
from r2v.core.agent import AgentModels, Routed, StepContext
from r2v.core.loop import run_episode
from r2v.core.seeds import derive_seed
from r2v.core.types import Action, Choice, Context, Memory, Usage
from r2v.domains.household import DOMAIN
from r2v.domains.household.chat_format import HOUSEHOLD
from r2v.domains.household.env import Household
from r2v.domains.household.expert import HouseholdExpert
from r2v.domains.household.scenes import generate
from r2v.gateway.ledger import Ledger
from r2v.gateway.model_server import model_app
from r2v.gateway.routing import GatewayRouter, load_configured
from r2v.gateway.settings import RouteSettings
from r2v.messages import conversation as chat
from r2v.messages.chat_format import context_of_chat, messages
from r2v.perturbations.wrap import Perturbed
from r2v.verifiers import verifier_named
from servers import KEY, gateway, running, settings
from test_slm import episodes, folder, one_thread, tokenizer  # noqa: F401  (fixtures)

K = 4


class Expert:
    """The household's expert as a model that can be served."""

    async def draw(self, context: Context, k: int, *, seed: int) -> tuple[Drawn, ...]:
        (candidate,) = await HouseholdExpert().propose(context, 1, seed=seed)
        return (Drawn(candidate, ((candidate.action.text, 0.0),), ()),) * k


def request_of(context: Context) -> bytes:
    return msgspec.json.encode({"model": "r2v", "messages": messages(context, HOUSEHOLD.system)})


@dataclass(frozen=True)
class Unwrapped:
    """A policy that is asked with the gateway's context, and answers to the episode's own."""

    policy: object
    context: Context
    name: str

    async def propose(self, context: Context, k: int, *, seed: int):
        return await self.policy.propose(self.context, k, seed=seed % 2**31)


@dataclass
class InProcess:
    """The gateway's decision without a gateway."""

    slm: LocalPolicy
    route: RouteSettings
    session: str
    name: str = "in process"
    choices: list[Choice] = field(default_factory=list)

    async def act(self, context: Context, memory: Memory, *, seed: int) -> tuple[Choice, Memory]:
        seen = chat.context_of(chat.parse(request_of(context)), self.route.horizon)
        slm, teacher = Unwrapped(self.slm, context, "small"), Unwrapped(HouseholdExpert(), context, "teacher")
        configured = load_configured(self.route)
        router = GatewayRouter(configured.make(configured.threshold), self.route)
        models = AgentModels(slm, teacher, verifier_named(configured.route.verifier), K)
        step_context = StepContext(models, seen, seed=derive_seed(self.session, context.t))
        choice, memory = await Routed(models, router).choose(step_context, memory)
        self.choices.append(choice)
        return choice, memory


@dataclass
class OverHttp:
    url: str
    name: str = "over http"
    arms: list[str] = field(default_factory=list)

    async def act(self, context: Context, memory: Memory, *, seed: int) -> tuple[Choice, Memory]:
        headers = {"authorization": f"Bearer {KEY}", "x-session-id": "house", "content-type": "application/json"}
        async with httpx.AsyncClient(timeout=30) as client:
            answer = await client.post(f"{self.url}/v1/chat/completions", content=request_of(context), headers=headers)
        arm = answer.headers["x-r2v-arm"]
        self.arms.append(arm)
        text = answer.json()["choices"][0]["message"]["content"]
        return Choice(Action(text), arm, (), (), None, None, Usage(), Usage()), memory


def test_a_household_episode_over_http_is_the_one_of_the_loop(folder, tokenizer, small_tasks, small_scenes, tmp_path):  # noqa: F811
    task = small_tasks[1]

    def play(agent):
        environment = Household(generate(task.id, task.family, small_scenes).world())
        perturbed = Perturbed(environment, DOMAIN.perturbation("flaky", 2.0, environment.goal), seed=3, salt=task.id)
        return asyncio.run(
            run_episode(perturbed, agent, task, seed=3, perturbation="x", horizon=25, memory=Memory())
        )  # fmt: skip

    route = RouteSettings(router="entropy", threshold=0.0, k=K, verifier="household")
    probe = InProcess(LocalPolicy.load(folder), route, "probe")
    play(probe)
    threshold = statistics.median(choice.decision.score for choice in probe.choices)  # so that both models act
    with ExitStack() as stack:
        small = stack.enter_context(running(model_app(LocalPolicy.load(folder), "tiny")))
        teacher = stack.enter_context(running(model_app(Expert(), "expert")))
        route = route.but(threshold=threshold)
        config = settings(
            small, teacher, tmp_path / "l.db", route__router="entropy", route__threshold=threshold, route__k=K,
            route__verifier="household",
            small__top_logprobs=20, small__vocabulary=len(tokenizer), small__timeout_s=30,
        )  # fmt: skip
        url, service = stack.enter_context(gateway(config))
        over_http = OverHttp(url)
        episode = play(over_http)
        (session,) = [row["session"] for row in service.ledger.sessions(5)]
        stored = [entry.step.choice for entry in Ledger(tmp_path / "l.db").steps(session)]
    in_process = InProcess(LocalPolicy.load(folder), route, session)
    again = play(in_process)
    assert episode.failure is None and again.failure is None, (episode.failure, again.failure)
    assert [s.choice.action.text for s in episode.steps] == [s.choice.action.text for s in again.steps]
    assert over_http.arms == [choice.source for choice in in_process.choices] and set(over_http.arms) == {"slm", "teacher"}
    assert episode.success == again.success
    for there, here in zip(stored, in_process.choices, strict=True):
        assert [c.action for c in there.candidates] == [c.action for c in here.candidates]
        assert [c.logp for c in there.candidates] == [c.logp for c in here.candidates]
        assert there.scores == here.scores
        # The entropy is a float32 sum in torch and a float64 sum behind HTTP; all else is the same to the bit.
        assert there.features.values == pytest.approx(here.features.values, rel=1e-6)
        assert there.features.values[1:] == here.features.values[1:]
        assert there.decision.score == pytest.approx(here.decision.score, rel=1e-6)
        assert (there.decision.route, there.decision.threshold) == (here.decision.route, here.decision.threshold)


def test_the_model_server_speaks_to_the_openai_sdk(folder, episodes):  # noqa: F811
    torch.set_num_threads(1)
    steps = episodes[0].steps
    context = Context(
        episodes[0].goal, tuple(s.observation.text for s in steps[:2]), tuple(s.choice.action for s in steps[:1]), 40
    )
    assert context_of_chat([(m["role"], m["content"]) for m in messages(context, HOUSEHOLD.system)]).history(
        1
    ) == context.history(1)
    here = asyncio.run(LocalPolicy.load(folder).propose(context, 3, seed=9))
    with ExitStack() as stack:
        url = stack.enter_context(running(model_app(LocalPolicy.load(folder), "tiny")))
        client = stack.enter_context(openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0))
        told = client.chat.completions.create(
            model="tiny", messages=messages(context, HOUSEHOLD.system), n=3, seed=9, logprobs=True, top_logprobs=20
        )
        assert [c.message.content for c in told.choices] == [c.action.text for c in here]
        assert [sum(t.logprob for t in c.logprobs.content) for c in told.choices] == [c.logp for c in here]
        top = told.choices[0].logprobs.content[0].top_logprobs
        assert len(top) == 20 and sum(math.exp(t.logprob) for t in top) <= 1 + 1e-6
        assert told.usage.prompt_tokens == here[0].usage.prompt_tokens
        with pytest.raises(openai.BadRequestError, match="take turns"):
            client.chat.completions.create(model="tiny", messages=[{"role": "assistant", "content": "x"}])
        with pytest.raises(openai.BadRequestError, match="no tools"):
            tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
            client.chat.completions.create(model="tiny", messages=messages(context, HOUSEHOLD.system), tools=tools)


def test_serve_model_serves_a_model_folder(folder):  # noqa: F811
    command = [sys.executable, "-c", "from r2v.cli import app; app()", "serve-model", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().split()[1]
        answer = httpx.get(f"{url}/models", timeout=20)
        assert answer.json()["data"][0]["id"] == folder.name
    finally:
        process.terminate()
        process.stdout.close()
        process.wait()
