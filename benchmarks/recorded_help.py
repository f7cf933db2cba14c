"""Do the estimators say something about real models? MINT: the same tasks with and without GPT-4's feedback. RouteLLM: a
weak and a strong model's answers to the same questions.  `python benchmarks/recorded_help.py [--data DIR]`

MINT. One row is a (model, task) pair that was recorded both ways. From the first step of the episode without help (what the
model did, what came back) the estimators predict P(fails alone), the gain of help, and P(fails alone) x P(solved | failed
alone, helped). Each helps the same share of pairs on tasks that it was not fitted on; random help is the yardstick.
The helper's decision process is fitted on the turns of both kinds of episodes; it predicts what never and always helping do.
RouteLLM. The query router (bag of words) against chance: area of recovered performance over the share of strong calls.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from r2v.learning.helper import KEYS, LOST, WON, model
from r2v.learning.linear import fit_logistic
from r2v.maths.mdp import Mdp, meet_budget, plan
from r2v.routers.query import Query, fit_goal

FEEDBACK = ("gpt-4-0613", "no_GT-textual")
FAMILIES = ("alfworld", "math", "mmlu", "mbpp", "humaneval", "theoremqa", "gsm8k", "hotpotqa")
SHARES = (0.1, 0.2, 0.4, 0.6)
FOLDS = 5
TURNS = 5
SEED = 0


def lines(path: Path) -> list[dict[str, Any]]:
    with lzma.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def signs(step: dict[str, Any]) -> list[float]:
    """What any gateway sees of a step."""
    action, seen = step.get("action") or "", step.get("observation") or ""
    return [
        len(action) / 1000,
        len(seen) / 1000,
        float("<execute>" in action),
        float("<solution>" in action),
        float("I don't understand" in seen),
        float("wrong" in seen.lower()),
        float("Error" in seen or "Traceback" in seen),
        float("Nothing happens" in seen),
        float("Executed Successfully" in seen),
    ]


def pairs(episodes: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """(model, task) recorded alone and with feedback; those without a step cannot be decided on."""
    alone = {(e["model"], e["task"]): e for e in episodes if e["teacher"] is None}
    helped = {(e["model"], e["task"]): e for e in episodes if (e["teacher"], e["feedback_kind"]) == FEEDBACK}
    keys = sorted(key for key in alone.keys() & helped.keys() if alone[key]["steps"])
    models, tasks = sorted({m for m, _ in keys}), sorted({t for _, t in keys})
    rows = []
    for m, t in keys:
        family = t.split("/")[0]
        rows.append(
            [*signs(alone[m, t]["steps"][0]), *(float(family == f) for f in FAMILIES), *(float(m == n) for n in models)]
        )
    order = np.random.default_rng(SEED).permutation(len(tasks))
    task_N = np.array([tasks.index(t) for _, t in keys])
    return {
        "x": np.array(rows),
        "alone": np.array([float(alone[key]["success"]) for key in keys]),
        "helped": np.array([float(helped[key]["success"]) for key in keys]),
        "task": task_N,
        "fold": order[task_N] % FOLDS,
    }


def predictions(d: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores of every pair by estimators fitted on other tasks."""
    out = {name: np.zeros(len(d["alone"])) for name in ("risk", "benefit", "risk x rescue")}
    for fold in range(FOLDS):
        test = d["fold"] == fold
        train = ~test
        mean, std = d["x"][train].mean(axis=0), d["x"][train].std(axis=0)
        z = (d["x"] - mean) / np.where(std < 1e-9, 1, std)

        def chance(label: np.ndarray, rows: np.ndarray, z: np.ndarray = z) -> np.ndarray:
            w, b = fit_logistic(z[rows], label[rows], 10.0)
            return np.asarray(1 / (1 + np.exp(-(z @ w + b))))

        fails, solved = chance(1 - d["alone"], train), chance(d["helped"], train)
        rescued = chance(d["helped"], train & (d["alone"] == 0))
        out["risk"][test] = fails[test]
        out["benefit"][test] = (solved - (1 - fails))[test]
        out["risk x rescue"][test] = (fails * rescued)[test]
    return out


def gained(d: dict[str, np.ndarray], score: np.ndarray, share: float, weights_BT: np.ndarray) -> np.ndarray:
    """Success gained by helping this share of the pairs, for each resample of tasks."""
    helped = score >= np.quantile(score, 1 - share)
    gain_T = np.bincount(d["task"], helped * (d["helped"] - d["alone"]), minlength=weights_BT.shape[1])
    count_T = np.bincount(d["task"], minlength=weights_BT.shape[1])
    return np.asarray((weights_BT @ gain_T) / (weights_BT @ count_T))


def mint(path: Path) -> dict[str, Any]:
    episodes = lines(path)
    d = pairs(episodes)
    tasks = int(d["task"].max()) + 1
    rng = np.random.default_rng(SEED)
    weights_BT = np.vstack([np.ones(tasks), rng.multinomial(tasks, np.full(tasks, 1 / tasks), size=2000)])
    gain = float((d["helped"] - d["alone"]).mean())
    result: dict[str, Any] = {
        "pairs": len(d["alone"]), "tasks": tasks, "alone": float(d["alone"].mean()), "helped": float(d["helped"].mean()),
        "hurt": float((d["alone"] > d["helped"]).mean()), "rescued": float((d["alone"] < d["helped"]).mean()), "gain": {},
    }  # fmt: skip
    for share in SHARES:
        of = {name: gained(d, score, share, weights_BT) for name, score in predictions(d).items()}
        result["gain"][share] = {"random": share * gain}
        for name, values in of.items():
            low, high = np.quantile(values[1:] - share * gain, [0.025, 0.975])
            result["gain"][share][name] = [float(values[0]), float(low), float(high)]
        low, high = np.quantile(of["benefit"][1:] - of["risk"][1:], [0.025, 0.975])
        result["gain"][share]["benefit - risk"] = [float(of["benefit"][0] - of["risk"][0]), float(low), float(high)]
    return {**result, "helper": helper(episodes)}


def helper(episodes: list[dict[str, Any]]) -> dict[str, Any]:
    """The decision process of the turns, fitted on half of the tasks; what it predicts and what the other half shows."""
    half = defaultdict(list)
    both_ways = {e["model"] for e in episodes if (e["teacher"], e["feedback_kind"]) == FEEDBACK}
    for e in episodes:
        kind = (e["teacher"], e["feedback_kind"])
        if e["steps"] and e["model"] in both_ways and kind in ((None, None), FEEDBACK):
            half[hash_of(e["task"]) % 2].append(e)
    columns: list[tuple[int, int, int, int]] = []
    starts = []
    for e in half[0]:
        keys = [key_of(e["task"], step) for step in e["steps"][:TURNS]]
        starts.append(keys[0])
        after = [*keys[1:], WON if e["success"] else LOST]
        columns += [(t, int(e["teacher"] is not None), k, a) for t, (k, a) in enumerate(zip(keys, after, strict=True))]
    t_N, helped_N, key_N, next_N = (np.array(column) for column in zip(*columns, strict=True))
    mdp = model(t_N, helped_N, key_N, next_N, np.array(starts), np.full(len(t_N), 0.3), TURNS)
    seen = {
        name: float(np.mean([e["success"] for e in half[1] if (e["teacher"] is not None) == with_help]))
        for name, with_help in (("never", False), ("always", True))
    }
    forced = Mdp(mdp.p_HASS[:, 1:], mdp.win_HAS[:, 1:], mdp.start_S, np.zeros(1))
    budgets = {str(c): meet_budget(mdp, c).success for c in (0.5, 1.0, 2.0)}
    predicted = {"never": plan(mdp, 2.0).success, "always": plan(forced, 0.0).success, "best": plan(mdp, 0.0).success}
    return {"predicted": predicted, "seen": seen, "predicted at a budget of turns": budgets}


def key_of(task: str, step: dict[str, Any]) -> int:
    """A state: the family of the task, and whether the last turn went wrong."""
    sign = signs(step)
    wrong = 2 if sign[4] or sign[6] else 1 if sign[5] or sign[7] else 0
    family = FAMILIES.index(task.split("/")[0])
    return min(family, KEYS // 3 - 1) * 3 + wrong


def hash_of(text: str) -> int:
    return sum(text.encode())


def routellm(path: Path) -> dict[str, float]:
    """Area over the share of strong calls of (success - weak) / (strong - weak); chance is .5."""
    rows = lines(path)
    order = np.random.default_rng(SEED).permutation(len(rows))
    train, test = order[: len(rows) // 2], order[len(rows) // 2 :]
    bias, weights = fit_goal(
        [rows[i]["prompt"] for i in train], [not rows[i]["weak_correct"] for i in train], penalty=30, rare=40
    )
    found = Query(bias=bias, weights=weights)
    weak = np.array([rows[i]["weak_correct"] for i in test], dtype=float)
    strong = np.array([rows[i]["strong_correct"] for i in test], dtype=float)
    score = np.array([found.risk(rows[i]["prompt"]) for i in test])

    def area(score: np.ndarray) -> float:
        by_score = np.argsort(-score, kind="stable")
        success = weak.mean() + np.append(0, np.cumsum((strong - weak)[by_score])) / len(test)
        return float(np.mean((success - weak.mean()) / (strong.mean() - weak.mean())))

    rng = np.random.default_rng(SEED)
    chance = [area(rng.random(len(test))) for _ in range(200)]
    return {
        "queries": len(rows), "weak": float(weak.mean()), "strong": float(strong.mean()), "area": area(score),
        "chance": float(np.mean(chance)), "chance_97.5": float(np.quantile(chance, 0.975)),
        "oracle": area(strong - weak),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with trajectories/ and queries/")
    data = parser.parse_args().data
    print(json.dumps({"mint": mint(data / "trajectories/mint/dev_episodes.jsonl.xz"),
                      "routellm": routellm(data / "queries/routellm.jsonl.xz")}, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
