"""Fits the router that comes with r2v (`recorded`) from recorded agents, and measures where it helps.

    python scripts/fit_default_router.py ../shared/data/trajectories [--out src/r2v/routers/default] [--date 2026-11-28]

Trained on are the sets alone whose licence is known to allow it (`TRAINED`); the others are measured. What the card says
comes from three measurements: tasks left out within each kind; a whole kind left out; and sets that it never saw.
Seeded: the same data and versions give the same bytes.

Axes: N steps, U sessions, K kinds, C cells (`r2v.routers.recorded`).
"""

from __future__ import annotations

import argparse
import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2v.core.features import FEATURES, featurise
from r2v.core.groups import folds, groups
from r2v.core.reading import Grams, Reader
from r2v.core.types import Episode
from r2v.evaluation.gain import SHARES, Gain, Units, chosen, gain_of, threshold
from r2v.learning.reading import ReadRows, fit_reader, read_rows
from r2v.logs.detection import detect
from r2v.logs.importing import import_logs
from r2v.maths import Bools, Floats
from r2v.routers.base import FittedWith
from r2v.routers.recorded import UNREAD, Kinds, Recorded, directions_NC
from r2v.routers.rules import UNSURE
from r2v.runtime.store import write_text
from r2v.studies.evidence import SessionEvidence, evidence_of, own_steps

SEED, HORIZON = 1, 50
FOLDS, INNER_FOLDS = 5, 3
STEPS, MEASURED_STEPS = 8000, 5000
"""Of the weaker agents of one kind that is fitted on, and of one that is not; of more, whole sessions are drawn."""
PENALTY = 0.1
LEAST = 0.05
"""Share of a kind's own steps, of tasks left out, that count as unlike it."""
READ = (
    "step_index", "context_length", "goal_length", "best_repeats", "last_observation_repeats", "repeats_in_last_five",
    "distinct_actions", "steps_since_new", "last_observation_length", "unseen_words", "chosen_names_goal", "goal_seen",
    "goal_in_last", "goal_in_actions", "steps_since_goal",
)  # fmt: skip
"""Features that mean the same whatever K, verifier and log-probabilities a gateway has."""
ALWAYS, NEVER = UNREAD, -UNREAD
"""Scores of steps that `rules` escalates, and of those that are like no kind: beyond any difference of probabilities."""


@dataclass(frozen=True)
class Source:
    """One file of recorded sessions, and the kinds of traffic in it."""

    file: str
    licence: str
    kinds: Mapping[str, tuple[str, str | None]]
    """name -> (how its tasks' ids begin, the stronger model; None: the one that solved most)."""


SOURCES = (
    Source(
        "intercode/episodes.jsonl.xz", "MIT (princeton-nlp/intercode @c3e46d8)",
        {"InterCode SQL": ("sql/", "gpt-4 multiturn 10 turns"), "InterCode Bash": ("bash/", "gpt-4 multiturn 10 turns"),
         "InterCode Python": ("python/", "gpt-3.5 multiturn gpt-4 7 turns")},
    ),
    Source("workbench/episodes.jsonl.xz", "MIT (olly-styles/WorkBench @42f1b6d)", {"WorkBench": ("", "gpt-4 domains")}),
    Source("mint/dev_episodes.jsonl.xz", "of the recordings not stated", {"MINT": ("", None)}),
    Source("knowagent_alfworld/episodes.jsonl.xz", "of the recordings not stated", {"KnowAgent ALFWorld": ("", None)}),
    Source("tau_bench/episodes.jsonl.xz", "of the recordings not stated", {"tau-bench": ("", None)}),
    Source("agentdojo/episodes.jsonl.xz", "carrier without a licence", {"AgentDojo": ("", None)}),
)  # fmt: skip
TRAINED = ("InterCode SQL", "InterCode Bash", "WorkBench")
"""InterCode Python is left out because no agent of it is stronger than the other."""


VERDICT = re.compile(r"\s*\bReward: -?[\d.]+\s*$")
"""What InterCode tells its agents after each turn, and no environment of yours would: it is taken off before all else."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Steps of some kinds, and what handing over each session was worth."""

    names: tuple[str, ...]
    rows: ReadRows
    labels: Mapping[str, Floats]
    """`risk` and, where a stronger model is known, `teacher_risk`: 1 or 0 a step."""
    worth_U: Floats
    kind_U: NDArray[np.int64]
    paired: bool = True
    """False: nobody knows what a stronger model would have made of these; worth is 1 where the session failed."""

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        return np.unique(self.rows.episode_N, return_index=True)[1]

    @property
    def kind_N(self) -> NDArray[np.int64]:
        return self.kind_U[self.rows.episode_N]

    @cached_property
    def rules_N(self) -> Bools:
        """Steps that `rules` escalates."""
        entropy, best = FEATURES.index("first_token_entropy"), FEATURES.index("verifier_best")
        x_NF = self.rows.x_NF
        return np.asarray((1 - x_NF[:, best] >= 1) | (self.rows.present_NF[:, entropy] & (x_NF[:, entropy] / UNSURE >= 1)))

    @cached_property
    def read(self) -> ReadRows:
        """The steps with no feature but those of `READ`."""
        kept_F = np.array([name in READ for name in self.rows.names])
        return replace(self.rows, present_NF=self.rows.present_NF & kept_F)

    def units(self, score_N: Floats, use_U: Bools | None = None) -> Units:
        """Sessions (of some), each with its largest score."""
        use_U = np.ones(len(self.worth_U), dtype=bool) if use_U is None else use_U
        score_U = np.maximum.reduceat(score_N, self.starts)[use_U]
        model_U, group_U = (np.unique(of_N[self.starts][use_U], return_inverse=True)[1]
                            for of_N in (self.rows.agent_N, self.rows.group_N))  # fmt: skip
        return Units(self.worth_U[use_U], {"benefit": score_U}, model_U, group_U, np.zeros(len(score_U), dtype=np.int64))


def episodes_of(source: Source, data: Path) -> list[Episode]:
    """All sessions of a file."""
    path = data / source.file
    return list(import_logs(path, detect(path))[0])


def without_verdicts(episode: Episode) -> Episode:
    """The session had the environment not said how good each turn was, its features counted anew."""
    if not any(VERDICT.search(step.observation.text) for step in episode.steps):
        return episode
    steps = [replace(step, observation=replace(step.observation, text=VERDICT.sub("", step.observation.text)))
             for step in episode.steps]  # fmt: skip
    bare = replace(episode, steps=tuple(steps))
    for t, (step, context) in enumerate(zip(bare.steps, bare.contexts(HORIZON), strict=True)):
        choice = step.choice
        if choice.features is not None:
            counted = featurise(context, choice.candidates, choice.scores)
            steps[t] = replace(step, choice=replace(choice, features=counted))
    return replace(bare, steps=tuple(steps))


def sampled(episodes: Sequence[Episode], teacher: str | None, steps: int) -> list[Episode]:
    """All sessions of the stronger model, and whole sessions of the others with about so many steps."""
    rng, total = np.random.default_rng(SEED), 0
    kept = [i for i, episode in enumerate(episodes) if episode.agent == teacher]
    for i in rng.permutation([i for i, episode in enumerate(episodes) if episode.agent != teacher]).tolist():
        if total >= steps:
            break
        total += len(episodes[i].steps)
        kept.append(i)
    return [episodes[i] for i in sorted(kept)]


def pool_of(kinds: Mapping[str, tuple[Sequence[Episode], str | None]], steps: int) -> Pool:
    """The pool of some kinds: name -> (its sessions, the stronger model)."""
    from r2v.studies.stronger import stronger_of

    kept: list[Episode] = []
    labels: dict[str, list[Floats]] = {}
    group, worth, kind, paired = [], [], [], True
    offset = 0
    for number, (name, (episodes, teacher)) in enumerate(kinds.items()):
        stronger = teacher or stronger_of(episodes, groups(episodes).group_E).model
        mine = [without_verdicts(episode) for episode in sampled(episodes, stronger, steps)]
        found = groups(mine)
        evidence = evidence_of(mine, found, teacher=teacher, seed=SEED)
        if not isinstance(evidence, SessionEvidence):
            raise SystemExit(f"{name}: too few sessions with outcomes")
        paired &= evidence.kind == "paired"
        starts = np.unique(evidence.rows.episode_N, return_index=True)[1]
        kept += [replace(episode, agent=f"{name}: {episode.agent}") for episode in evidence.episodes]
        group.append(evidence.rows.group_N[starts] + offset)
        offset += found.count
        worth.append(evidence.worth_U)
        kind.append(np.full(len(evidence.episodes), number))
        for label, y_N in evidence.labels.items():
            labels.setdefault(label, []).append(y_N)
    rows = read_rows(kept, np.concatenate(group), [own_steps(episode) for episode in kept])
    return Pool(
        tuple(kinds), rows, {label: np.concatenate(y) for label, y in labels.items()}, np.concatenate(worth),
        np.concatenate(kind), paired,
    )  # fmt: skip


def some(said: Grams, use_N: Bools) -> Grams:
    """The grams of some of the steps, numbered anew."""
    from r2v.core.reading import FIELDS

    step_G = said.part_G // len(FIELDS)
    number_N = np.cumsum(use_N) - 1
    use_G = use_N[step_G]
    part_G = number_N[step_G[use_G]] * len(FIELDS) + said.part_G[use_G] % len(FIELDS)
    return Grams(said.index_G[use_G], part_G.astype(np.int32), int(use_N.sum()))


def kinds_of(pool: Pool, use_N: Bools) -> Kinds:
    """The kinds of some of the steps; how like its kind a step must be is measured on groups left out."""
    numbers = np.unique(pool.kind_N[use_N])
    fold_N = folds(pool.rows.group_N, INNER_FOLDS, SEED)
    cosines: dict[int, list[Floats]] = {int(k): [] for k in numbers}
    for fold in range(INNER_FOLDS):
        centres = _centres(pool, use_N & (fold_N != fold), numbers)
        for place, k in enumerate(numbers):
            held_N = use_N & (fold_N == fold) & (pool.kind_N == k)
            if held_N.any():
                cosines[int(k)].append(centres.cosines_NK(some(pool.rows.said, held_N))[:, place])
    least_K = np.array([np.quantile(np.concatenate(cosines[int(k)]), LEAST) for k in numbers])
    return replace(_centres(pool, use_N, numbers), least_K=_single(least_K))


def _centres(pool: Pool, use_N: Bools, numbers: NDArray[np.int64]) -> Kinds:
    """Kinds count equally, however many steps each has."""
    ones = np.ones(1)
    parts = [some(pool.rows.said, use_N & (pool.kind_N == k)) for k in numbers]
    held_KC = np.array([(directions_NC(part, ones) > 0).mean(axis=0) for part in parts])
    weight_C = _single(np.log1p(1 / np.maximum(held_KC.mean(axis=0), 1e-3)))
    mean_KC = np.array([directions_NC(part, weight_C).mean(axis=0) for part in parts])
    # Of one kind alone nothing is taken off: what its steps share is all that it is known by.
    middle_C = _single(mean_KC.mean(axis=0)) * (len(numbers) > 1)
    off = []
    for part in parts:
        off_NC = directions_NC(part, weight_C) - middle_C
        mean_C = (off_NC / np.maximum(np.linalg.norm(off_NC, axis=1, keepdims=True), 1e-12)).mean(axis=0)
        off.append(mean_C / np.linalg.norm(mean_C))
    zeros = np.zeros(len(numbers))
    return Kinds(tuple(pool.names[k] for k in numbers), weight_C, middle_C, _single(np.array(off)), zeros, zeros)


def _single(values: Floats) -> Floats:
    """Rounded to single precision, which the folder keeps."""
    return values.astype(np.float32).astype(float)


def readers_of(pool: Pool, use_N: Bools) -> dict[str, Reader]:
    """The two readers, fitted on some of the steps; afterwards they do not know which agent acts."""
    return {
        name: fit_reader(pool.read, y_N, use_N, seed=SEED, penalties=(PENALTY,)) for name, y_N in sorted(pool.labels.items())
    }


def benefit_N(readers: Mapping[str, Reader], pool: Pool) -> Floats:
    """What handing over at each step would add, read as a gateway reads it: without the agent's name."""
    p = {}
    for name, reader in readers.items():
        columns = [FEATURES.index(feature) for feature in reader.names]
        rows = pool.rows
        parts_NP = rows.parts_NP(reader.words)
        p[name] = reader.calibration(reader.logit(parts_NP, rows.x_NF[:, columns], rows.present_NF[:, columns]))
    return np.asarray(p["risk"] - p["teacher_risk"])


def left_out_N(pool: Pool, use_N: Bools, count: int) -> Floats:
    """The benefit at some of the steps, each by readers that saw no step of its group."""
    fold_N, found_N = folds(pool.rows.group_N, count, SEED), np.zeros(len(pool.rows))
    for fold in range(count):
        mine_N = use_N & (fold_N == fold)
        found_N[mine_N] = benefit_N(readers_of(pool, use_N & ~mine_N), pool)[mine_N]
    return found_N


def like_N(kinds: Kinds, pool: Pool) -> NDArray[np.int64]:
    """Of each step the number of the kind that it is like, in `kinds`; -1: of none."""
    best_N, beyond_N = kinds.nearest_N(pool.rows.said)
    return np.where(beyond_N >= 0, best_N, -1)


def priced(kinds: Kinds, pool: Pool, benefit: Floats, like: NDArray[np.int64], use_U: Bools) -> Kinds:
    """With the price that gained most on some of the sessions of each kind."""
    score_N = np.where(pool.rules_N, ALWAYS, np.where(like >= 0, benefit, NEVER))
    prices = []
    for name in kinds.names:
        units = pool.units(score_N, use_U & (pool.kind_U == pool.names.index(name)))
        share = chosen(units, np.ones(len(units), dtype=bool), SHARES, tuple(units.scores)).share
        prices.append(float(np.clip(threshold(units.scores["benefit"], share), -1, UNREAD)))
    return replace(kinds, price_K=_single(np.array(prices)))


def net_N(kinds: Kinds, benefit: Floats, like: NDArray[np.int64]) -> Floats:
    """What the router compares with 0."""
    return np.where(like >= 0, benefit - kinds.price_K[like], NEVER)


@dataclass(frozen=True)
class Line:
    """What one kind of traffic showed."""

    name: str
    sessions: int
    steps: int
    groups: int
    abstains: float
    """Share of the steps that are like none of the kinds that were fitted on."""
    router: Gain
    """The whole router, as it is shipped."""
    rules: Gain
    over_rules: Gain
    """What the router gains more than `rules`, each over random escalation of as many as it escalates."""
    reader: Gain
    """The reader alone, were it to decide also where the router abstains."""
    paired: bool


def line(name: str, pool: Pool, use_U: Bools, benefit: Floats, net: Floats, abstains: Bools) -> Line:
    """Measure on some of the sessions.

    Args:
        name: of the line.
        pool: all sessions.
        use_U: those that are measured.
        benefit: at each step.
        net: what the router compares with 0 at each step.
        abstains: steps on which it is `rules`.
    """
    use_N = use_U[pool.rows.episode_N]

    def asked(asked_N: Bools) -> Floats:
        return pool.units(asked_N.astype(float), use_U).scores["benefit"]

    def gain(asked_U: Floats) -> Gain:
        return gain_of(asked_U, pool.units(benefit, use_U), SEED)

    router, rules = asked(pool.rules_N | (~abstains & (net >= 0))), asked(pool.rules_N)
    return Line(
        name, int(use_U.sum()), int(use_N.sum()), len(np.unique(pool.rows.group_N[use_N])), float(abstains[use_N].mean()),
        gain(router), gain(rules), gain(router - rules), gain(asked(net >= 0)), pool.paired,
    )  # fmt: skip


def tasks_left_out(pool: Pool, say: Callable[[str], None]) -> tuple[list[Line], Floats]:
    """Each kind, measured on groups of tasks that neither readers, kinds nor prices saw; and the benefits."""
    every = np.ones(len(pool.rows), dtype=bool)
    fold_N = folds(pool.rows.group_N, FOLDS, SEED)
    benefit = left_out_N(pool, every, FOLDS)
    like, net = np.zeros(len(pool.rows), dtype=np.int64), np.zeros(len(pool.rows))
    for fold in range(FOLDS):
        say(f"tasks left out, part {fold + 1} of {FOLDS}")
        others_N = fold_N != fold
        kinds = kinds_of(pool, others_N)
        found = like_N(kinds, pool)
        kinds = priced(kinds, pool, benefit, found, others_N[pool.starts])
        like[~others_N], net[~others_N] = found[~others_N], net_N(kinds, benefit, found)[~others_N]
    return [line(name, pool, pool.kind_U == k, benefit, net, like < 0) for k, name in enumerate(pool.names)], benefit


def kind_left_out(pool: Pool, say: Callable[[str], None]) -> list[Line]:
    """Each kind, measured by a router that was fitted on the others, and reads all of them."""
    lines = []
    for k, name in enumerate(pool.names):
        say(f"left out: {name}")
        others_N = pool.kind_N != k
        kinds = kinds_of(pool, others_N)
        like = like_N(kinds, pool)
        kinds = priced(kinds, pool, left_out_N(pool, others_N, INNER_FOLDS), like, pool.kind_U != k)
        benefit = benefit_N(readers_of(pool, others_N), pool)
        lowest = float(kinds.price_K.min())
        lines.append(_new(name, pool, pool.kind_U == k, kinds, lowest, benefit, like))
    return lines


def never_seen(router: Recorded, lowest: float, pools: Sequence[Pool]) -> list[Line]:
    """Sets that nothing was fitted on, measured by the router that is shipped."""
    assert router.teacher is not None
    lines = []
    for pool in pools:
        benefit = benefit_N({"risk": router.reader, "teacher_risk": router.teacher}, pool)
        every_U = np.ones(len(pool.worth_U), dtype=bool)
        lines.append(_new(pool.names[0], pool, every_U, router.kinds, lowest, benefit, like_N(router.kinds, pool)))
    return lines


def _new(name: str, pool: Pool, use_U: Bools, kinds: Kinds, lowest: float, benefit: Floats, like: NDArray[np.int64]) -> Line:
    """New traffic: beside the router stands its reader at the lowest price of any kind, never abstaining."""
    abstains = (like < 0) | (kinds.price_K[like] >= UNREAD)
    net = np.where(abstains, benefit - lowest, net_N(kinds, benefit, like))
    return line(name, pool, use_U, benefit, net, abstains)


def fitted(pool: Pool, benefit: Floats, within: Sequence[Line], facts: Mapping[str, Any]) -> tuple[Recorded, float]:
    """The router on all of the pool; it reads kinds alone on which it was shown to gain more than `rules`.

    Args:
        pool: all of the sessions.
        benefit: at each step, by readers that did not see its task.
        within: what each kind showed, tasks left out.
        facts: for the router's folder.

    Returns:
        (the router, the lowest price of a kind, read or not).
    """
    every = np.ones(len(pool.rows), dtype=bool)
    kinds = kinds_of(pool, every)
    kinds = priced(kinds, pool, benefit, like_N(kinds, pool), np.ones(len(pool.worth_U), dtype=bool))
    shown_K = np.array([line.over_rules.ci95[0] > 0 for line in within])
    lowest = float(kinds.price_K.min())
    kinds = replace(kinds, price_K=np.where(shown_K, kinds.price_K, UNREAD))
    readers = {name: replace(reader, agents={}) for name, reader in readers_of(pool, every).items()}
    router = Recorded(
        reader=readers["risk"], teacher=readers["teacher_risk"], kinds=kinds, fitted_with=FittedWith(None, None, None),
        facts=facts,
    )  # fmt: skip
    return router, lowest


def verdict(gain: Gain) -> str:
    """Whether escalating so beats random escalation of as many."""
    if gain.ci95[0] > 0:
        return "beats random"
    return "worse than random" if gain.ci95[1] < 0 else "not shown"


def table(lines: Sequence[Line], reads: Kinds | None = None) -> str:
    """Lines as a table; `reads` says of own kinds whether they are read."""

    def cell(gain: Gain) -> str:
        return f"{gain.share:.0%}: {signed(gain)}"

    def abstains(x: Line) -> str:
        found = f"{x.abstains:.1%} of {x.steps} steps"
        if reads is None:
            return found
        return f"{found} | {'reads' if reads.price_K[reads.names.index(x.name)] < UNREAD else 'abstains: as `rules`'}"

    ships, router = ("", "this router") if reads is None else (" | so it", "`rules` and its reader")
    head = f"| traffic | sessions (groups) | unlike{ships} | {router} | `rules` | the first minus `rules` | reader alone |"
    return "\n".join([
        head, "|" + "---|" * (head.count("|") - 1),
        *(
            f"| {x.name}{'' if x.paired else ' *'} | {x.sessions} ({x.groups}) | {abstains(x)} | {cell(x.router)}, "
            f"{verdict(x.router)} | {cell(x.rules)}, {verdict(x.rules)} | {signed(x.over_rules)} | {cell(x.reader)} |"
            for x in lines
        ),
    ])  # fmt: skip


def signed(gain: Gain) -> str:
    """A gain with its interval."""
    return f"{gain.gain:+.3f} ({gain.ci95[0]:+.3f} to {gain.ci95[1]:+.3f})"


def card(router: Recorded, within: Sequence[Line], left_out: Sequence[Line], unseen: Sequence[Line], date: str) -> str:
    """What people should know before they rely on it."""
    licences = "\n".join(
        f"- {', '.join(source.kinds)}: licence {source.licence}; "
        + (f"trained on: {', '.join(used)}" if (used := [k for k in source.kinds if k in TRAINED]) else "measured only")
        for source in SOURCES
    )
    new = [x for x in (*left_out, *unseen) if x.paired]
    better, reads = ([x.name for x in new if of(x).ci95[0] > 0] for of in (_over_rules, _reader))
    beats, not_shown = ([x.name for x in new if (x.router.ci95[0] > 0) == wanted] for wanted in (True, False))
    own = [name for name, price in zip(router.kinds.names, router.kinds.price_K, strict=True) if price < UNREAD]
    least = min((*left_out, *unseen), key=lambda x: x.abstains)
    transfer = "Its reading transfers to most kinds that were tried, but a gateway cannot know to which."
    if 2 * len(reads) <= len(new):
        transfer = f"Its reading does not transfer: alone it would beat random on {len(reads)} of {len(new)} new kinds."
    return f"""# Router recorded

Comes with r2v, fitted on recorded sessions of other people's agents. On traffic like theirs it hands a session over to the
teacher where `rules` would escalate, or where it reads that the teacher would do better. On all other traffic it abstains:
it decides exactly what `rules` decides, and the decision's reason says so.

**Expect `rules` of it on new traffic, and no more.** {transfer}
From kinds of traffic that it was not fitted on it abstains on {least.abstains:.1%} of the steps ({least.name}) or more:
what it gains there is what `rules` gains.

- It reads these of its own kinds, on which (tasks left out) it is shown to gain more than `rules`: {_names(own)}.
  It abstains from all else.
- New kinds on which it beats random escalation, as `rules` does: {_names(beats)}.
- New kinds on which nothing is shown: {_names(not_shown)}.
- New kinds on which it is shown to gain more than `rules`: {_names(better)}.
- New kinds on which its reader alone, did it not abstain, would beat random escalation: {_names(reads)}.

Fit one on your own sessions as soon as you have them: `r2v advise LOGS`, `r2v fit LEDGER --out DIR`.

Fitted {date}. Its score is a difference of two probabilities, not calibrated for your models, less a price of the kind of
traffic; it hands over from 0 on. Above 0 it asks less (`route.threshold`, `r2v@tau=0.1`).

Read the tables so: *share of the sessions handed over: gain in success over handing over as many at random, with the 95 %
interval over groups of tasks*. A session counts as handed over as a whole if the router asks at any of its steps; the gain
is that of the stronger model's own run of the same task. "Beats random" is said where the interval is above 0. *Unlike*: the
share of steps on which it abstains because they are like nothing that it reads. *Reader alone*: did it decide everywhere.
Which of its own kinds are read was chosen by the very numbers of the first table, so these flatter it a little.

## Its own kinds of traffic, tasks left out

{table(within, router.kinds)}

## A whole kind left out (a router fitted on the others, which reads all of them)

{table(left_out)}

## Sets that it never saw (this very router)

{table(unseen)}

\\* Only one model's sessions: what a stronger one would make of them is not known, so the number is failing sessions found
over random, not success gained. In InterCode Python neither of two agents is the stronger one: handing over is a second try.

## Data and licences

{licences}

It holds weights of hashed words, no text of any session. Where the licence of recordings is not stated nothing was fitted on
them. `NOTICE` of r2v names those that were.

## Limits

- A text that somebody else writes (a web page, a file) can make a step unlike the recorded ones, so that only `rules`
  decides, or move the reader's score within the range of the fit. It cannot take back what `rules` escalates.
- The reader looks at words and {len(router.reader.names)} features that do not depend on K, verifier or log-probabilities.
- InterCode showed its agents the reward of each turn. That line was taken off before anything was fitted or measured.
- The recorded agents drew one candidate a step without log-probabilities; `rules` beside it sees more in a gateway.

Made by `scripts/fit_default_router.py`. `r2v.load_router("recorded")` needs NumPy and msgspec alone.
"""


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _over_rules(line: Line) -> Gain:
    return line.over_rules


def _reader(line: Line) -> Gain:
    return line.reader


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "src" / "r2v" / "routers" / "default")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="of the card")
    given = parser.parse_args(arguments)
    make(given.data, given.out, given.date, lambda text: print(text, flush=True))


def make(data: Path, out: Path, date: str, say: Callable[[str], None]) -> None:
    """Fit, measure, and write the folder."""
    trained: dict[str, tuple[Sequence[Episode], str | None]] = {}
    others: list[Pool] = []
    for source in SOURCES:
        say(f"reading {source.file}")
        episodes = episodes_of(source, data)
        for name, (begins, teacher) in source.kinds.items():
            mine = [episode for episode in episodes if episode.task.id.startswith(begins)]
            if name in TRAINED:
                trained[name] = (mine, teacher)
            else:
                others.append(pool_of({name: (mine, teacher)}, MEASURED_STEPS))
    pool = pool_of(trained, STEPS)
    if not pool.paired:
        raise SystemExit("the sets to fit on hold too few sessions of a stronger model on the same tasks")
    say(f"fitting on {len(pool.rows)} steps of {len(pool.worth_U)} sessions")
    within, benefit = tasks_left_out(pool, say)
    facts = {
        "seed": SEED,
        "date": date,
        "kinds": ", ".join(pool.names),
        "sessions": len(pool.worth_U),
        "steps": len(pool.rows),
    }
    router, lowest = fitted(pool, benefit, within, facts)
    left_out = kind_left_out(pool, say)
    unseen = never_seen(router, lowest, others)
    router.save(out)
    text = card(router, within, left_out, unseen, date)
    write_text(out / "README.md", text)
    say(text)


if __name__ == "__main__":
    main()
