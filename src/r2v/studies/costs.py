"""What sessions cost with and without a router: from the ledger's own sums, or from tokens and a file of prices.

What is not known is charged: a session that is handed over pays for the SLM's whole run beside the stronger model's.
Without prices the SLM counts as free and the stronger model by its tokens: the share saved is then an upper bound.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from r2v.clients.settings import PriceSettings
from r2v.core.errors import SettingsError
from r2v.core.types import Episode
from r2v.evaluation.curves import interval, resample_BT
from r2v.maths import Bools, Floats
from r2v.runtime.settings import read, validated

if TYPE_CHECKING:
    from r2v.studies.evidence import Evidence

MOST_NAMED = 20
"""Models that a line names."""
CHARACTERS = 4
"""Of a token, where no count is recorded."""
RESAMPLES = 500


def tokens_of(episode: Episode) -> Floats:
    """[input, output] tokens of a whole session, each step reading all before it; counted in characters / 4."""
    read, total_in, total_out = len(episode.goal), 0, 0
    for step in episode.steps:
        read += len(step.observation.text)
        total_in += read
        total_out += len(step.choice.action.text)
        read += len(step.choice.action.text)
    return np.array([total_in, total_out]) / CHARACTERS


def read_prices(path: Path) -> dict[str, PriceSettings]:
    """YAML or JSON: model -> USD per million tokens; `slm` and `teacher` stand for whatever models these are.

    Raises SettingsError in one line.
    """
    raw = read(path, "a file of prices holds e.g. `slm: {input: 0.5, output: 1.5}`")
    found = {}
    for model, price in raw.items():
        try:
            found[model] = validated(PriceSettings, price)
        except SettingsError as error:
            raise SettingsError(f"{path}: {model}: {error}") from None
    return found


def unknown_prices(prices: Mapping[str, PriceSettings], episodes: Sequence[Episode], path: Path) -> list[str]:
    """A line for each model with a price that is not in the logs: a misspelt name prices nothing.

    Args:
        prices: of `read_prices`; `slm` and `teacher` are known everywhere.
        episodes: of the logs; their models are those of sessions and of steps.
        path: the file of the prices.
    """
    models = {e.agent for e in episodes} | {step.choice.model for e in episodes for step in e.steps} - {"slm", "teacher"}
    return [
        f"{path}: the logs have no model {name!r}; they have {nearest_first(str(name), models)}; slm and teacher stand for "
        "whatever models these are"
        for name in prices
        if name not in models and name not in ("slm", "teacher")
    ]


def nearest_first(name: str, models: Iterable[str]) -> str:
    """The models as a line names them, the one that is spelt most like `name` first, at most `MOST_NAMED`."""

    def unlike(model: str) -> tuple[float, str]:
        return -difflib.SequenceMatcher(None, name.lower(), model.lower()).ratio(), model

    found = sorted(models, key=unlike)
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return ", ".join(found[:MOST_NAMED]) + more


@dataclass(frozen=True, eq=False)
class Costs:
    """Prices, and over how many days the sessions were recorded."""

    prices: Mapping[str, PriceSettings] = field(default_factory=dict)
    days: float | None = None

    def money(self, evidence: Evidence, escalated_U: Bools, seed: int) -> dict[str, Any]:
        """What routing would have saved against the stronger model alone, with 95 % intervals over groups."""
        priced, always_U, routed_U = self._of(evidence, escalated_U)
        if always_U is None or routed_U is None:
            return {"usd_saved_share": None, "priced": False, "unpriced": []}
        group_U = np.unique(evidence.unit_groups, return_inverse=True)[1]
        weight_BG = resample_BT(int(group_U.max()) + 1, RESAMPLES, seed)
        always_B, routed_B = (weight_BG @ np.bincount(group_U, cost_U) for cost_U in (always_U, routed_U))
        share_B = 1 - np.divide(routed_B, always_B, out=np.ones_like(routed_B), where=always_B > 0)
        facts: dict[str, Any] = {
            "priced": priced, "unpriced": [] if priced else self._unpriced(evidence),
            "usd_saved_share": float(share_B[0]), "usd_saved_share_ci95": interval(share_B),
        }  # fmt: skip
        if priced:
            facts |= {"usd_teacher_alone": float(always_U.sum()), "usd_routed": float(routed_U.sum())}
            if self.days:
                total_B = (always_B - routed_B) * (len(np.unique(group_U)) / self.days)
                facts |= {"days": self.days, "usd_a_day_teacher_alone": float(always_U.sum() / self.days),
                          "usd_a_day_saved": float(total_B[0]), "usd_a_day_saved_ci95": interval(total_B)}  # fmt: skip
        if (solved := evidence.solved(escalated_U)) is not None:
            facts["cost_per_solved"] = {
                "unit": "usd" if priced else "the stronger model's tokens", "router": _each(routed_U, solved[0]),
                "teacher alone": _each(always_U, solved[1]),
            }  # fmt: skip
        return facts

    def saved_share(self, evidence: Evidence, escalated_U: Bools) -> float | None:
        """Of what the stronger model alone would have cost."""
        _, always_U, routed_U = self._of(evidence, escalated_U)
        if always_U is None or routed_U is None or not always_U.sum():
            return None
        return float(1 - routed_U.sum() / always_U.sum())

    def _unpriced(self, evidence: Evidence) -> list[str]:
        """Models whose price is missing, where others have one."""
        if not self.prices:
            return []
        teacher = evidence.teacher or "teacher"
        known = {"teacher": [teacher], "slm": list(evidence.slms)}
        return [n for part, names in known.items() for n in names if n not in self.prices and part not in self.prices]

    def _of(self, evidence: Evidence, escalated_U: Bools) -> tuple[bool, Floats | None, Floats | None]:
        """(are these USD, cost of each unit by the stronger model alone, and as routed); None where no teacher is known."""
        if not evidence.knows_teacher:
            return False, None, None
        teacher = self.prices.get(evidence.teacher or "", self.prices.get("teacher"))
        known = [self.prices.get(name, self.prices.get("slm")) for name in evidence.slms]
        priced = teacher is not None and all(known)
        always_U = _usd(evidence.teacher_tokens_U2, teacher if priced else None)
        slm_U = np.zeros(len(always_U))
        if priced:
            prices = [_rates(price) for price in known if price is not None]
            slm_U = (evidence.slm_tokens_U2 * np.array(prices)[evidence.unit_models]).sum(axis=1)
        elif len(evidence.usd_U2) and not np.isnan(evidence.usd_U2).any():  # the ledger's own sums
            priced, (slm_U, always_U) = True, evidence.usd_U2.T
        return priced, always_U, slm_U + escalated_U * always_U


def _usd(tokens_U2: Floats, price: PriceSettings | None) -> Floats:
    return np.asarray(tokens_U2.sum(axis=1) if price is None else tokens_U2 @ _rates(price))


def _rates(price: PriceSettings) -> Floats:
    return np.array([price.input, price.output]) / 1e6


def _each(cost_U: Floats, solved_U: Floats) -> float | None:
    return float(cost_U.sum() / solved_U.sum()) if solved_U.sum() else None
