"""What was served, in numbers: metrics for Prometheus, and from the same source the figures on the live page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from r2v.clients.base import Client
from r2v.core.types import Features
from r2v.gateway.ledger import Entry, Ledger
from r2v.gateway.routing import Configured
from r2v.maths.calibration import brier, ece, reliability_bins
from r2v.messages.conversation import Json

RECENT = 500
"""Steps that drift is averaged over."""
OUTCOMES = 2_000
"""Sessions with an outcome that calibration looks back on."""
OVERHEAD_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
MODEL_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics(Collector):
    """Metrics of one gateway, in a registry of its own. Labels are from closed lists."""

    def __init__(self, router: Configured, ledger: Ledger, upstreams: Sequence[Client]) -> None:
        self._router, self._ledger, self._upstreams = router, ledger, upstreams
        self._shift_F, self._seen = np.zeros(0), 0
        self._calibration: Json | None = None
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("r2v_requests", "Steps by the model that answered.", ["arm"], registry=registry)
        self._decisions = Counter("r2v_decisions", "Steps by model and code.", ["arm", "reason"], registry=registry)
        self._usd = Counter("r2v_cost_usd", "USD paid for each model, drafts included.", ["model"], registry=registry)
        self._tokens = Counter("r2v_tokens", "Tokens of all calls, drafts included.", registry=registry)
        self._candidates = Counter("r2v_candidates", "Candidates drawn from the SLM.", registry=registry)
        self._implicit = Counter("r2v_implicit_sessions", "Steps whose client named no session.", registry=registry)
        self._saved = Gauge("r2v_saved_usd", "USD saved against the teacher alone; may be below 0.", registry=registry)
        self._overhead = Histogram(
            "r2v_overhead_seconds", "Time of a step without the models'.", buckets=OVERHEAD_S, registry=registry
        )
        self._model_s = Histogram(
            "r2v_model_seconds", "Time a step waited for a model.", ["model"], buckets=MODEL_S, registry=registry
        )
        registry.register(self)

    def note(self, entry: Entry, model_s: Mapping[str, float]) -> None:
        """Count a step; `model_s`: seconds that it waited for each model it called."""
        self._requests.labels(entry.source).inc()
        self._decisions.labels(entry.source, entry.code).inc()
        self._usd.labels("small").inc(entry.slm_usd)
        self._usd.labels("teacher").inc(entry.teacher_usd)
        self._saved.inc(entry.saved_usd)
        self._tokens.inc(entry.tokens)
        self._candidates.inc(entry.candidates)
        self._overhead.observe(max(0.0, entry.overhead_ms / 1000))
        for model, seconds in model_s.items():
            self._model_s.labels(model).observe(seconds)
        if entry.session.startswith("auto-"):
            self._implicit.inc()
        if entry.step.choice.features is not None:
            self._drift(entry.step.choice.features)

    def outcome(self) -> None:
        """An outcome arrived: what is known of calibration is out of date."""
        self._calibration = None

    def _drift(self, features: Features) -> None:
        """How far the features lie from where the router was fitted: their mean over the latest steps, the older the less,
        in standard deviations of the fitting data.
        """
        if self._router.model is not None:
            z_F = self._router.model.standardised(features)
            self._seen += 1
            self._shift_F = z_F if self._seen == 1 else self._shift_F + (z_F - self._shift_F) / min(self._seen, RECENT)

    def drift(self) -> Json | None:
        """{"score": largest shift in standard deviations, "feature": whose, "steps": n}; None for a baseline or no steps."""
        if self._router.model is None or not self._seen:
            return None
        worst = int(np.abs(self._shift_F).argmax())
        name, score = self._router.model.names[worst], abs(float(self._shift_F[worst]))
        return {"score": score, "feature": name, "steps": self._seen}

    def calibration(self) -> Json:
        """Scores against outcomes, over the steps of sessions that the SLM played alone. Where the router's score is no
        probability there are only the counts.
        """
        if self._calibration is None:
            calibrated = self._router.calibrated
            pairs, sessions = self._ledger.scores_and_failures(OUTCOMES, "risk" if calibrated else None)
            self._calibration = {"sessions": sessions, "steps": len(pairs)}
            if pairs and calibrated:
                risk_N, failed_N = np.array(pairs).T
                self._calibration |= {
                    "ece": ece(risk_N, failed_N),
                    "brier": brier(risk_N, failed_N),
                    "bins": [list(one) for one in reliability_bins(risk_N, failed_N)],
                }
        return self._calibration

    def collect(self) -> Iterator[Metric]:
        """Metrics computed at the time of collection (`prometheus_client.registry.Collector`)."""
        attempts = CounterMetricFamily("r2v_upstream_attempts", "HTTP calls by outcome.", labels=["model", "code"])
        available = GaugeMetricFamily("r2v_upstream_available", "0 while a model is not called.", labels=["model"])
        for upstream in self._upstreams:
            available.add_metric([upstream.name], upstream.available)
            for code, count in sorted(upstream.attempts.items()):
                attempts.add_metric([upstream.name, code], count)
        yield attempts
        yield available
        if drift := self.drift():
            yield GaugeMetricFamily("r2v_drift_score", "Largest mean shift of a feature.", drift["score"])
        if "ece" in (calibration := self.calibration()):
            yield GaugeMetricFamily("r2v_calibration_ece", "Expected calibration error.", calibration["ece"])
        valid = self._router.certificate is not None
        yield GaugeMetricFamily("r2v_certificate_valid", "Whether a certificate is configured.", valid)

    def describe(self) -> list[Metric]:
        """Nothing: registering must not compute a calibration."""
        return []

    def prometheus(self) -> str:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry).decode()

    def stats(self) -> Json:
        samples = [sample for metric in self._registry.collect() for sample in metric.samples]
        value = {(sample.name, *sample.labels.values()): sample.value for sample in samples}
        steps = value["r2v_overhead_seconds_count",]
        certificate = self._router.certificate
        return {
            "router": self._router.name,
            "threshold": self._router.threshold,
            "arms": {source: int(value.get(("r2v_requests_total", source), 0)) for source in ("slm", "teacher")},
            "usd": {model: value.get(("r2v_cost_usd_total", model), 0.0) for model in ("small", "teacher")},
            "saved_usd": value["r2v_saved_usd",],
            "candidates_per_step": value["r2v_candidates_total",] / steps if steps else None,
            "overhead_ms": 1000 * value["r2v_overhead_seconds_sum",] / steps if steps else None,
            "drift": self.drift(),
            "calibration": self.calibration(),
            "certificate": None
            if certificate is None
            else {
                "max_failure": certificate.target.max_failure,
                "delta": certificate.target.delta,
                "cvar": certificate.target.alpha,
                "tasks": certificate.tasks,
                "date": certificate.date,
            },
        }
