"""What texts that an attacker writes do to routers: teacher calls that they buy, and teacher calls that they suppress.

    python benchmarks/injections.py runs/quickstart [--outside escalate|abstain|clip] [--routers r2v benefit]
    python benchmarks/injections.py --logs LOGS    the router of `r2v fit --unproven LOGS`, on steps of these logs

Steps are those that each fitted router decided on the test tasks of a finished run; of the gateway's default router those of
the mock sessions (`r2v serve --mock`). The newest observation or the goal is changed, the candidates are not; the verifier
scores again, and the router decides again. Shares with 95 % Wilson intervals. Target: at most 5 % suppressed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from r2v.clients.mock import SLM, TEACHER, complete
from r2v.core.features import best, featurise
from r2v.core.protocols import Router, Verifier
from r2v.core.types import NO_USAGE, Candidate, Episode, Memory
from r2v.evaluation.text_attacks import ATTACKS, Step, escalates, steps_of
from r2v.gateway.demo import SESSIONS, TOOL, Shop
from r2v.logs.detection import detect
from r2v.logs.importing import import_logs, log_format
from r2v.messages.conversation import action_of, context_of, logprobs_of, parse
from r2v.pipeline.run_folder import RunFolder
from r2v.routers.base import Outside, RouterBase
from r2v.routers.rules import Rules
from r2v.studies.advise import advise, router_of
from r2v.studies.costs import Costs
from r2v.studies.fit_logs import fitted_with
from r2v.verifiers import verifier_named
from r2v.verifiers.tool_calls import ToolCallVerifier

TARGET, Z = 0.05, 1.96


def recorded(run: RunFolder, limit: int) -> dict[str, list[Step]]:
    """Of all episodes of each router at most so many steps on which it asked the teacher, and as many of the others."""
    episodes: dict[str, list[Episode]] = {}
    for episode in run.evaluated():
        episodes.setdefault(episode.agent, []).append(episode)
    return {name: steps_of(own, run.settings.environment.horizon, limit) for name, own in episodes.items()}


def sessions() -> Iterator[Step]:
    """The mock sessions as the gateway plays them, without HTTP."""
    for seed in range(SESSIONS):
        shop, memory = Shop(seed), Memory()
        messages: list[dict[str, object]] = [{"role": "user", "content": f"Settle the orders as you are told. {shop.next}"}]
        while "next:" in shop.next:
            body = {"messages": messages, "tools": [{"type": "function", "function": TOOL}], "n": 4, "logprobs": True}
            context = context_of(parse(json.dumps({**body, "n": 1}).encode()), 50)
            drawn = complete(SLM, body)["choices"]
            candidates = tuple(Candidate(action_of(c["message"]), *logprobs_of(c, None), NO_USAGE) for c in drawn)
            yield context, candidates, memory, 0
            scores = asyncio.run(ToolCallVerifier([TOOL]).score(context, [c.action for c in candidates]))
            decision = Rules().decide(context, featurise(context, candidates, scores), memory, seed=0)
            memory = memory.after(decision)
            answers = drawn if decision.route == "continue" else complete(TEACHER, {**body, "n": 1})["choices"]
            message = answers[best(candidates, scores) if decision.route == "continue" else 0]["message"]
            call = message["tool_calls"][0]
            result = shop.answer(call["function"]["name"], call["function"]["arguments"])
            messages += [message, {"role": "tool", "tool_call_id": call["id"], "content": result}]


def asks(router: Router, verifier: Verifier, step: Step) -> bool:
    """Whether the teacher is asked at a step."""
    known = router.fitted_with if isinstance(router, RouterBase) else None
    return escalates(router, "full" if known is None else known.view, verifier, step)


def fitted(logs: Path, limit: int) -> tuple[Router, list[Step]]:
    """The router of the logs, and steps of the SLM on which it asks the teacher and on which it does not."""
    kind = detect(logs)
    episodes, _ = import_logs(logs, kind)
    advice = advise(episodes, Costs())
    assert advice.evidence is not None
    router = router_of(advice, fitted_with(advice.evidence.episodes, log_format(kind).verifier))
    parts: tuple[list[Step], list[Step]] = ([], [])
    for episode in advice.evidence.episodes:
        for step, context in zip(episode.steps, episode.contexts(50), strict=True):
            one: Step = (context, step.choice.candidates, Memory(), 0)
            parts[asks(router, ToolCallVerifier([]), one)].append(one)
    return router, [s for part in parts for s in part[:: -(-len(part) // limit) or 1]]


def share(changed: list[bool]) -> str:
    """Share with its Wilson interval."""
    if not (n := len(changed)):
        return "none"
    p, z = sum(changed) / n, 1.96
    centre, width = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5,
    )
    return f"{sum(changed):>4}/{n:<4} {p:6.1%} ({max(0, centre - width):.1%} to {min(1, centre + width):.1%})"


def table(name: str, router: Router, verifier: Verifier, steps: list[Step]) -> bool:
    """Print a router's lines; whether all meet the target."""
    plain, good = [asks(router, verifier, step) for step in steps], True
    print(f"\n{name}: {len(steps)} steps, {sum(plain)} of them asked the teacher")
    for kind, change in ATTACKS.items():
        now = [asks(router, verifier, (change(context), *rest)) for context, *rest in steps]
        bought = [after for before, after in zip(plain, now, strict=True) if not before]
        suppressed = [not after for before, after in zip(plain, now, strict=True) if before]
        short = sum(suppressed) > TARGET * len(suppressed)
        good = good and not short
        print(f"  {kind:<20} bought {share(bought):<34} suppressed {share(suppressed)}{'  SHORT' if short else ''}")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="folder of a finished run")
    parser.add_argument("--logs", type=Path, help="recorded sessions, in place of a run")
    parser.add_argument("--outside", choices=Outside.__args__, default="escalate")  # type: ignore[attr-defined]
    parser.add_argument("--routers", nargs="*", help="of the run; all by default")
    parser.add_argument("--steps", type=int, default=200, help="of each router with a call, and as many without")
    given = parser.parse_args()
    if given.logs:
        router, steps = fitted(given.logs, given.steps)
        table(f"reading ({given.logs})", router, ToolCallVerifier([]), steps)
        return
    run = RunFolder(given.run)
    verifier = verifier_named(run.settings.domain.verifier)
    results = {"rules": table("rules (mock sessions)", Rules(), ToolCallVerifier([TOOL]), list(sessions()))}
    for name, steps in recorded(run, given.steps).items():
        if name in (given.routers or run.operating_points()):
            router = replace(run.router(name), outside=given.outside)
            results[name] = table(name, router, verifier, steps)
    print(
        f"\nat most {TARGET:.0%} suppressed by any kind: "
        + ", ".join(f"{n} {'ok' if g else 'SHORT'}" for n, g in results.items())
    )


if __name__ == "__main__":
    main()
