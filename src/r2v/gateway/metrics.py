"""What was served, in numbers: counters for Prometheus, and what the live page says above its sessions."""

from __future__ import annotations

import numpy as np

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


class Meters:
    def __init__(self, router: Configured, ledger: Ledger) -> None:
        self._router, self._ledger = router, ledger
        self._counts: dict[tuple[str, str], float] = {}
        self._shift_F, self._seen = np.zeros(0), 0
        self._calibration: Json | None = None

    def note(self, entry: Entry) -> None:
        self.add("r2v_requests_total", f'arm="{entry.arm}"', 1)
        self.add("r2v_decisions_total", f'arm="{entry.arm}",reason="{entry.reason}"', 1)
        self.add("r2v_cost_usd_total", 'model="small"', entry.slm_usd)
        self.add("r2v_cost_usd_total", 'model="teacher"', entry.teacher_usd)
        self.add("r2v_saved_usd", "", entry.saved_usd)
        self.add("r2v_tokens_total", "", entry.tokens)
        self.add("r2v_candidates_total", "", entry.candidates)
        self.add("r2v_overhead_seconds_sum", "", entry.overhead_ms / 1000)
        self.add("r2v_overhead_seconds_count", "", 1)
        if entry.session.startswith("auto-"):
            self.add("r2v_implicit_sessions_total", "", 1)
        if entry.step.choice.features is not None:
            self._drift(entry.step.choice.features)

    def add(self, name: str, labels: str, value: float) -> None:
        self._counts[name, labels] = self._counts.get((name, labels), 0.0) + value

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
        """Risks against outcomes, over the steps of sessions that the small model played alone: only there is it known how
        going on ended. A baseline's score is no probability: then only the counts are told.
        """
        if self._calibration is None:
            pairs, sessions = self._ledger.told_apart(OUTCOMES)
            self._calibration = {"sessions": sessions, "steps": len(pairs)}
            if pairs and self._router.calibrated:
                risk_N, failed_N = np.array(pairs).T
                self._calibration |= {
                    "ece": ece(risk_N, failed_N),
                    "brier": brier(risk_N, failed_N),
                    "bins": [list(one) for one in reliability_bins(risk_N, failed_N)],
                }
        return self._calibration

    def prometheus(self, upstreams: tuple[Client, ...]) -> str:
        """Prometheus text. Labels are from closed lists."""
        lines = [f"{name}{{{labels}}} {value:.10g}" if labels else f"{name} {value:.10g}" for (name, labels), value in
                 sorted(self._counts.items())]  # fmt: skip
        for upstream in upstreams:
            lines += [
                f'r2v_upstream_attempts_total{{model="{upstream.name}",code="{code}"}} {count}'
                for code, count in sorted(upstream.attempts.items())
            ]
            lines.append(f'r2v_upstream_available{{model="{upstream.name}"}} {int(upstream.available)}')
        if drift := self.drift():
            lines.append(f"r2v_drift_score {drift['score']:.6g}")
        if "ece" in (calibration := self.calibration()):
            lines.append(f"r2v_calibration_ece {calibration['ece']:.6g}")
        lines.append(f"r2v_certificate_valid {int(self._router.certificate is not None)}")
        return "\n".join(lines) + "\n"

    def stats(self) -> Json:
        got = self._counts.get
        steps = got(("r2v_overhead_seconds_count", ""), 0)
        certificate = self._router.certificate
        return {
            "router": self._router.name,
            "threshold": self._router.threshold,
            "arms": {arm: int(got(("r2v_requests_total", f'arm="{arm}"'), 0)) for arm in ("slm", "teacher")},
            "usd": {m: got(("r2v_cost_usd_total", f'model="{m}"'), 0.0) for m in ("small", "teacher")},
            "saved_usd": got(("r2v_saved_usd", ""), 0.0),
            "candidates_per_step": got(("r2v_candidates_total", ""), 0) / steps if steps else None,
            "overhead_ms": 1000 * got(("r2v_overhead_seconds_sum", ""), 0.0) / steps if steps else None,
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
