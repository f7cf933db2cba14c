"""Is a vector of each model worth anything? A new model with few recorded sessions, beside models with full records.

    python benchmarks/model_vectors.py ../shared/data/trajectories [--only mint ...]

Outcomes of recorded sets as a matrix of agents (a model in a setting) x tasks. Models are taken out with all their settings,
one after the other (a seventh of them at a time where there are more than seven). Of each of their agents 5, 10, 20 or 50
sessions on three quarters of the task groups are shown, and its success on the last quarter is predicted. `known`: the other
models have played those tasks. `text`: nobody has, and their text is all there is.

    own mean       the agent's own share (prior: a Beta distribution with mean and spread of the others)
    others' mean   of the task; `text`: ridge regression of it on hashed words
    Rasch          logistic: ability of the agent + ease of the task; `text`: ease by ridge on the words
    kinds          the same + ability for the task's kind (what its name begins with)
    vectors        Rasch + vector of the agent x vector of the task (EmbedLLM); `text`: both by ridge on the words

The others' abilities and vectors are the Gaussian prior of the new agent's, and predictions are averaged over what the
sessions leave open. Penalties and rank are chosen on the training tasks, with other models taken out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from advise_recorded import SETS
from numpy.typing import NDArray
from scipy import sparse

from r2v.core.groups import folds, groups
from r2v.core.reading import FIELDS, ROOM, grams, joined
from r2v.evaluation.curves import interval, resample_BT
from r2v.logs.detection import detect
from r2v.logs.importing import import_logs, log_format
from r2v.logs.records import LogFormat, Recorded
from r2v.maths import Bools, Floats
from r2v.maths.calibration import log_odds

Ints = NDArray[np.int64]
SHOWN, DRAWS, FOLDS, RESAMPLES = (5, 10, 20, 50), 4, 4, 500
CHOSEN_AT, SWEEPS = 20, 10
"""Sessions at which settings are chosen; Newton steps of a fit."""
EASES, KIND_RIDGES, RANKS, RIDGES = (0.2, 0.5), (0.3, 1.0), (2, 8), (2.0, 5.0)
"""Penalties of the ease and of the ability for a kind, ranks and penalties of the vectors, that are tried."""
PREDICTORS = ("own mean", "others' mean", "Rasch", "kinds", "vectors")
WORDS = (0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
"""Penalties of the ridge on words that are tried."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """Who solved what."""

    success_AT: Floats
    """NaN where an agent did not play a task."""
    model_A: Ints
    group_T: Ints
    kernel_TT: Floats
    """Of the words of two tasks."""
    kind_TK: Floats
    """1 where the task is of the kind: what its name begins with (a suite, a domain, a data set)."""


@dataclass(frozen=True)
class Settings:
    ease: float
    rank: int = 0
    ridge: float = 0.0
    kinds: bool = False
    """Vectors of the tasks are their kinds, and not fitted."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """Log-odds: level + ability + ease + vector x vector; R = 1 + rank."""

    level: float
    agent_AR: Floats
    task_TR: Floats


@dataclass(frozen=True, eq=False)
class Once:
    """A log format that hands on one record of each task, and keeps who ended how."""

    format: LogFormat
    kept: list[tuple[str, str, bool]]
    """(agent, task, success); a task attacked is another task."""
    name, description = "once", ""

    @property
    def verifier(self) -> str | None:
        return self.format.verifier

    def read(self, path: Path) -> Iterator[Recorded]:
        seen: set[str] = set()
        for item in self.format.read(path):
            assert isinstance(item, Recorded)
            task = f"{item.task} {item.perturbation}"
            if " + " in item.model or item.success is None:
                continue
            self.kept.append((item.model, task, item.success))
            if task not in seen:
                seen.add(task)
                yield item


def matrix_of(path: Path) -> Matrix:
    """Agents without anybody's feedback that have played at least half of the tasks."""
    once = Once(log_format(detect(path)), [])
    episodes = import_logs(path, once)[0]
    agents, agent_E = np.unique([agent for agent, _, _ in once.kept], return_inverse=True)
    names, first = np.unique([f"{e.task.id} {e.perturbation}" for e in episodes], return_index=True)
    task_E = np.searchsorted(names, [task for _, task, _ in once.kept])
    total_AT, count_AT = np.zeros((2, len(agents), len(first)))
    np.add.at(total_AT, (agent_E, task_E), [float(success) for _, _, success in once.kept])
    np.add.at(count_AT, (agent_E, task_E), 1.0)
    kept = (count_AT > 0).mean(axis=1) >= 0.5
    success_AT = np.where(count_AT > 0, total_AT / np.maximum(count_AT, 1), np.nan)[kept]
    models = [a.split()[0] if "gpt-4o-2024" not in a else "gpt-4o" for a in agents[kept]]
    group_T = np.unique(groups(episodes).group_E[first], return_inverse=True)[1]
    said = joined([grams((episodes[i].task.goal[:2000], "", "", "")) for i in first])
    at = (said.part_G // len(FIELDS), said.index_G)
    words = sparse.csr_matrix((said.value_G, at), shape=(len(first), ROOM))
    kinds, kind_T = np.unique([episodes[i].task.id.split("/")[0] for i in first], return_inverse=True)
    kind_TK = np.eye(len(kinds))[kind_T]
    return Matrix(success_AT, np.unique(models, return_inverse=True)[1], group_T, (words @ words.T).toarray(), kind_TK)


def sigmoid(x: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -30, 30))))


def fit(success_AT: Floats, kind_TK: Floats, s: Settings) -> Fitted:
    """Logistic matrix factorisation by Newton steps for agents and tasks in turn; it starts from the largest directions of
    what their means leave open.
    """
    known_AT = ~np.isnan(success_AT)
    y_AT = np.where(known_AT, success_AT, 0.0)
    mean_A, mean_T = (y_AT.sum(axis=i) / np.maximum(1, known_AT.sum(axis=i)) for i in (1, 0))
    u, d, v = np.linalg.svd(known_AT * (y_AT - mean_A[:, None] - mean_T + mean_A.mean()), full_matrices=False)
    size_R = np.sqrt(d[: s.rank]) / 2
    vector_AR, vector_TR = u[:, : s.rank] * size_R, v[: s.rank].T * size_R
    if s.kinds:
        vector_AR, vector_TR = np.zeros((len(u), kind_TK.shape[1])), kind_TK
    agent_AR, task_TR = (np.hstack([np.zeros((len(x), 1)), x]) for x in (vector_AR, vector_TR))
    level, moved = float(log_odds(np.array([y_AT.sum() / known_AT.sum()]))[0]), 1 if s.kinds else agent_AR.shape[1]
    pull_R = np.full(agent_AR.shape[1], s.ridge)
    for _ in range(SWEEPS):
        pull_R[0] = 0.1
        agent_AR = agent_AR - newton(level, agent_AR, task_TR, y_AT, known_AT, pull_R)
        pull_R[0] = s.ease
        step_TR = newton(level, task_TR, agent_AR, y_AT.T, known_AT.T, pull_R, moved)
        task_TR = np.hstack([task_TR[:, :moved] - step_TR, task_TR[:, moved:]])
    return Fitted(level, agent_AR, task_TR)


def newton(
    level: float, own_NR: Floats, other_JR: Floats, y_NJ: Floats, known_NJ: Bools, pull_R: Floats, moved: int | None = None
) -> Floats:
    """A step of the first `moved` columns of `own_NR`, the others held fixed."""
    logit_NJ = level + own_NR[:, :1] + other_JR[:, 0] + own_NR[:, 1:] @ other_JR[:, 1:].T
    p_NJ = sigmoid(logit_NJ)
    x_JR = np.hstack([np.ones((len(other_JR), 1)), other_JR[:, 1:]])[:, :moved]
    r, pull_R = x_JR.shape[1], pull_R[:moved]
    slope_NR = (known_NJ * (p_NJ - y_NJ)) @ x_JR + pull_R * own_NR[:, :moved]
    squares_JS = (x_JR[:, :, None] * x_JR[:, None, :]).reshape(-1, r * r)
    bend_NRR = ((known_NJ * p_NJ * (1 - p_NJ)) @ squares_JS).reshape(-1, r, r) + np.diag(pull_R)
    return np.clip(np.linalg.solve(bend_NRR, slope_NR[..., None])[..., 0], -1, 1)


class Words:
    """Ridge regression on the words of some tasks, for others; the penalty by groups left out, each column its own."""

    def __init__(self, data: Matrix, train: Ints, held: Ints) -> None:
        fold_N = folds(np.unique(data.group_T[train], return_inverse=True)[1], 5, 0)
        inside, across = data.kernel_TT[np.ix_(train, train)], data.kernel_TT[np.ix_(held, train)]
        self.to_held = [np.linalg.solve(inside + p * np.eye(len(train)), across.T).T for p in WORDS]
        self.left_out = []
        for p in WORDS:
            found = np.zeros(inside.shape)
            for k in range(5):
                out, rest = np.flatnonzero(fold_N == k), np.flatnonzero(fold_N != k)
                kernel = inside[np.ix_(rest, rest)] + p * np.eye(len(rest))
                found[np.ix_(out, rest)] = np.linalg.solve(kernel, inside[np.ix_(rest, out)]).T
            self.left_out.append(found)

    def __call__(self, value_NR: Floats) -> tuple[Floats, Floats]:
        """(prediction of the held-out tasks, covariance of what it misses)."""
        mean_R = value_NR.mean(axis=0)
        rest_PNR = np.stack([value_NR - mean_R - found @ (value_NR - mean_R) for found in self.left_out])
        best_R = (rest_PNR**2).sum(axis=1).argmin(axis=0)
        columns = range(len(mean_R))
        held_HR = np.stack([self.to_held[best_R[r]] @ (value_NR[:, r] - mean_R[r]) for r in columns], axis=1)
        rest_NR = np.stack([rest_PNR[best_R[r], :, r] for r in columns], axis=1)
        return held_HR + mean_R, rest_NR.T @ rest_NR / len(rest_NR)


def learned(f: Fitted, task_DMR: Floats, y_DM: Floats) -> tuple[Floats, Floats]:
    """(mean, covariance) of a new agent's ability and vector after some sessions, for each draw of them (Laplace)."""
    mean_R, spread_RR = f.agent_AR.mean(axis=0), np.atleast_2d(np.cov(f.agent_AR.T))
    prior_RR = np.linalg.inv(0.9 * spread_RR + 0.1 * np.diag(np.diag(spread_RR)) + 1e-3 * np.eye(len(mean_R)))
    x_DMR = np.concatenate([np.ones_like(task_DMR[..., :1]), task_DMR[..., 1:]], axis=-1)
    agent_DR = np.tile(mean_R, (len(y_DM), 1))
    for _ in range(8):
        p_DM = sigmoid(f.level + task_DMR[..., 0] + np.einsum("dmr,dr->dm", x_DMR, agent_DR))
        slope_DR = np.einsum("dmr,dm->dr", x_DMR, p_DM - y_DM) + (agent_DR - mean_R) @ prior_RR
        bend_DRR = np.einsum("dmr,dm,dms->drs", x_DMR, p_DM * (1 - p_DM), x_DMR) + prior_RR
        agent_DR = agent_DR - np.clip(np.linalg.solve(bend_DRR, slope_DR[..., None])[..., 0], -1, 1)
    return agent_DR, np.linalg.inv(bend_DRR)


def averaged(f: Fitted, agent_DR: Floats, open_DRR: Floats, task_HR: Floats, missed_RR: Floats) -> Floats:
    """[D, H]: chance of success, over what is open of the agent and of the task (logistic of a Gaussian, MacKay 1992)."""
    one_HR = np.hstack([np.ones((len(task_HR), 1)), task_HR[:, 1:]])
    one_DR = np.hstack([np.ones((len(agent_DR), 1)), agent_DR[:, 1:]])
    spread_DH = np.einsum("hr,drs,hs->dh", one_HR, open_DRR, one_HR)
    spread_DH += np.einsum("dr,rs,ds->d", one_DR, missed_RR, one_DR)[:, None]
    logit_DH = f.level + agent_DR[:, :1] + task_HR[:, 0] + agent_DR[:, 1:] @ task_HR[:, 1:].T
    return sigmoid(logit_DH / np.sqrt(1 + np.pi / 8 * spread_DH))


Found = tuple[Fitted, Floats, Floats]
"""The others' fit with the tasks of the fit, the held-out tasks' part, and the covariance of what that misses."""


@dataclass(frozen=True, eq=False)
class Case:
    """Some models taken out, some tasks held out."""

    data: Matrix
    others: Ints
    new: Ints
    train: Ints
    held: Ints
    words: Words | None
    """None: the others have played the held-out tasks."""
    shown: Mapping[int, Ints]
    """[D, 50]: sessions of each new agent, of `train`."""

    def fitted(self, s: Settings) -> Found:
        tasks = self.train if self.words else np.concatenate([self.train, self.held])
        f = fit(self.data.success_AT[np.ix_(self.others, tasks)], self.data.kind_TK[tasks], s)
        own = Fitted(f.level, f.agent_AR, f.task_TR[: len(self.train)])
        if self.words:
            task_HR, missed_RR = self.words(own.task_TR)
            if s.kinds:
                task_HR[:, 1:], missed_RR[1:], missed_RR[:, 1:] = self.data.kind_TK[self.held], 0.0, 0.0
            return own, task_HR, missed_RR
        return own, f.task_TR[len(self.train) :], np.zeros((f.task_TR.shape[1],) * 2)

    def learn(self, f: Fitted, m: int) -> tuple[Floats, Floats]:
        """Each draw of each new agent, one after the other."""
        played_NM = np.concatenate([self.shown[int(a)][:, :m] for a in self.new])
        at_NM = np.searchsorted(self.train, played_NM)
        return learned(f, f.task_TR[at_NM], self.data.success_AT[np.repeat(self.new, DRAWS)[:, None], played_NM])

    def predict(self, found: Found, m: int) -> Floats:
        """[new agents, D, H]"""
        f, task_HR, missed_RR = found
        return averaged(f, *self.learn(f, m), task_HR, missed_RR).reshape(len(self.new), DRAWS, -1)

    def brier(self, s: Settings) -> float:
        y_AH = self.data.success_AT[np.ix_(self.new, self.held)]
        return float(np.nanmean((self.predict(self.fitted(s), CHOSEN_AT) - y_AH[:, None]) ** 2))


def case(data: Matrix, new: Ints, others: Ints, train: Ints, held: Ints, words: Words | None, seed: int) -> Case:
    """Of the new agents, those that have played enough of the training tasks."""
    rng, shown = np.random.default_rng(seed), {}
    new = new[(~np.isnan(data.success_AT[np.ix_(new, train)])).sum(axis=1) >= max(SHOWN)]
    for a in new:
        played = train[~np.isnan(data.success_AT[a, train])]
        shown[int(a)] = np.stack([rng.permutation(played)[: max(SHOWN)] for _ in range(DRAWS)])
    return Case(data, others, new, train, held, words, shown)


def chosen(outer: Case, inner_train: Ints, inner_held: Ints, words: Words | None) -> dict[str, Settings]:
    """Of each logistic predictor: by the Brier score on training tasks alone, of two thirds of the other models, one third
    after the other.
    """
    fold_O = folds(np.unique(outer.data.model_A[outer.others], return_inverse=True)[1], 3, 1)
    inner = [
        case(outer.data, outer.others[fold_O == k], outer.others[fold_O != k], inner_train, inner_held, words, k)
        for k in range(2)
    ]

    def best(settings: Sequence[Settings]) -> Settings:
        return min(settings, key=lambda s: sum(c.brier(s) for c in inner))

    rasch = best([Settings(ease) for ease in EASES])
    kinds = best([Settings(rasch.ease, 0, ridge, True) for ridge in KIND_RIDGES])
    return {
        "Rasch": rasch, "kinds": kinds,
        "vectors": best([Settings(rasch.ease, rank, ridge) for rank in RANKS for ridge in RIDGES]),
    }  # fmt: skip


def own_mean(c: Case, agent: int, m: int) -> Floats:
    """[D, 1]: with the Beta distribution that has mean and spread of the others' shares as the prior."""
    share_O = np.nanmean(c.data.success_AT[np.ix_(c.others, c.train)], axis=1)
    mean = share_O.mean()
    weight = max(1.0, mean * (1 - mean) / share_O.var() - 1)
    solved_D = c.data.success_AT[agent, c.shown[agent][:, :m]].sum(axis=1)
    return np.asarray((solved_D + weight * mean) / (m + weight))[:, None]


def others_mean(c: Case) -> Floats:
    """[H]"""
    known_OT = c.data.success_AT[c.others]
    count_T = (~np.isnan(known_OT)).sum(axis=0)
    mean_T = (np.nansum(known_OT, axis=0) + np.nanmean(known_OT[:, c.train])) / (count_T + 1)
    return np.clip(c.words(mean_T[c.train][:, None])[0][:, 0], 0.01, 0.99) if c.words else mean_T[c.held]


def cases(data: Matrix) -> Iterator[tuple[str, Case, dict[str, Settings]]]:
    """Each fold of models x each fold of tasks, known and by their text, with the settings chosen for it."""
    fold_T = folds(data.group_T, FOLDS, 0)
    models = int(data.model_A.max()) + 1
    fold_A = folds(data.model_A, min(models, 7), 0)
    for k in range(FOLDS):
        train, held = np.flatnonzero(fold_T != k), np.flatnonzero(fold_T == k)
        inner_N = folds(np.unique(data.group_T[train], return_inverse=True)[1], 3, 0) == 0
        inner = train[~inner_N], train[inner_N]
        for situation in ("known", "text"):
            words, inner_words = (Words(data, train, held), Words(data, *inner)) if situation == "text" else (None, None)
            for j in np.unique(fold_A):
                new, others = np.flatnonzero(fold_A == j), np.flatnonzero(fold_A != j)
                c = case(data, new, others, train, held, words, 100 * k + j)
                yield situation, c, chosen(c, *inner, inner_words)


def measure(name: str, path: Path) -> None:
    """Print the lines of one set."""
    start, data = time.perf_counter(), matrix_of(path)
    shape = (DRAWS, *data.success_AT.shape)
    p: dict[tuple[str, int, str], Floats] = {}
    for situation, c, settings in cases(data):
        found = {key: c.fitted(s) for key, s in settings.items()}
        for m in SHOWN:
            here = {key: c.predict(f, m) for key, f in found.items()}
            here["own mean"] = np.stack([np.broadcast_to(own_mean(c, a, m), (DRAWS, len(c.held))) for a in c.new])
            here["others' mean"] = np.broadcast_to(others_mean(c), (len(c.new), DRAWS, len(c.held)))
            for key, value in here.items():
                at = p.setdefault((situation, m, key), np.full(shape, np.nan))
                at[np.ix_(np.arange(DRAWS), c.new, c.held)] = np.moveaxis(value, 1, 0)
    agents, tasks = data.success_AT.shape
    print(f"{name}: {agents} agents of {data.model_A.max() + 1} models, {tasks} tasks in {data.group_T.max() + 1} groups")
    for situation, m in dict.fromkeys(key[:2] for key in p):
        report(data, situation, m, {key[2]: value for key, value in p.items() if key[:2] == (situation, m)})
    print(f"   {time.perf_counter() - start:.0f} s", flush=True)


def report(data: Matrix, situation: str, m: int, p: Mapping[str, Floats]) -> None:
    draw_N, agent_N, task_N = np.nonzero(~np.isnan(p["Rasch"] + data.success_AT))
    y_N, group_N = data.success_AT[agent_N, task_N], data.group_T[task_N]
    weights_BG = resample_BT(int(group_N.max()) + 1, RESAMPLES, 0)

    def mean_B(value_N: Floats) -> Floats:
        sums, counts = (np.bincount(group_N, x, weights_BG.shape[1]) for x in (value_N, None))
        return np.asarray((weights_BG @ sums) / (weights_BG @ counts))

    error = {key: (p[key][draw_N, agent_N, task_N] - y_N) ** 2 for key in PREDICTORS}
    print(f" {situation}, {m} sessions: Brier " + ", ".join(f"{key} {mean_B(e)[0]:.4f}" for key, e in error.items()))
    for one, other in (("vectors", "Rasch"), ("kinds", "Rasch"), ("vectors", "kinds")):
        print(f"      {one} less {other}: {said(mean_B(error[one] - error[other]))}")


def said(value_B: Floats) -> str:
    low, high = interval(value_B)
    return f"{value_B[0]:+.4f} ({low:+.4f} to {high:+.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="*", default=["workbench", "agentdojo", "intercode", "mint"])
    arguments = parser.parse_args()
    for name in arguments.only:
        measure(name, arguments.data / SETS[name])


if __name__ == "__main__":
    main()
