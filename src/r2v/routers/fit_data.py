"""What routers are fitted on, and the models that several of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from r2v.core.errors import StageError
from r2v.core.features import EXTENDED, OWN, PAPER
from r2v.core.mlp import RiskMLP
from r2v.core.types import Episode, Member
from r2v.routers.base import FittedWith, RouterBase, own_settings

if TYPE_CHECKING:
    from r2v.core.reading import Reader
    from r2v.evaluation.branches import Branch
    from r2v.learning.labels import Rows
    from r2v.learning.settings import RouterSettings
    from r2v.perturbations import GroupPart


@dataclass(frozen=True, eq=False)
class FitData:
    """What routers are fitted on: the SLM's own episodes, and what was tried on them.

    Models that several routers need (`risk`, `disagreement`) are fitted once.
    """

    recorded: Sequence[Episode]
    """The SLM alone on the router tasks; broken episodes have no outcome."""
    validation: Sequence[Episode]
    """The same on the validation tasks: for early stopping and calibration."""
    fitted_with: FittedWith
    settings: RouterSettings
    seed: int
    groups: Sequence[GroupPart] = ("seed",)
    """What a group of CVaR is."""
    budgets: Sequence[float] = ()
    """Teacher calls an episode, for routers that meet budgets."""
    max_calls: int | None = None
    """Those that an episode may have at most."""
    differs: Sequence[Sequence[bool]] = ()
    """Of each recorded episode's steps: would the teacher act otherwise? (need: answers)"""
    differs_validation: Sequence[Sequence[bool]] = ()
    branches: Sequence[Branch] = ()
    explored: Sequence[Episode] = ()
    redrawn: Sequence[Episode] = ()
    differs_redrawn: Sequence[Sequence[bool]] = ()
    pool: Sequence[tuple[Member, FitData]] = ()
    """Each further model, the cheapest first, with the same data where it takes the place of the teacher. (need: pool)"""
    unlike_teacher: Sequence[Sequence[bool]] = ()
    """Of such data: would that model do something else than the teacher at each recorded step?"""
    unlike_teacher_validation: Sequence[Sequence[bool]] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Router name -> its own settings, as they stand in the settings file."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    progress: Callable[..., None] = lambda *_: None
    quality: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """ECE, Brier score and AUROC (None without both classes) on validation steps, of each probability that was fitted."""

    def settings_of(self, router: type[RouterBase]) -> Any:
        """The own settings of a router, as its `Settings`."""
        return own_settings(router, self.options.get(router.name, {}))

    @property
    def names(self) -> tuple[str, ...]:
        """The features that models are fitted on."""
        return OWN if self.settings.features == "own" else EXTENDED

    @property
    def k(self) -> int:
        """Candidates a step."""
        assert self.fitted_with.k is not None
        return self.fitted_with.k

    @property
    def horizon(self) -> int:
        """Steps of an episode."""
        assert self.fitted_with.horizon is not None
        return self.fitted_with.horizon

    @cached_property
    def rollouts(self) -> list[Episode]:
        """The recorded episodes that have an outcome."""
        return [episode for episode in self.recorded if episode.success is not None]

    @cached_property
    def held(self) -> list[Episode]:
        return [episode for episode in self.validation if episode.success is not None]

    @cached_property
    def risk(self) -> RiskMLP:
        """P(the SLM fails the episode), calibrated."""
        from r2v.learning.labels import failure_rows

        names = PAPER if self.settings.features == "paper" else self.names
        return self.probability("r2v", failure_rows(self.rollouts, names), failure_rows(self.held, names), names)

    @cached_property
    def reader(self) -> Reader:
        """P(the SLM fails the episode), calibrated, by a model that reads."""
        steps = [[t for t, s in enumerate(e.steps) if s.choice.features is not None] for e in self.rollouts]
        failed = [float(not e.success) for e, read in zip(self.rollouts, steps, strict=True) for _ in read]
        return self.reading(self.rollouts, steps, failed, "the risk that going on with the SLM will fail the episode")

    @cached_property
    def disagreement(self) -> RiskMLP:
        """P(the teacher would act otherwise), calibrated. Raises StageError without the teacher's answers."""
        from r2v.learning.labels import labelled_rows

        if not self.differs:
            raise StageError("this fit needs the teacher's answers on the recorded steps")
        train = labelled_rows(self.recorded, self.differs, self.names)
        held = labelled_rows(self.validation, self.differs_validation, self.names)
        estimates = "the chance that the teacher would act differently"
        return self.probability("cascade", train, held, self.names, estimates=estimates)

    def probability(
        self,
        name: str,
        train: Rows,
        held: Rows,
        names: tuple[str, ...],
        *,
        objective: Literal["decoupled", "paper"] = "decoupled",
        estimates: str = "the risk that going on with the SLM will fail the episode",
    ) -> RiskMLP:
        """Fit a calibrated probability, and note under `name` how good it is on the held-out rows."""
        from r2v.learning.router import fit_mlp
        from r2v.maths.calibration import brier, ece
        from r2v.maths.stats import auroc_or_none

        facts = {**self.facts, "seed": self.seed, "estimates": estimates}
        model = fit_mlp(train, held, names, self.settings, objective, seed=self.seed, progress=self.progress, facts=facts)
        p_N = model.risk(held.x_NF, held.present_NF)
        self.quality[name] = {
            "ece": ece(p_N, held.y_N),
            "brier": brier(p_N, held.y_N),
            "auroc": auroc_or_none(p_N, held.y_N),
        }
        return model

    def reading(
        self, episodes: Sequence[Episode], steps: Sequence[Sequence[int]], y: Sequence[float], estimates: str
    ) -> Reader:
        """Fit a probability that reads, calibrated on tasks left out.

        Args:
            episodes: whose steps are read.
            steps: of each episode, the numbers of these; all must have features.
            y: of each step 1 or 0, or a share between them.
            estimates: what the probability is of.

        Raises:
            ValueError: all labels are equal.
        """
        from r2v.core.groups import folds
        from r2v.learning.reading import calibrated, cross_fitted, fit_reader, read_rows

        tasks = {task: i for i, task in enumerate(dict.fromkeys(episode.task.id for episode in episodes))}
        rows = read_rows(episodes, np.array([tasks[episode.task.id] for episode in episodes]), steps, self.horizon)
        y_N = np.array(y, dtype=float)
        p_N, _ = cross_fitted(rows, y_N, folds(rows.group_N, 5, self.seed), seed=self.seed)
        facts = {**self.facts, "seed": self.seed, "estimates": estimates}
        reader = fit_reader(rows, y_N, np.ones(len(rows), dtype=bool), seed=self.seed, facts=facts)
        return calibrated(reader, p_N, y_N)
