"""All settings of a run: one YAML file, `version: 1`. Everything has a default but the version.

version: 1
environment: {kind: household, receptacles: [6, 9]}
perturbations: {strength: 1.5}
slm: {model: {hidden_size: 64}}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from r2v.clients.chat import ChatSettings
from r2v.core.features import View
from r2v.domains.household.games import FAMILIES as TASK_FAMILIES
from r2v.learning.settings import CloneSettings, ModelSettings, PreferSettings, RouterSettings
from r2v.perturbations import FAMILIES as PERTURBATION_FAMILIES
from r2v.runtime.settings import Settings

RouterName = Literal[
    "random", "entropy", "heuristic", "verifier", "r2v", "r2v_paper",
    "benefit", "helper", "query", "cascade", "cascade_routing", "judge_latch", "conformal", "bandit", "restart",
]  # fmt: skip
Fraction = Annotated[float, Field(ge=0, le=1)]
Range = tuple[PositiveInt, PositiveInt]


class EnvironmentSettings(Settings):
    """The household: its generated tasks, or recorded games."""

    kind: Literal["household"] = "household"
    horizon: PositiveInt = 40
    """Steps after which an episode counts as failed."""
    families: tuple[str, ...] = TASK_FAMILIES
    """Task families."""
    house: Literal["small", "full"] = "full"
    """Object types of generated rooms: 24 or 48."""
    receptacles: Range = (6, 9)
    """Fewest and most receptacles in a generated room."""
    objects: Range = (8, 14)
    """Fewest and most objects in a generated room."""
    adapter: Literal["move", "put"] = "move"
    """`move O to R` as ALFWorld data since 0.4.0, or `put O in/on R` as before."""
    data: str | None = None
    """Folder of real ALFWorld games to use instead of generated ones, e.g. $ALFWORLD_DATA/json_2.1.1/train."""


class HumanEvalSettings(Settings):
    """Python functions, run in the sandbox. There is no scripted expert: the teacher is a chat endpoint."""

    kind: Literal["humaneval"]
    horizon: PositiveInt = 8
    """Steps after which an episode counts as failed."""
    problems: str | None = None
    """HumanEval or HumanEval+ file; else $HUMANEVAL_OVERRIDE_PATH, else the ten problems that come with r2v."""


class TerminalSettings(Settings):
    """Small tasks in a shell, run in the sandbox. There is no scripted expert: the teacher is a chat endpoint."""

    kind: Literal["terminal"]
    horizon: PositiveInt = 25
    """Commands after which an episode counts as failed."""


def _kind(value: Any) -> str:
    """The environment that a settings group is of; `kind: household` may be left out."""
    return str(value.get("kind", "household") if isinstance(value, dict) else value.kind)


AnyEnvironment = Annotated[
    Annotated[EnvironmentSettings, Tag("household")]
    | Annotated[HumanEvalSettings, Tag("humaneval")]
    | Annotated[TerminalSettings, Tag("terminal")],
    Discriminator(_kind),
]


class TaskSettings(Settings):
    """How many tasks each split gets. Splits are disjoint and stratified by family."""

    policy: NonNegativeInt = 2000
    """For training the SLM; 0 where nothing is trained."""
    router: PositiveInt = 300
    """For the rollouts that the router is fitted on; the SLM was not trained on them."""
    validation: PositiveInt = 60
    """For every choice: which SLM, calibration, thresholds."""
    test: PositiveInt = 120
    """For reporting only."""


Seeds = Annotated[tuple[PositiveInt, ...], Field(min_length=2)]
"""With one perturbation seed alone CVaR over them would be the mean."""


class PerturbationSettings(Settings):
    families: tuple[str, ...] = PERTURBATION_FAMILIES
    strength: Annotated[float, Field(ge=0)] = 1.0
    """Factor on every operator's probability; 0 = clean."""
    collect: tuple[PositiveInt, ...] = (1, 2, 3)
    """Perturbation seeds z of the teacher's perturbed episodes."""
    propose: tuple[PositiveInt, ...] = (11, 12, 13, 14)
    rollout: Seeds = (21, 22, 23, 24)
    validation: Seeds = (31, 32, 33, 34)
    test: Seeds = (41, 42, 43, 44)

    @model_validator(mode="after")
    def _disjoint(self) -> PerturbationSettings:
        used: dict[int, str] = {}
        for name in ("collect", "propose", "rollout", "validation", "test"):
            for z in getattr(self, name):
                if z >= FRESH_SEEDS_FROM:
                    raise ValueError(f"seed {z} of `{name}` is reserved for --fresh-tasks; stay below {FRESH_SEEDS_FROM}")
                if used.setdefault(z, name) != name:
                    raise ValueError(f"seed {z} is in `{used[z]}` and in `{name}`; each use needs seeds of its own")
        return self

    @field_validator("families")
    @classmethod
    def _known(cls, families: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := set(families) - set(PERTURBATION_FAMILIES):
            raise ValueError(f"unknown {sorted(unknown)}; known: {', '.join(PERTURBATION_FAMILIES)}")
        return families


FRESH_SEEDS_FROM = 1_000_000
"""Perturbation seeds from here on are used by `--fresh-tasks` only."""
CERTIFY_SEEDS_FROM = 1_000_000_000_000
"""And from here on by `r2v certify` only."""


class ExpertSettings(Settings):
    """The scripted expert of the environment; it sees only what the SLM sees."""

    kind: Literal["expert"] = "expert"


def _trained_or_chat(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return "chat" if kind == "chat" else "trained"


class SlmSettings(Settings):
    model: Annotated[
        Annotated[ModelSettings, Tag("trained")] | Annotated[ChatSettings, Tag("chat")], Discriminator(_trained_or_chat)
    ] = ModelSettings()
    """A model that is trained here, or a chat endpoint (`kind: chat`), with which nothing is."""
    k: Annotated[int, Field(ge=2)] = 5
    """Candidates a step."""
    temperature: PositiveFloat = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    max_new_tokens: PositiveInt = 16

    @property
    def trained(self) -> ModelSettings:
        """The model that is trained here; what asks for it does not run with a chat endpoint."""
        assert isinstance(self.model, ModelSettings)
        return self.model


class CollectSettings(Settings):
    noise: Fraction = 0.2
    """Share of actions replaced by random ones (no loss on them) in noisy episodes."""
    noisy_episodes: Fraction = 0.7
    """Share of episodes with such noise."""


class ProposeSettings(Settings):
    tasks: PositiveInt = 100
    """Policy tasks that the cloned SLM plays to propose preference pairs."""
    min_gap: Fraction = 0.1
    """Smallest difference of verifier scores between chosen and rejected."""
    good: Fraction = 0.5
    """Score from which a candidate is good; where none is, the teacher's action is the chosen one."""


class HelpSettings(Settings):
    """What is tried on the router tasks to learn what help is worth. Only what a wanted router needs is done."""

    branches: PositiveInt = 1
    """Steps of each recorded episode on which both futures are played (benefit)."""
    draws: PositiveInt = 1
    """Futures of each such step; the first is the recorded one."""
    rates: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.05, 0.15, 0.3, 0.6)
    """Probabilities of random help in the explored episodes (helper, bandit, off-policy estimates)."""
    explore_seeds: PositiveInt = 2
    """How many of the rollout seeds are explored."""
    budgets: tuple[PositiveFloat, ...] = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
    """Teacher calls an episode that the helper is made to meet."""


class EvaluateSettings(Settings):
    target: Fraction = 0.95
    """Operating points: the fewest teacher calls whose validation success is at least this share of the teacher's."""
    rule: Literal["target", "cost", "budget"] = "target"
    """How operating points are chosen on validation tasks."""
    calls_per_episode: PositiveFloat = 2.0
    """Budget of the rule `budget`: mean teacher calls an episode."""
    kappa: PositiveFloat = 20.0
    """Price of a failed episode in teacher calls, for the rule `cost`."""
    asked_shares: tuple[Fraction, ...] = (0.02, 0.06, 0.12, 0.2, 0.35, 0.6)
    """OperatingPoint positions of the curves: thresholds that would ask on this share of the SLM's own validation steps."""
    clairvoyant: NonNegativeInt = 30
    """Failed SLM episodes of which the fewest teacher calls that save them are searched; 0 = none."""
    clairvoyant_target: Fraction = 0.98
    """Share of the teacher's success whose least possible calls are reported."""
    resamples: PositiveInt = 2000
    """Bootstrap resamples over tasks."""


class PriceSettings(Settings):
    """What a step costs, in any unit."""

    slm: PositiveFloat = 1.0
    teacher: PositiveFloat = 50.0


class RunSettings(Settings):
    version: Literal[1]
    seed: int = 42
    workers: PositiveInt = 2
    """Processes that play episodes, one thread each."""
    threads: PositiveInt = 2
    """Threads of training."""
    environment: AnyEnvironment = EnvironmentSettings()
    tasks: TaskSettings = TaskSettings()
    perturbations: PerturbationSettings = PerturbationSettings()
    teacher: Annotated[ExpertSettings | ChatSettings, Field(discriminator="kind")] = ExpertSettings()
    slm: SlmSettings = SlmSettings()
    routers: tuple[RouterName, ...] = get_args(RouterName)[:6]
    """Routers that are fitted and evaluated, besides the SLM and the teacher alone; `all` for every one there is."""
    collect: CollectSettings = CollectSettings()
    clone: CloneSettings = CloneSettings()
    propose: ProposeSettings = ProposeSettings()
    prefer: PreferSettings = PreferSettings()
    router: RouterSettings = RouterSettings()
    help: HelpSettings = HelpSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    prices: PriceSettings = PriceSettings()

    @property
    def trains(self) -> bool:
        """Whether the SLM is trained in the run."""
        return not isinstance(self.slm.model, ChatSettings)

    @model_validator(mode="after")
    def _fits_together(self) -> RunSettings:
        kind = self.environment.kind
        if kind != "household" and isinstance(self.teacher, ExpertSettings):
            raise ValueError(f"the {kind} environment has no scripted expert; set teacher: {{kind: chat, ...}}")
        if kind == "terminal" and set(self.perturbations.families) - {"flaky", "partial"}:
            raise ValueError("terminal tasks have the perturbation families flaky and partial; name them in `perturbations`")
        if self.trains and not self.tasks.policy:
            raise ValueError("tasks.policy is 0, but the SLM is trained on these tasks")
        return self

    @field_validator("routers", mode="before")
    @classmethod
    def _all(cls, routers: object) -> object:
        return get_args(RouterName) if routers == "all" else routers

    @field_validator("routers")
    @classmethod
    def _with_reference(cls, routers: tuple[RouterName, ...]) -> tuple[RouterName, ...]:
        if "r2v" not in routers or len(set(routers)) != len(routers):
            raise ValueError("name each router once, and r2v among them: the others are compared with it")
        return routers


class LogSourceSettings(Settings):
    path: str
    format: str = "ledger"
    """See `r2v.logs.BUILT_IN`."""
    outcomes: str | None = None
    """JSON with outcomes by task, for logs that hold none."""


class LogsSettings(Settings):
    """Of `r2v run` on recorded episodes: nothing is played."""

    version: Literal[1]
    seed: int = 0
    logs: LogSourceSettings
    view: View = "full"
    asked_share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the steps to ask on: places the router's threshold."""
