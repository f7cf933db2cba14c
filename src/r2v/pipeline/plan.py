"""`r2v run --dry-run`: what a run would do, what its chat models would read, write and cost, and whether they answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from r2v.clients.chat import ChatPolicy, ChatSettings
from r2v.core.errors import ModelError
from r2v.core.types import Context
from r2v.messages.chat_format import ChatFormat, messages
from r2v.pipeline.settings import RunSettings

CHARACTERS = 4
"""Of a token, about."""
OBSERVATION_TOKENS = 100
"""Of what an environment answers to a step, about."""
PROBED_TASKS = 8


@dataclass(frozen=True)
class ModelPlan:
    """One chat model's part in a run. The least is one agent alone on each split that it is needed on; the most is every
    router at every threshold with nothing shared, each episode as long as the horizon and each answer as the limit.
    """

    role: str
    model: str
    base_url: str
    least: int
    """Tokens, read and written."""
    most: int
    usd: tuple[float, float] | None
    """For them; None without a price."""
    answers: bool
    found: str
    """What one request gave, in a few words."""


def plan(settings: RunSettings) -> list[ModelPlan]:
    """The plan of each chat model of the run; each is asked one short question. Raises SettingsError without its key."""
    chat = settings.domain.chat_format
    found = []
    played = _episodes(settings)
    models = [("slm", settings.slm.model, settings.slm.k), ("teacher", settings.teacher, 1)]
    for role, model, k in [*models, *((name, model, 1) for name, model in settings.pool.items())]:
        if isinstance(model, ChatSettings):
            read, written = _episode_tokens(settings, model, k, chat)
            counts = [episodes * (read + written) for episodes in played[role]]
            usd = None
            if model.price is not None:
                one = (read * model.price.input + written * model.price.output) / 1e6
                usd = (played[role][0] * one, played[role][1] * one)
            found.append(ModelPlan(role, model.model, model.base_url, counts[0], counts[1], usd, *_asked(model, role, chat)))
    return found


def _episodes(settings: RunSettings) -> dict[str, tuple[int, int]]:
    """Role -> (least, most) episodes that the model acts in."""
    tasks, seeds = settings.tasks, settings.perturbations
    fitted, held = tasks.router * len(seeds.rollout), tasks.validation * len(seeds.validation)
    reported = tasks.test * len(seeds.test)
    points = len(settings.chosen_routers) * (1 + len(settings.evaluate.asked_shares))
    tried_on = 0 if settings.evaluate.rule == "share" else held
    least = {"slm": fitted + held + reported, "teacher": tried_on + reported}
    tried = {need for router, _ in settings.chosen_routers.values() for need in router.needs}
    extra = fitted * len(tried) * (1 + settings.help.branches)
    taught = tasks.policy * (1 + len(seeds.collect)) if settings.trains else 0
    tuned = sum(router.tuning(len(settings.help.budgets)) for router, _ in settings.chosen_routers.values())
    most = points * (tried_on + reported) + extra + tuned * (held + tasks.router)  # of the router tasks one seed
    of_pool = (reported, reported + (most if "pool" in tried else 0))  # each alone on the test tasks
    return {
        "slm": (least["slm"], least["slm"] + most),
        "teacher": (least["teacher"] + taught, least["teacher"] + taught + most),
        **dict.fromkeys(settings.pool, of_pool),
    }


def _episode_tokens(settings: RunSettings, model: ChatSettings, k: int, chat: ChatFormat) -> tuple[int, int]:
    """(read, written) in an episode as long as the horizon, about: of K answers one enters the next prompt."""
    env, horizon = settings.environment, settings.environment.horizon
    tasks = settings.domain.tasks(env, PROBED_TASKS, settings.seed)[:PROBED_TASKS]
    opened = [asyncio.run(settings.domain.environment(env, task).start()).text if chat.opening else "" for task in tasks]
    begins = [
        messages(Context(task.goal, (first,), (), horizon), chat.system, opening=chat.opening)
        for task, first in zip(tasks, opened, strict=True)
    ]
    first = sum(len(m["content"]) for begin in begins for m in begin) // (CHARACTERS * len(begins))
    grows = model.max_tokens + OBSERVATION_TOKENS
    read = horizon * first + grows * horizon * (horizon - 1) // 2
    return read, horizon * k * model.max_tokens


def _asked(model: ChatSettings, role: str, chat: ChatFormat) -> tuple[bool, str]:
    """(whether a model answers a short question, what that gave)."""
    short = model.but(max_tokens=min(16, model.max_tokens), retries=0, cassette=None)
    policy, start = ChatPolicy(short, name=role, chat_format=chat), time.perf_counter()
    try:
        (candidate,) = asyncio.run(policy.propose(Context("Say yes.", ("Say yes.",), (), 1), 1, seed=0))
    except ModelError as error:
        return False, f"does not answer: {error}"
    parts = [f"answers in {time.perf_counter() - start:.1f} s"]
    if (written := candidate.usage.completion_tokens) is None:
        parts.append("counts no tokens")
    else:
        parts[0] += f" with {written} token{'s' if written != 1 else ''}"
    if model.temperature > 0 and candidate.logp is None:
        parts.append("no log-probabilities: features that need them will be absent")
    return True, ", ".join(parts)


def lines(plans: Sequence[ModelPlan]) -> list[str]:
    """For people."""
    found = []
    for p in plans:
        tokens = f"{p.least / 1e6:.2f} to {p.most / 1e6:.2f} million tokens"
        usd = "no price set" if p.usd is None else f"{p.usd[0]:.2f} to {p.usd[1]:.2f} USD"
        found += [f"{p.role:<8} {p.model} at {p.base_url}: {p.found}", f"{'':<8} {tokens}, {usd}"]
    return found
