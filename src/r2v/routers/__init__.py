"""Routers: one file each. `BUILT_IN` lists those that come with r2v; see `r2v.routers.base` for how to write one."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from r2v.core.agent import warn_if_unlike
from r2v.core.arrays import from_file
from r2v.core.errors import ArtifactError, SettingsError
from r2v.core.features import FEATURES, check_candidates, check_context, check_scores, featurise, proposing
from r2v.core.mlp import RiskMLP
from r2v.core.protocols import Router
from r2v.core.types import Action, Candidate, Context, Decision, Features, Memory
from r2v.core.untrusted import ROUTER_BYTES, read_json
from r2v.routers.base import FORMAT, FittedWith, InnerRouter, RouterBase
from r2v.runtime.plugins import installed, load

BUILT_IN = {
    "random": "r2v.routers.random:Random",
    "entropy": "r2v.routers.entropy:Entropy",
    "heuristic": "r2v.routers.heuristic:Heuristic",
    "verifier": "r2v.routers.verifier:VerifierRouter",
    "rules": "r2v.routers.rules:Rules",
    "r2v": "r2v.routers.r2v:R2V",
    "r2v_paper": "r2v.routers.r2v_paper:R2VPaper",
    "benefit": "r2v.routers.benefit:Benefit",
    "helper": "r2v.routers.helper:Helper",
    "query": "r2v.routers.query:Query",
    "cascade": "r2v.routers.cascade:Cascade",
    "cascade_routing": "r2v.routers.cascade_routing:CascadeRouting",
    "judge_latch": "r2v.routers.judge_latch:JudgeLatch",
    "conformal": "r2v.routers.conformal:Conformal",
    "bandit": "r2v.routers.bandit:Bandit",
    "pool_benefit": "r2v.routers.pool:PoolBenefit",
    "pool_bandit": "r2v.routers.pool:PoolBandit",
    "pool_cascade_routing": "r2v.routers.pool:PoolCascadeRouting",
    "restart": "r2v.routers.restart:Restart",
    "reading": "r2v.routers.reading:Reading",
    "recorded": "r2v.routers.recorded:Recorded",
}
"""In the order of tables and figures."""
RIVALS = {
    "reading_benefit": "r2v.routers.reading_benefit:ReadingBenefit",
    "pool_reading_benefit": "r2v.routers.pool:PoolReadingBenefit",
    "switchyard_stage": "r2v.routers.rivals.switchyard_stage:SwitchyardStage",
    "litellm_stall": "r2v.routers.rivals.litellm_stall:LiteLLMStall",
    "vllm_sr_session": "r2v.routers.rivals.vllm_sr_session:VLLMSRSession",
    "lemonade_stall": "r2v.routers.rivals.lemonade_stall:LemonadeStall",
    "plano_price": "r2v.routers.rivals.plano_price:PlanoPrice",
    "advisor": "r2v.routers.rivals.advisor:Advisor",
    "frugalgpt": "r2v.routers.rivals.frugalgpt:FrugalGPT",
}
"""Routers that only `r2v bench` plays: rules of other systems, and those of ours that they are compared with there."""
SHIPPED = {"recorded": Path(__file__).parent / "default"}
"""Routers that come fitted, by name: their folders."""
INTERVENTION = "r2v.routers.interventions:Intervention"
"""What an ablation plays: it has no short name."""
OWN = "R2V_OWN_ROUTERS"
"""Environment variable with the routers of one's own that folders may name: `package.module:Class`, comma separated."""


def router_class(name: str) -> type[RouterBase]:
    """The router of that name: built in, of an installed package, or `package.module:Class`. Raises SettingsError."""
    found = load("routers", name, {**BUILT_IN, **RIVALS})
    if not (isinstance(found, type) and issubclass(found, RouterBase)):
        raise SettingsError(f"{name} is not a router: it must be a class derived from r2v.routers.base.RouterBase")
    return found


def needs_fit(cls: type[RouterBase]) -> bool:
    """Whether a router cannot be made from nothing."""
    return any(one.init and one.default is MISSING and one.default_factory is MISSING for one in fields(cls))


def without_fit() -> list[str]:
    """Names of the routers that decide without a run: those that come fitted, and the rules that have a threshold."""
    rules = [name for name in BUILT_IN if not needs_fit(cls := router_class(name)) and cls().threshold is not None]
    return [*SHIPPED, *(name for name in rules if name not in SHIPPED)]


def load_router(folder: Path | str) -> RouterBase:
    """The router in a folder, at its operating point; it decides as it did where it was fitted.

    Args:
        folder: a router folder, or the name of a router that comes fitted (`recorded`).

    Raises:
        ArtifactError: the folder is incomplete, damaged or of another version.
        SettingsError: it names code that is neither built in, nor installed, nor imported, nor in `$R2V_OWN_ROUTERS`.
    """
    folder = Path(SHIPPED.get(str(folder), folder))
    path = folder / "router.json"
    try:
        raw = read_json(path, ROUTER_BYTES, within=folder)
        arrays = from_file(folder / "weights.safetensors")
        if raw["format"] == 1:
            return _of_format_1(raw, arrays, folder)
        if raw["format"] != FORMAT:
            raise ArtifactError(f"{path} has format {raw['format']}, this r2v reads {FORMAT}; fit the router again")
        cls = _class_of(raw["kind"], path)
        state = {key: value for key, value in raw.items() if key not in ("format", "kind")}

        def held(kind: type, value: Any) -> Any:
            """An array, or a router within this one."""
            if kind is not InnerRouter:
                return arrays[value]
            inner = {key: field for key, field in value.items() if key != "kind"}
            return InnerRouter(msgspec.convert(inner, _class_of(value["kind"], path), dec_hook=held))

        router = msgspec.convert(state, cls, dec_hook=held)
        _decides(router)
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist; {_instead(folder)}") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, ArithmeticError) as error:
        raise ArtifactError(f"{path} is corrupt ({error}); fit the router again") from None
    return router


def _instead(folder: Path) -> str:
    """What to load in the place of something that is no router folder."""
    if (name := str(folder)) in BUILT_IN:
        cls = router_class(name)
        if not needs_fit(cls) and cls().threshold is not None:
            return f"{name} is a rule without a folder: {cls.__module__}.{cls.__qualname__}()"
        return f"router {name} has to be fitted: load its folder, RUN/7-fit/{name} (of `r2v run`)"
    fitted = sorted(path.parent.name for path in folder.glob("7-fit/*/router.json"))
    if fitted:
        one = folder / "7-fit" / ("r2v" if "r2v" in fitted else fitted[0])
        return f"{folder} is a run: load {one} (fitted there: {', '.join(fitted)})"
    return f"is {folder} a router folder?"


def _class_of(kind: str, path: Path) -> type[RouterBase]:
    """The class that a folder names; a folder must not make r2v import code of its choice. Raises SettingsError."""
    module, _, name = kind.partition(":")
    known = (*BUILT_IN.values(), *RIVALS.values(), INTERVENTION)
    own = (*installed("routers").values(), *os.environ.get(OWN, "").split(","))
    imported = hasattr(sys.modules.get(module), name)
    if not (kind in known or kind in own or imported):
        raise SettingsError(
            f"{path} names code that does not come with r2v ({kind}); if you trust it, set {OWN}={kind} in the environment"
        )
    return router_class(kind)


def _decides(router: RouterBase) -> None:
    """Try a router whose threshold is known on one step: what breaks there would break on every step."""
    if router.threshold is not None:
        context = Context("a goal", ("what is seen",), (), 50, Action("an action"))
        with np.errstate(all="ignore"):
            decision = router.decide(context, Features((0.0,) * len(FEATURES), (True,) * len(FEATURES)), Memory(), seed=0)
        if decision.score is not None and not math.isfinite(decision.score):
            raise ValueError(f"its score of a step is {decision.score}")


def _of_format_1(raw: Mapping[str, Any], arrays: Mapping[str, Any], folder: Path) -> RouterBase:
    """A risk that r2v 0.1 fitted. What it fitted as one part of a router cannot decide alone."""
    facts = raw["facts"]
    if "objective" not in facts or facts.get("estimates"):
        raise ArtifactError(f"{folder} is one part of a router of r2v 0.1; make its run again: `r2v run SETTINGS --out RUN`")
    layers = [[arrays[f"w{i}"], arrays[f"b{i}"]] for i in range(len(raw["layers"]))]
    model = {"names": raw["features"], "mean_F": arrays["mean"], "std_F": arrays["std"], "layers": layers,
             "calibration": raw["calibration"], "facts": facts}  # fmt: skip
    beside = folder.parent / "thresholds.json"
    conditions = read_json(beside, ROUTER_BYTES).get("fitted_with") if beside.exists() else None
    if conditions is None and "verifier" in facts:
        conditions = {"k": 1, "horizon": 50, "verifier": facts["verifier"]}  # those of imported logs
    return router_class("r2v")(
        name=folder.resolve().name,
        threshold=raw["threshold"],
        fitted_with=None if conditions is None else msgspec.convert(conditions, FittedWith),
        risk=msgspec.convert(model, RiskMLP, dec_hook=lambda kind, value: value),  # type: ignore[call-arg]
    )


def decide(
    router: Router,
    context: Context,
    candidates: Sequence[Candidate],
    scores: Sequence[float],
    *,
    memory: Memory | None = None,
    seed: int = 0,
) -> Decision:
    """What a router decides about one step of your own agent: you draw, score and act, r2v decides.

    Args:
        router: any router, e.g. from `load_router`.
        context: the goal, the observations so far and the actions between them.
        candidates: the SLM's proposals, K of them as where the router was fitted.
        scores: the verifier's score of each, in [0, 1].
        memory: what was decided at earlier steps; keep it up with `memory.after(decision)`.
        seed: of this step; the same one gives the same decision.

    Returns:
        The decision. Its `route` says whether a stronger model acts, and its `model` which one would.

    Raises:
        ValueError: the context, a log-probability or a score cannot be right, or there is no candidate.
    """
    check_context(context)
    check_candidates(candidates)
    check_scores(scores, len(candidates))
    memory = memory or Memory()
    drawn = {} if memory.retries else {"k": len(candidates)}  # a retry comes with all that was drawn before
    warn_if_unlike(router, stacklevel=2, horizon=context.horizon, **drawn)
    known = proposing(context, candidates, scores)
    return router.decide(known, featurise(context, candidates, scores), memory, seed=seed)
