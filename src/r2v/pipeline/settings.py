"""All settings of a run: one YAML file, `version: 1`. Everything has a default but the version.

version: 1
environment: {kind: household, receptacles: [6, 9]}
perturbations: {strength: 1.5}
slm: {model: {hidden_size: 64}}
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated, Any, Literal

from msgspec import Meta, field
from msgspec.structs import force_setattr

from r2v.clients.chat import ChatSettings
from r2v.core.features import View
from r2v.core.types import Member
from r2v.domains import load_domain
from r2v.domains.base import Domain, EnvironmentSettings
from r2v.learning.settings import CloneSettings, ModelSettings, PreferSettings, RouterSettings
from r2v.perturbations import BY_SEED, GroupPart, severity_of
from r2v.routers import BUILT_IN, router_class
from r2v.routers.base import PLAIN, RouterBase, own_settings
from r2v.runtime.settings import Fraction, NonNegativeInt, PositiveFloat, PositiveInt, Settings, validated
from r2v.verifiers import name_of, verifier_named


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


Seeds = Annotated[tuple[PositiveInt, ...], Meta(min_length=2)]
"""With one perturbation seed alone CVaR over them would be the mean."""


class PerturbationSettings(Settings):
    families: tuple[str, ...] = ()
    """Those of the domain, of an installed package, or by dotted path; none named: all of the domain."""
    strength: Annotated[float, Meta(ge=0)] = 1.0
    """Factor on every operator's probability; 0 = clean."""
    severities: tuple[PositiveFloat, ...] = ()
    """Factors on `strength`, one of them for each task and seed; none named: `strength` alone."""
    test_severities: tuple[PositiveFloat, ...] = ()
    """Those of the test split, of fresh tasks and of certificates; none named: `severities`. What `r2v improve` learns from
    has `severities`."""
    groups: Annotated[tuple[GroupPart, ...], Meta(min_length=1)] = BY_SEED
    """What CVaR takes its mean over the worst of: every combination of these is a group of episodes."""
    collect: tuple[PositiveInt, ...] = (1, 2, 3)
    """Perturbation seeds z of the teacher's perturbed episodes."""
    propose: tuple[PositiveInt, ...] = (11, 12, 13, 14)
    rollout: Seeds = (21, 22, 23, 24)
    validation: Seeds = (31, 32, 33, 34)
    test: Seeds = (41, 42, 43, 44)

    def __post_init__(self) -> None:
        used: dict[int, str] = {}
        for name in ("collect", "propose", "rollout", "validation", "test"):
            seeds = getattr(self, name)
            for z in seeds:
                if seeds.count(z) > 1:
                    raise ValueError(f"seed {z} is in `{name}` twice")
                if z >= FRESH_SEEDS_FROM:
                    raise ValueError(f"seed {z} of `{name}` is reserved for --fresh-tasks; stay below {FRESH_SEEDS_FROM}")
                if used.setdefault(z, name) != name:
                    raise ValueError(f"seed {z} is in `{used[z]}` and in `{name}`; each use needs seeds of its own")
        if len(set(self.groups)) < len(self.groups):
            raise ValueError("`groups` names one of its parts twice")
        for name in ("severities", "test_severities"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"`{name}` names one of them twice")
        if "severity" in self.groups and not self.severities:
            raise ValueError("`groups` names the severity, but there are no `severities`")

    @property
    def kinds(self) -> tuple[GroupPart, ...]:
        """What a group is where something is shown of groups: seeds are then samples, unless there is nothing else."""
        return tuple(part for part in self.groups if part != "seed") or self.groups

    def severity(self, task_id: str, z: int) -> float | None:
        """That of one episode; None where there are none."""
        held_out = z in self.test or FRESH_SEEDS_FROM <= z < IMPROVE_SEEDS_FROM
        drawn_from = (self.test_severities or self.severities) if held_out else self.severities
        return severity_of(task_id, z, drawn_from, self.families)


FRESH_SEEDS_FROM = 1_000_000
"""Perturbation seeds from here on are used by `--fresh-tasks` only."""
CERTIFY_SEEDS_FROM = 1_000_000_000_000
"""And from here on by `r2v certify` only."""
IMPROVE_SEEDS_FROM = 2 * CERTIFY_SEEDS_FROM
"""And from here on by `r2v improve` only."""


class ExpertSettings(Settings):
    """The scripted expert of the domain; it sees only what the SLM sees."""

    kind: Literal["expert"] = "expert"
    mistakes: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Share of its actions that are random ones instead: a weaker expert."""


class SlmSettings(Settings):
    model: ModelSettings | ChatSettings = ModelSettings()
    """A model that is trained here, or a chat endpoint (`kind: chat`), with which nothing is."""
    k: Annotated[int, Meta(ge=2, le=32)] = 5
    """Candidates a step."""
    temperature: PositiveFloat = 0.7
    top_p: Annotated[float, Meta(gt=0, le=1)] = 0.95
    max_new_tokens: Annotated[int, Meta(ge=1, le=8192)] = 16

    @property
    def trained(self) -> ModelSettings:
        """The model that is trained here; what needs it does not run with a chat endpoint."""
        assert isinstance(self.model, ModelSettings)
        return self.model


class CollectSettings(Settings):
    noise: Fraction = 0.2
    """Share of actions replaced by random ones (no loss on them) in noisy episodes."""
    noisy_episodes: Fraction | None = None
    """Share of episodes with such noise; by default 0.7 where the domain has random actions, else 0."""


class ProposeSettings(Settings):
    tasks: PositiveInt = 100
    """Policy tasks that the cloned SLM plays to propose preference pairs."""
    min_gap: Fraction = 0.1
    """Smallest difference of verifier scores between chosen and rejected."""
    good: Fraction = 0.5
    """Score from which a candidate is good; where none is, the teacher's action is the chosen one."""


class HelpSettings(Settings):
    """What is tried on the router tasks to learn what interventions are worth. Only what a wanted router needs is done."""

    branches: PositiveInt = 1
    """Steps of each recorded episode on which both futures are played (benefit)."""
    draws: PositiveInt = 1
    """Futures of each such step; the first is the recorded one."""
    rates: Annotated[tuple[Annotated[float, Meta(gt=0, lt=1)], ...], Meta(min_length=1)] = (0.05, 0.15, 0.3, 0.6)
    """Probabilities of random escalation in the explored episodes (helper, bandit, off-policy estimates)."""
    explore_seeds: PositiveInt = 2
    """How many of the rollout seeds are explored."""
    budgets: Annotated[tuple[PositiveFloat, ...], Meta(min_length=1)] = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
    """Teacher calls an episode that the helper is made to meet."""


class EvaluateSettings(Settings):
    target: Fraction = 0.95
    """Operating points: the fewest teacher calls whose validation success is at least this share of the teacher's."""
    rule: Literal["target", "cost", "budget", "cvar", "share"] = "target"
    """How operating points are chosen on validation tasks. `share` plays none of them and pays for no call."""
    share: Annotated[float, Meta(gt=0, lt=1)] = 0.2
    """Rule `share`: of the SLM's own validation steps, those that are to be escalated."""
    max_failure: Annotated[float, Meta(gt=0, lt=1)] = 0.1
    """Rule `cvar`: the largest failure rate in the worst share `router.alpha` of the groups (`perturbations.groups`)."""
    worst_group: Annotated[float, Meta(gt=0, lt=1)] | None = None
    """Rule `cvar`: and the largest failure rate of any group; null: no such bound."""
    confidence: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    """Rule `cvar`: with which the bounds must be shown on the validation tasks; 0: the estimate itself must meet them."""
    calls_per_episode: PositiveFloat = 2.0
    """Budget of the rule `budget`: mean teacher calls an episode."""
    max_calls: PositiveInt | None = None
    """Teacher calls that a routed episode may make: after them the SLM goes on alone, in validation, evaluation and
    curves. null: no limit."""
    kappa: PositiveFloat = 20.0
    """Price of a failed episode in teacher calls, for the rule `cost`."""
    asked_shares: Annotated[tuple[Fraction, ...], Meta(min_length=1)] = (0.02, 0.06, 0.12, 0.2, 0.35, 0.6)
    """Operating points of the curves: thresholds that would escalate this share of the SLM's own validation steps."""
    clairvoyant: NonNegativeInt = 30
    """Failed SLM episodes of which the fewest teacher calls that save them are searched; 0 = none."""
    state_oracle: NonNegativeInt = 0
    """Test episodes that the state oracle plays, which knows the value of help at each step but not the future; 0 = none."""
    state_oracle_futures: PositiveInt = 16
    """Futures that it plays with each of the two actions where SLM and teacher differ."""
    attacked_steps: NonNegativeInt = 40
    """Steps of each router's test episodes with a call, and as many without, whose texts are changed to see which calls that
    buys and which it suppresses (`text_attacks`); 0 = none, as where the verifier is a model or runs code."""
    clairvoyant_target: Fraction = 0.98
    """Share of the teacher's success whose least possible calls are reported."""
    resamples: PositiveInt = 2000
    """Bootstrap resamples over tasks."""


PoolName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=40)]


class StepPriceSettings(Settings):
    """What a step costs, in any unit."""

    slm: PositiveFloat = 1.0
    teacher: PositiveFloat = 50.0
    pool: dict[str, PositiveFloat] = field(default_factory=dict)
    """Of each model of `pool`."""


class RunSettings(Settings):
    version: Literal[1]
    seed: int = 42
    workers: PositiveInt = 2
    """Processes that play episodes, one thread each."""
    threads: PositiveInt = 2
    """Threads of training."""
    environment: EnvironmentSettings = field(default_factory=lambda: load_domain("household").settings())
    """`kind` names the domain (household by default), whose own keys the others are."""
    tasks: TaskSettings = TaskSettings()
    perturbations: PerturbationSettings = PerturbationSettings()
    teacher: ExpertSettings | ChatSettings = ExpertSettings()
    pool: dict[PoolName, ExpertSettings | ChatSettings] = field(default_factory=dict)
    """Further models between SLM and teacher, the cheapest first, for routers that choose among them (`pool_benefit`,
    `pool_bandit`, `pool_cascade_routing`); `prices.pool` has what a step of each costs."""
    slm: SlmSettings = SlmSettings()
    verifier: str | None = None
    """What scores the candidates (`r2v.verifiers`): a name, or `{kind: ..., key: value}`; null: the domain's own rule."""
    routers: tuple[str | dict[str, Any], ...] = ("random", "entropy", "heuristic", "verifier", "r2v", "r2v_paper")
    """Routers that are fitted and evaluated, besides the SLM and the teacher alone; `all` for every built-in one. Your own:
    `package.module:Class`, or the name of its entry point; `{kind: ..., key: value}` for one with settings of its own."""
    collect: CollectSettings = CollectSettings()
    clone: CloneSettings = CloneSettings()
    propose: ProposeSettings = ProposeSettings()
    prefer: PreferSettings = PreferSettings()
    router: RouterSettings = RouterSettings()
    help: HelpSettings = HelpSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    prices: StepPriceSettings = StepPriceSettings()

    @property
    def members(self) -> tuple[Member, ...]:
        """The models between SLM and teacher."""
        return tuple(Member(name, self.prices.pool[name] / self.prices.teacher) for name in self.pool)

    @property
    def trains(self) -> bool:
        """Whether the SLM is trained in the run."""
        return not isinstance(self.slm.model, ChatSettings)

    @property
    def domain(self) -> Domain[Any]:
        return load_domain(self.environment.kind)

    @property
    def scored_by(self) -> str:
        """The name of the verifier."""
        return self.verifier or self.domain.verifier

    @classmethod
    def upgraded(cls, raw: dict[str, Any]) -> dict[str, Any]:
        """With the environment as its domain's settings, and `all` routers named."""
        env = raw.get("environment", {})
        if isinstance(env, dict):
            env = {"kind": "household", **env}
            env = validated(load_domain(str(env["kind"])).settings, env, "environment")
        raw = raw | ({"verifier": name_of(raw["verifier"])} if "verifier" in raw else {})
        if raw.get("routers") == "all":
            raw["routers"] = tuple(name for name in BUILT_IN if raw.get("pool") or "pool" not in router_class(name).needs)
        return {**raw, "environment": env}

    def __post_init__(self) -> None:
        """Fills in what depends on the domain; then everything must fit together."""
        domain, families, noise = self.domain, self.perturbations.families, self.collect.noisy_episodes
        for family in families:
            domain.perturbation(family, self.perturbations.strength, "")
        force_setattr(self, "perturbations", self.perturbations.but(families=families or domain.families))
        severities, tested = self.perturbations.severities, self.perturbations.test_severities
        for of_severity, where in ((severities, ""), (tested or severities, " of the test")):
            counts = {"family": len(set(families or domain.families)), "severity": len(of_severity)}
            if all(counts.get(part, 2) < 2 for part in self.perturbations.groups):
                only = " and ".join(f"one {part}{where}" for part in self.perturbations.groups)
                raise ValueError(f"perturbations.groups: {only} alone is one group, and CVaR needs two; add `seed`")
        if noise is None:
            noise = 0.0 if domain.random_action is None else 0.7
            force_setattr(self, "collect", self.collect.but(noisy_episodes=noise))
        self._fits_together(domain, self.environment.kind)
        if self.verifier is not None:
            verifier_named(self.verifier)
        self._known_routers()

    def _fits_together(self, domain: Domain[Any], kind: str) -> None:
        stronger = {"teacher": self.teacher, **{f"pool.{name}": model for name, model in self.pool.items()}}
        for name, model in stronger.items():
            if isinstance(model, ExpertSettings) and domain.expert() is None:
                raise ValueError(f"the {kind} environment has no scripted expert; set {name}: {{kind: chat, ...}}")
            if isinstance(model, ExpertSettings) and model.mistakes and domain.random_action is None:
                raise ValueError(f"{name}.mistakes: the {kind} environment has no random actions; leave it out")
        if used := {"slm", "teacher", "noise", "redraw"} & set(self.pool):
            raise ValueError(f"pool.{used.pop()}: that name is taken; give the model another one")
        if other := sorted(set(self.pool) ^ set(self.prices.pool)):
            raise ValueError(f"prices.pool and pool must name the same models; {other[0]} is in one of them alone")
        if not isinstance(self.slm.model, ChatSettings):
            if self.slm.model.path is None and not domain.scratch:
                raise ValueError(
                    f"no model can be trained from scratch in the {kind} environment; "
                    "set slm: {model: {path: FOLDER-OR-HUB-ID}} or slm: {model: {kind: chat, ...}}"
                )
            if self.collect.noisy_episodes and domain.random_action is None:
                raise ValueError(f"the {kind} environment has no random actions; set collect: {{noisy_episodes: 0}}")
        if self.trains and not self.tasks.policy:
            raise ValueError("tasks.policy is 0, but the SLM is trained on these tasks")
        if self.trains and not self.perturbations.collect:
            raise ValueError("perturbations.collect names no seed, but the SLM is trained on perturbed episodes")
        if self.trains and self.prefer.enabled and not self.perturbations.propose:
            raise ValueError("perturbations.propose names no seed, but preferences are trained (prefer.enabled)")

    @cached_property
    def chosen_routers(self) -> dict[str, tuple[type[RouterBase], dict[str, Any]]]:
        """name -> (class, own settings) of each of `routers`, in their order; then `reading`, if `router.reads`."""
        found = {}
        listed = [*self.routers, *(["reading"] if self.router.reads and "reading" not in self.routers else [])]
        for entry in listed:
            options = {} if isinstance(entry, str) else {key: value for key, value in entry.items() if key != "kind"}
            router = router_class(entry if isinstance(entry, str) else str(entry.get("kind")))
            found[router.name] = (router, options)
        return found

    def _known_routers(self) -> None:
        chosen = self.chosen_routers
        for router, options in chosen.values():
            own_settings(router, options)
        for router, _ in chosen.values():
            if not re.fullmatch(PLAIN, router.name):
                raise ValueError(f"router {router.name!r} names a folder, too; take letters, digits, _, - and .")
            if "pool" in router.needs and not self.pool:
                raise ValueError(f"router {router.name} chooses among more than two models; name those in between in `pool`")
        added = self.router.reads and "reading" not in self.routers
        if "r2v" not in chosen or len(chosen) != len(self.routers) + added:
            raise ValueError("routers: name each router once, and r2v among them: the others are compared with it")


class LogSourceSettings(Settings):
    path: str
    format: str = "ledger"
    """See `r2v.logs.BUILT_IN`; `auto` is found by looking at the logs."""
    outcomes: str | None = None
    """JSON with outcomes by task, for logs that hold none."""


class LogsSettings(Settings):
    """Of `r2v run` on recorded episodes: nothing is played."""

    version: Literal[1]
    seed: int = 0
    logs: LogSourceSettings
    view: View = "full"
    asked_share: Annotated[float, Meta(gt=0, lt=1)] | None = None
    """Share of the sessions (of steps, where teacher and drafts are compared) to escalate; null: the one that gains most."""
    unproven: bool = False
    """Write the router also where nothing shows that it beats random escalation."""
