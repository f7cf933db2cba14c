"""The pipeline on one page. Each stage reads files and writes files; the order here is the order of the run.

Stage functions hold no method: settings -> read -> call -> write.
"""

from __future__ import annotations

from r2v.pipeline.runner import Stage
from r2v.pipeline.stages.clone import clone
from r2v.pipeline.stages.collect import collect
from r2v.pipeline.stages.evaluate import evaluate
from r2v.pipeline.stages.fit import fit
from r2v.pipeline.stages.perturb import perturb
from r2v.pipeline.stages.prefer import prefer
from r2v.pipeline.stages.propose import propose
from r2v.pipeline.stages.report import report
from r2v.pipeline.stages.rollout import rollout

_PLAY = ("environment", "perturbations", "teacher")
_ALL = (*_PLAY, "pool", "slm", "routers", "verifier")

STAGES: tuple[Stage, ...] = (
    Stage("collect", "the teacher played the policy tasks", (), (*_PLAY, "tasks", "collect"), collect,
          untrained="tasks made and split; the teacher played none, for the SLM is a chat endpoint"),
    Stage("perturb", "the teacher played them under perturbations", ("collect",), (*_PLAY, "collect"), perturb, trains=True),
    Stage("clone", "the SLM learned from the successful episodes", ("collect", "perturb"), ("slm", "clone"), clone,
          trains=True),
    Stage("propose", "the SLM's scored candidates became preference pairs", ("collect", "clone"),
          (*_PLAY, "slm", "verifier", "propose"), propose, trains=True, prefers=True),
    Stage("prefer", "the SLM was chosen: it played the validation tasks", ("collect", "perturb", "clone", "propose"),
          (*_PLAY, "slm", "verifier", "prefer"), prefer, trains=True),
    Stage("rollout", "the SLM played the router tasks alone", ("collect", "clone", "prefer"), (*_ALL, "help"), rollout),
    Stage("fit", "routers fitted and calibrated, thresholds chosen on validation", ("collect", "clone", "prefer", "rollout"),
          (*_ALL, "help", "router", "evaluate", "prices"), fit),
    Stage("evaluate", "every router played the test tasks", ("collect", "clone", "prefer", "fit"),
          (*_ALL, "router", "evaluate", "prices"), evaluate),
    Stage("report", "tables, figures and report.html", ("evaluate",), (), report),
)  # fmt: skip
