"""What was served, in numbers: each process counts, and the control plane shows the sum, to Prometheus and on the page."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from r2v.clients.base import Client
from r2v.core.types import Features
from r2v.gateway.body_memory import BodyMemory
from r2v.gateway.reading import LedgerReader
from r2v.gateway.reload import Reloads
from r2v.gateway.routing import Configured
from r2v.gateway.rows import Entry
from r2v.maths.calibration import brier, ece, reliability_bins
from r2v.messages.conversation import Json

if TYPE_CHECKING:
    from r2v.gateway.candidates import CandidateSource
    from r2v.gateway.shipping import Shipping

RECENT = 500
"""Steps that drift is averaged over."""
OUTCOMES = 2_000
"""Sessions with an outcome that calibration looks back on."""
AGAIN_S = 5.0
"""Calibration is computed again no sooner, however many outcomes come: it takes a tenth of a second on a large ledger."""
CALIBRATED_S = 60.0
"""After so long calibration is computed again, though no outcome came: verdicts count once their session is quiet."""
OVERHEAD_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
MODEL_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
Pair = tuple[str, str]


class Times(msgspec.Struct):
    """A histogram of seconds."""

    bounds: tuple[float, ...]
    counts: list[int] = []
    """Up to each bound, and above the last."""
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """(bound, how many up to it), as Prometheus wants them."""
        sums = np.cumsum(self.counts).tolist()
        return list(zip([*(str(bound) for bound in self.bounds), "+Inf"], sums, strict=True))


class Counts(msgspec.Struct):
    """What a process has counted since it started."""

    decisions: dict[Pair, int] = {}
    """(model that answered, code) -> steps."""
    usd: dict[str, float] = msgspec.field(default_factory=lambda: {"slm": 0.0, "teacher": 0.0})
    saved_usd: float = 0.0
    tokens: int = 0
    candidates: int = 0
    implicit: int = 0
    """Steps whose client named no session."""
    overhead: Times = msgspec.field(default_factory=lambda: Times(OVERHEAD_S))
    model: dict[str, Times] = {}
    """What steps waited for each model."""
    parsed: dict[str, int] = {}
    """Answers of each model whose tool calls were read in their text."""
    refusals: dict[str, int] = {}
    """Code -> steps that got no answer."""
    attempts: dict[Pair, int] = {}
    """(model, HTTP status or what went wrong) -> calls."""
    available: dict[str, bool] = {}
    """Whether each model is called."""
    body_bytes: int = 0
    """Of the requests that are being served."""
    refused_bodies: int = 0
    """That found no room beside them."""
    steps: int = 0
    """That drift was seen in."""
    router: str = ""
    """`Configured.identity` of the router whose features these are."""
    shift_F: list[float] = []
    """How far the features lie from where the router was fitted: their mean over the latest steps, the older the less, in
    standard deviations of the fitting data."""

    @property
    def arms(self) -> dict[str, int]:
        """Steps that each model answered."""
        found: dict[str, int] = {}
        for (source, _), count in self.decisions.items():
            found[source] = found.get(source, 0) + count
        return found


def sum_counts(all_counts: Sequence[tuple[bool, Counts]], router: str) -> Counts:
    """The sum of what several processes have counted.

    Args:
        all_counts: (whether the process runs, its counts). Only those that run hold bodies, and say whether a model is
            called, and only if none of them has given up on it.
        router: `Configured.identity` of the one in use: drift is that of its features alone.
    """
    found = Counts(router=router)
    shifts, weights = [], []
    for runs, counts in all_counts:
        for mine, theirs in (
            (found.decisions, counts.decisions),
            (found.attempts, counts.attempts),
            (found.usd, counts.usd),
            (found.parsed, counts.parsed),
            (found.refusals, counts.refusals),
        ):
            _add(mine, theirs)
        found.saved_usd += counts.saved_usd
        found.tokens += counts.tokens
        found.candidates += counts.candidates
        found.implicit += counts.implicit
        found.refused_bodies += counts.refused_bodies
        found.body_bytes += counts.body_bytes if runs else 0
        _add_times(found.overhead, counts.overhead)
        for name, times in counts.model.items():
            _add_times(found.model.setdefault(name, Times(times.bounds)), times)
        for name, available in counts.available.items() if runs else ():
            found.available[name] = available and found.available.get(name, True)
        if counts.shift_F and counts.router == router:
            found.steps += counts.steps
            shifts.append(counts.shift_F)
            weights.append(min(counts.steps, RECENT))
    if shifts:
        found.shift_F = np.average(np.array(shifts), axis=0, weights=weights).tolist()
    return found


def _add(mine: dict[Any, Any], theirs: Mapping[Any, Any]) -> None:
    for name, count in theirs.items():
        mine[name] = mine.get(name, 0) + count


def _add_times(mine: Times, theirs: Times) -> None:
    mine.counts = [a + b for a, b in zip(mine.counts, theirs.counts, strict=True)]
    mine.total += theirs.total


class Metrics:
    """Counts the steps of one process."""

    def __init__(self, router: Configured, upstreams: Sequence[Client]) -> None:
        self._router, self._upstreams, self._counts = router, upstreams, Counts(router=router.identity)
        self.room: BodyMemory | None = None

    def use(self, router: Configured, upstreams: Sequence[Client]) -> None:
        """Count on, with another router and other models: drift begins anew where the router is not the same."""
        if router.identity != self._router.identity:
            self._counts.router, self._counts.steps, self._counts.shift_F = router.identity, 0, []
        self._router, self._upstreams = router, upstreams

    def note(self, entry: Entry, router: Configured, called: Sequence[CandidateSource], arm: str) -> None:
        """Count a step.

        Args:
            entry: the step.
            router: which has decided on it.
            called: the models that it called.
            arm: the one that answered.
        """
        counts = self._counts
        _add(counts.decisions, {(arm, entry.code): 1})
        _add(counts.usd, {model.name: model.usd for model in called if model.stronger} | {"slm": entry.slm_usd})
        _add(counts.parsed, {model.name: model.parsed for model in called})
        counts.saved_usd += entry.saved_usd
        counts.tokens += entry.tokens
        counts.candidates += entry.candidates
        counts.implicit += "/auto-" in entry.session
        counts.overhead.add(max(0.0, entry.overhead_ms / 1000))
        for model in called:
            counts.model.setdefault(model.name, Times(MODEL_S)).add(model.seconds)
        if entry.step.choice.features is not None and router.identity == self._router.identity:
            self._drift(entry.step.choice.features)

    def note_refusal(self, code: str) -> None:
        """Count a step that got no answer."""
        _add(self._counts.refusals, {code: 1})

    def _drift(self, features: Features) -> None:
        if self._router.model is not None:
            counts, z_F = self._counts, self._router.model.standardised(features).tolist()
            counts.steps += 1
            n = min(counts.steps, RECENT)
            counts.shift_F = [shift + (z - shift) / n for shift, z in zip(counts.shift_F or z_F, z_F, strict=True)]

    def counts(self) -> Counts:
        """What was counted so far; it goes on changing."""
        if self.room is not None:
            self._counts.body_bytes, self._counts.refused_bodies = self.room.bytes, self.room.refused
        for upstream in self._upstreams:
            self._counts.available[upstream.name] = upstream.available
            attempts = upstream.endpoint.attempts
            self._counts.attempts.update({(upstream.name, code): count for code, count in attempts.items()})
        return self._counts


@dataclass(eq=False)
class _Scrape(Collector):
    families: Sequence[Metric]

    def collect(self) -> Iterator[Metric]:
        yield from self.families


class Overview:
    """What the control plane shows of the data plane. Labels are from closed lists."""

    def __init__(self, router: Configured, ledger: LedgerReader, shipping: Shipping | None = None) -> None:
        """`shipping`: where the ledger is shared."""
        self._router, self._ledger, self._shipping = router, ledger, shipping
        self._calibration: Json = {}
        self._calibrated: tuple[float | None, float] = (None, -np.inf)
        """When the last outcome came that is in the calibration, and when that was computed."""

    def _drift(self, counts: Counts) -> Json | None:
        """{"score": largest shift in standard deviations, "feature": whose, "steps": n}; None for a baseline or no steps."""
        if self._router.model is None or not counts.shift_F:
            return None
        worst = int(np.abs(counts.shift_F).argmax())
        return {"score": abs(counts.shift_F[worst]), "feature": self._router.model.names[worst], "steps": counts.steps}

    def calibration(self) -> Json:
        """Scores against outcomes, over the steps of sessions that the SLM played alone. Where the router's score is no
        probability there are only the counts. What came within the last seconds may not be in it yet.
        """
        now = time.monotonic()
        age = now - self._calibrated[1]
        if age < AGAIN_S:
            return self._calibration
        try:
            return self._calibrate(now, age)
        except OSError:  # the shared ledger is out of reach, which the page says
            self._calibrated = (self._calibrated[0], now)
            return self._calibration

    def _calibrate(self, now: float, age: float) -> Json:
        last = self._ledger.last_end()
        if last == self._calibrated[0] and age < CALIBRATED_S:
            return self._calibration
        calibrated = self._router.calibrated
        pairs, sessions = self._ledger.scores_and_failures(OUTCOMES, "risk" if calibrated else None)
        found: Json = {"sessions": sessions, "steps": len(pairs)}
        if pairs and calibrated:
            risk_N, failed_N = np.array(pairs).T
            found |= {
                "ece": ece(risk_N, failed_N),
                "brier": brier(risk_N, failed_N),
                "bins": [list(one) for one in reliability_bins(risk_N, failed_N)],
            }
        self._calibration, self._calibrated = found, (last, now)
        return found

    def prometheus(self, counts: Counts, reloads: Reloads) -> str:
        """The text that Prometheus scrapes, of what all processes have counted together."""
        registry = CollectorRegistry()
        registry.register(_Scrape((*self._families(counts), *_of_reloads(reloads))))
        return generate_latest(registry).decode()

    def _families(self, counts: Counts) -> Iterator[Metric]:
        for name, explained, value in (
            ("r2v_tokens", "Tokens of all calls, drafts included.", counts.tokens),
            ("r2v_candidates", "Candidates drawn from the SLM.", counts.candidates),
            ("r2v_implicit_sessions", "Steps whose client named no session.", counts.implicit),
            ("r2v_refused_bodies", "Requests without room beside those being served.", counts.refused_bodies),
        ):
            yield CounterMetricFamily(name, explained, value)
        labelled: tuple[tuple[str, str, list[str], dict[Any, Any]], ...] = (
            ("r2v_requests", "Steps by the model that answered.", ["arm"], counts.arms),
            ("r2v_decisions", "Steps by model and code.", ["arm", "reason"], counts.decisions),
            ("r2v_refusals", "Steps without an answer, by code.", ["reason"], counts.refusals),
            ("r2v_cost_usd", "USD paid for each model, drafts included.", ["model"], counts.usd),
            ("r2v_parsed_answers", "Answers whose tool calls were read in their text.", ["model"], counts.parsed),
            ("r2v_upstream_attempts", "HTTP calls by outcome.", ["model", "code"], counts.attempts),
        )
        for name, explained, labels, values in labelled:
            counter = CounterMetricFamily(name, explained, labels=labels)
            for key, value in sorted(values.items()):
                counter.add_metric([key] if isinstance(key, str) else list(key), value)
            yield counter
        yield HistogramMetricFamily(
            "r2v_overhead_seconds", "Time of a step without the models'.", counts.overhead.buckets, counts.overhead.total
        )
        waited = HistogramMetricFamily("r2v_model_seconds", "Time a step waited for a model.", labels=["model"])
        for name, times in sorted(counts.model.items()):
            waited.add_metric([name], times.buckets, times.total)
        yield waited
        if self._shipping is not None:
            waiting, seconds = self._shipping.waiting(), self._shipping.seconds()
            yield GaugeMetricFamily("r2v_unshipped_rows", "Of the journal, not in the shared ledger yet.", waiting)
            yield GaugeMetricFamily("r2v_unshipped_seconds", "Since all rows were in the shared ledger.", seconds)
        yield GaugeMetricFamily("r2v_body_bytes", "Of the requests that are being served.", counts.body_bytes)
        yield GaugeMetricFamily("r2v_saved_usd", "USD saved against the teacher alone; may be below 0.", counts.saved_usd)
        available = GaugeMetricFamily("r2v_upstream_available", "0 while a model is not called.", labels=["model"])
        for name, value in counts.available.items():
            available.add_metric([name], value)
        yield available
        if drift := self._drift(counts):
            yield GaugeMetricFamily("r2v_drift_score", "Largest mean shift of a feature.", drift["score"])
        if "ece" in (calibration := self.calibration()):
            yield GaugeMetricFamily("r2v_calibration_ece", "Expected calibration error.", calibration["ece"])
        valid = self._router.certificate is not None
        yield GaugeMetricFamily("r2v_certificate_valid", "Whether a certificate is configured.", valid)

    def stats(self, counts: Counts) -> Json:
        """What the page shows, of what all processes have counted together."""
        certificate = self._router.certificate
        steps = sum(counts.overhead.counts)
        return {
            "router": self._router.name,
            "threshold": self._router.threshold,
            "arms": {"slm": 0, "teacher": 0} | counts.arms,
            "usd": counts.usd,
            "saved_usd": counts.saved_usd,
            "candidates_per_step": counts.candidates / steps if steps else None,
            "overhead_ms": 1000 * counts.overhead.total / steps if steps else None,
            "drift": self._drift(counts),
            "calibration": self.calibration(),
            "certificate": None
            if certificate is None
            else {
                "claim": certificate.target.claim,
                "max_failure": certificate.target.max_failure,
                "cvar": certificate.target.alpha,
                "delta": certificate.target.delta,
                "tasks": certificate.tasks,
                "date": certificate.date,
            },
        }


def _of_reloads(reloads: Reloads) -> Iterator[Metric]:
    counter = CounterMetricFamily("r2v_reloads", "Times that the settings were read again.", labels=["outcome"])
    counter.add_metric(["done"], reloads.done)
    counter.add_metric(["refused"], reloads.refused)
    yield counter
    yield GaugeMetricFamily("r2v_reload_refused", "Whether the last reload was refused.", bool(reloads.problem))
    yield GaugeMetricFamily("r2v_settings_since_seconds", "When the settings in use were read, in Unix time.", reloads.since)
    if reloads.last is not None:
        yield GaugeMetricFamily("r2v_last_reload_seconds", "When the last reload was, done or refused.", reloads.last)
