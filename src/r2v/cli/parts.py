"""`r2v check THING` and `r2v new`: parts of your own, tried on made-up data."""

from __future__ import annotations

import inspect
import keyword
import math
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from r2v.core.checks import PROPOSED, CheckFailed, check, check_router
from r2v.core.errors import R2VError, SettingsError, broke
from r2v.core.features import featurise
from r2v.core.types import (
    Action,
    Candidate,
    Choice,
    Context,
    Episode,
    Memory,
    Observation,
    Route,
    ScoreKind,
    Source,
    Step,
    Task,
    Usage,
)
from r2v.runtime import plugins
from r2v.runtime.store import write_text

if TYPE_CHECKING:
    from r2v.routers.base import RouterBase
    from r2v.routers.fit_data import FitData

PARTS: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    "router": ("own_router", "{camel}", {"OwnRouter": "{camel}", "Own": "{camel}", "own_router": "{snake}"}),
    "domain": (
        "own_domain", "DOMAIN",
        {'"guess", "examples.own_verifier:GuessVerifier"': '"{snake}", "tool_calls"', "GuessDomain": "{camel}Domain"},
    ),
    "verifier": ("own_verifier", "{camel}", {"GuessVerifier": "{camel}"}),
}  # fmt: skip
"""What `r2v new` makes: which of examples/, the thing in it, and what is renamed there."""
PASSED = {
    "domain": "tasks, environment, expert, perturbations, verifier and chat format keep their promises",
    "environment": "equal actions lead to equal observations, and it ends once",
    "perturbation": "strength 0 changes nothing, equal seeds change equally, changes are logged",
    "policy": "as many candidates as asked for, the same for the same seed",
    "verifier": "a score in [0, 1] for each action, whatever stands beside it",
    "router": "decisions are repeatable and complete",
    "verdict": "nothing, or a number from 0 to 1, the same for the same context",
    "suite": "says what it is, and misses records that are not there",
    "log format": "says what it reads, and misses a file that is not there",
}
"""What held, in words."""


def check_thing(name: str) -> list[str]:
    """Check a router folder, `package.module:Thing` or a built-in part by its short name; a line for each part.

    Raises:
        SettingsError: there is no such thing.
        CheckFailed: a promise does not hold, or the thing broke.
    """
    from r2v.routers import load_router

    if Path(name, "settings.yaml").is_file() and Path(name, "7-fit").is_dir():
        routers = ", ".join(sorted(path.parent.name for path in Path(name, "7-fit").glob("*/router.json")))
        raise SettingsError(f"{name} is a run; give a router of it, {name}/7-fit/NAME: {routers or 'none is fitted yet'}")
    groups = [] if ":" in name else _groups(name)
    if Path(name).is_dir() and (not groups or Path(name, "router.json").exists()):  # `tests` is a folder of most projects
        return [_checked(name, load_router(name))]
    if ":" in name:
        return [_checked(name, plugins.load("routers", name, {}))]
    if name.endswith((".yaml", ".yml")):
        raise SettingsError(f"{name} does not exist; `r2v init FILE` writes gateway settings to start from")
    if not groups:
        raise SettingsError(
            f"{name} is no settings file, router folder (as RUN/7-fit/r2v) or part that comes with r2v; "
            "your own part is package.module:Thing"
        )
    return [_checked(name, _loaded(group, name, built_in)) for group, built_in in groups]


def _loaded(group: plugins.Group, name: str, built_in: Mapping[str, str]) -> Any:
    from r2v.verdicts import verdict_named

    # What a verdict needs in settings is asked for there.
    return verdict_named(name) if group == "verdicts" else plugins.load(group, name, built_in)


def _groups(name: str) -> list[tuple[plugins.Group, Mapping[str, str]]]:
    """The kinds of parts, with the built-in ones, that know this short name: a domain and its verifier may share one."""
    from r2v import bench, domains, logs, routers, verdicts, verifiers

    groups: dict[plugins.Group, Mapping[str, str]] = {
        "routers": {**routers.BUILT_IN, **routers.RIVALS}, "domains": domains.BUILT_IN, "verifiers": verifiers.BUILT_IN,
        "log_formats": logs.BUILT_IN, "perturbations": {}, "verdicts": verdicts.BUILT_IN, "suites": bench.BUILT_IN,
    }  # fmt: skip
    return [(group, built_in) for group, built_in in groups.items() if name in plugins.names(group, built_in)]


def _checked(name: str, thing: Any) -> str:
    from r2v.routers.base import RouterBase

    try:
        if isinstance(thing, type) and issubclass(thing, RouterBase):
            check_fit(thing)
            return f"router       {name}: fitted on made-up episodes; {PASSED['router']}, and the same once saved and loaded"
        kind = check(thing)
    except (R2VError, ModuleNotFoundError):
        raise
    except Exception as error:
        raise CheckFailed(broke(name, error)) from error
    return f"{kind:<12} {name}: {PASSED[kind]}"


def check_fit(cls: type[RouterBase]) -> None:
    """Fit a router on made-up episodes, and compare its decisions with those of its folder. Raises CheckFailed."""
    from r2v.evaluation.replay import RecordedSteps
    from r2v.routers import load_router
    from r2v.routers.base import RouterBase

    check_class(cls)
    data = made_up_data()
    fitted = cls.fit(data)
    if not isinstance(fitted, RouterBase):
        raise CheckFailed(
            f"`fit` of {cls.__name__} returned a {type(fitted).__name__}; make it return the router, as `cls(...)`"
        )
    router = fitted.tuned(lambda tried: {key: [1, 2] for key in tried}, data)
    thresholds = router.thresholds(data.held, [0.1, 0.5])
    if not thresholds:
        raise CheckFailed(f"{router.name} has no thresholds to try")
    if not all(math.isfinite(threshold) for threshold in thresholds):
        raise CheckFailed(f"{router.name} scores a step with what is no finite number, so it has no thresholds")
    recorded = [step for episode in data.held for step in RecordedSteps.of(episode, data.horizon).steps]
    router = router.at(thresholds[-1])
    check_router(router, [row for _, row, _ in recorded[:5]], PROPOSED)
    with tempfile.TemporaryDirectory() as folder:
        router.save(Path(folder))
        loaded, memories = load_router(folder), [Memory(seed=1), Memory(seed=1)]
    for seed, (context, row, _) in enumerate(recorded):
        if context.t == 0:
            memories = [Memory(seed=seed), Memory(seed=seed)]
        pair = (router, memories[0]), (loaded, memories[1])
        one, two = (r.decide(context, row, memory, seed=seed) for r, memory in pair)
        if one != two:
            raise CheckFailed(f"{router.name} decides otherwise once saved and loaded: all that it knows must be a field")
        memories = [memory.after(one) for memory in memories]


def check_class(cls: type[RouterBase]) -> None:
    """What a router says of itself, and that its methods take what those of `RouterBase` take. Raises CheckFailed."""
    from r2v.routers.base import PLAIN, Need, RouterBase

    def wrong(what: str) -> CheckFailed:
        return CheckFailed(f"{cls.__name__}: {what}")

    own = {key for key, kind in inspect.get_annotations(cls).items() if "ClassVar" not in str(kind)}
    bare = [f.name for f in fields(cls) if cls.__dict__.get(f.name, f.default) is not f.default]
    if (own and "__dataclass_fields__" not in cls.__dict__) or bare:
        of = f"`{min(own) if own and not bare else bare[0]}`"
        mend = "write its type, and @dataclass(frozen=True, kw_only=True, eq=False) above the class"
        raise wrong(f"{of} is no field; {mend}")
    name = next(f.default for f in fields(cls) if f.name == "name")
    if not isinstance(name, str) or not re.fullmatch(PLAIN, name):
        raise wrong(f"`name` = {name!r} names a folder, too; take letters, digits, _, - and .")
    for word, known in (("needs", get_args(Need)), ("routes", get_args(Route))):
        if isinstance(named := getattr(cls, word), str) or not isinstance(named, Iterable):
            raise wrong(f"`{word}` = {named!r}; write a set, as frozenset({{{known[0]!r}}})")
        if unknown := sorted(set(map(str, named)) - set(known)):
            raise wrong(f"`{word}` has {unknown[0]!r}; there are {', '.join(known)}")
    if cls.kind is not None and cls.kind not in get_args(ScoreKind):
        raise wrong(f"`kind` = {cls.kind!r}; there are {', '.join(get_args(ScoreKind))}, and None without a score")
    if not re.fullmatch("#[0-9A-Fa-f]{6}", str(cls.colour)):
        raise wrong(f"`colour` = {cls.colour!r}; write it as #rrggbb")
    for method in ("fit", "at", "tuned", "thresholds", "score", "estimate", "decide", "rule"):
        _check_method(cls, method, RouterBase)


def _check_method(cls: type, method: str, base: type) -> None:
    """That a method can be called as that of its base. Raises CheckFailed."""
    wanted = inspect.signature(getattr(base, method))
    by_name = [p.name for p in wanted.parameters.values() if p.kind is p.KEYWORD_ONLY]
    try:
        inspect.signature(getattr(cls, method)).bind(
            *[None] * (len(wanted.parameters) - len(by_name)), **dict.fromkeys(by_name)
        )
    except TypeError as error:
        takes = ", ".join([*(p for p in wanted.parameters if p not in by_name), *(["*", *by_name] if by_name else [])])
        raise CheckFailed(
            f"`{method}` of {cls.__name__} does not take what r2v gives it ({error}); write `def {method}({takes})`"
        ) from None


def made_up_data(tasks: int = 40, horizon: int = 8) -> FitData:
    """Small `FitData` with all that routers may need; an episode fails the more, the worse its candidates score."""
    from r2v.evaluation.branches import Branch
    from r2v.learning.settings import RouterSettings
    from r2v.routers.base import FittedWith
    from r2v.routers.fit_data import FitData

    recorded, validation, explored = (
        [_episode(f"{split}/{i}", z, horizon, helped) for i in range(tasks) for z in (1, 2)]
        for split, helped in (("router", 0.0), ("validation", 0.0), ("explored", 0.3))
    )
    redrawn = [_episode(f"router/{i}", 1, horizon, 0.0, k=6) for i in range(tasks)]
    differs, differs_validation, differs_redrawn = (
        [[max(step.choice.scores) < 0.6 for step in episode.steps] for episode in episodes]
        for episodes in (recorded, validation, redrawn)
    )
    branches = [Branch(i, 0, 0, True, bool(episode.success)) for i, episode in enumerate(recorded)]
    return FitData(
        recorded, validation, FittedWith(3, horizon, "tool_calls"), RouterSettings(epochs=2), seed=0, budgets=(0.5, 2.0),
        differs=differs, differs_validation=differs_validation, branches=branches, explored=explored, redrawn=redrawn,
        differs_redrawn=differs_redrawn,
    )  # fmt: skip


def _episode(task: str, z: int, horizon: int, helped: float, k: int = 3) -> Episode:
    from r2v.core.seeds import derive_seed

    rng = np.random.default_rng(derive_seed(task, z))
    skill, goal = rng.random(), f"find the {rng.choice(['red', 'green', 'blue'])} key"
    steps: list[Step] = []
    for t in range(horizon):
        texts = [f"open box {n}" for n in rng.integers(0, 5, k)]
        candidates = tuple(Candidate(Action(text), -float(rng.random()), float(rng.random()), Usage(1)) for text in texts)
        scores = tuple(float(s) for s in rng.uniform(0, 0.3 + 0.7 * skill, k))
        seen = Observation(f"box {rng.integers(0, 9)} is empty", False, None, None, str(t), ())
        observations = (*(step.observation.text for step in steps), seen.text)
        known = Context(goal, observations, tuple(step.choice.action for step in steps), horizon)
        source: Source = "teacher" if rng.random() < helped else "slm"
        features = featurise(known, candidates[:3], scores[:3])
        choice = Choice(
            candidates[0].action, source, candidates, scores, features, None, Usage(1), Usage(source == "teacher")
        )
        steps.append(Step(t, z, seen, choice))
    success = bool(rng.random() < skill)
    final = Observation("the end", True, success, None, "end", ())
    return Episode(Task(task, "keys", "made up", goal), z, "none", "slm", goal, tuple(steps), final, success, "done", None)


def new_part(part: str, name: str, out: Path | None) -> tuple[Path, str]:
    """Write a part to start from: one of examples/ under another name.

    Args:
        part: router, domain or verifier.
        name: what it is called; its module and its class are named after it.
        out: the file; NAME.py in the working directory if None.

    Returns:
        The file, and `module:Thing`, by which settings name it.

    Raises:
        SettingsError: the file exists, or the name cannot be used.
    """
    if part not in PARTS:
        raise SettingsError(f"there is no skeleton of a {part}; there are {', '.join(PARTS)}")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or keyword.iskeyword(name):
        raise SettingsError(
            f"{name} cannot name a module and a class; take letters, digits, _ and -, a letter first, and no word of Python"
        )
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|-", "_", name).lower()
    camel = "".join(word.capitalize() for word in snake.split("_"))
    path = out or Path(f"{snake}.py")
    if path.suffix != ".py":
        raise SettingsError(f"{path} is not the name of a Python file, as {snake}.py")
    if path.exists():
        raise SettingsError(f"{path} exists; give another name, or another --out")
    if _groups(snake) or (path.parent == Path() and find_spec(path.stem)):
        raise SettingsError(f"something is called {path.stem} already; give the {part} another name")
    module = path.stem if path.is_absolute() or ".." in path.parts else ".".join(path.with_suffix("").parts)
    example, thing, names = PARTS[part]
    renamed = {f"examples.{example}": module} | {old: new.format(snake=snake, camel=camel) for old, new in names.items()}
    # In one pass: a new name may hold an old one.
    write_text(path, re.sub("|".join(map(re.escape, renamed)), lambda found: renamed[found[0]], _template(example)))
    return path, f"{module}:{thing.format(camel=camel)}"


def _template(example: str) -> str:
    """The text of one of examples/: the wheel has it, and so has a checkout."""
    shipped = Path(__file__).parent / "templates"
    folder = shipped if shipped.exists() else Path(__file__).parents[3] / "examples"
    return (folder / f"{example}.py").read_text(encoding="utf-8")
