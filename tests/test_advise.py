"""What logs advise: tasks are grouped before folds, a reader is bounded, a gain is over random escalation."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from r2v.cli import cli
from r2v.clients.settings import PriceSettings
from r2v.core.errors import SettingsError
from r2v.core.features import FEATURES, featurise
from r2v.core.groups import folds, groups, splits
from r2v.core.reading import FIELDS, ROOM, Reader, grams, texts
from r2v.core.types import NO_USAGE, Action, Candidate, Code, Context, Decision, Features, Memory, Task
from r2v.evaluation.gain import SHARES, Gain, Units, choice_widens, escalated, gain_of, mean_gain
from r2v.gateway.routing import load_configured
from r2v.gateway.settings import GatewaySettings
from r2v.learning.reading import fit_reader, probability, read_rows
from r2v.logs.importing import import_logs
from r2v.maths.stats import auroc, auroc_equal_B
from r2v.report.advice import chosen_line, page, paragraph, table
from r2v.routers import decide, load_router
from r2v.routers.base import FittedWith
from r2v.routers.reading import Reading
from r2v.runtime.settings import load, validated
from r2v.studies.advise import advise, router_of, verdict_of
from r2v.studies.costs import Costs, read_prices, tokens_of
from r2v.studies.evidence import differs, evidence_of, own_steps
from r2v.studies.fit_logs import fitted_with
from r2v.studies.stronger import stronger_of

HARD = ("refund", "dispute", "escrow")
EASY = ("lookup", "status", "greeting")


def session(i: int, model: str, *, hard: bool, stuck: bool, success: bool | None, steps: int = 4) -> dict:
    """One task; a hard goal says so, a stuck session gets errors."""
    noun = (HARD if hard else EASY)[i % 3]
    messages: list[dict] = [
        {"role": "user", "content": f"{noun} number {i} of customer c{i * 37 % 101} in town t{i * 53 % 89}"}
    ]
    for t in range(steps):
        function = {"name": "desk", "arguments": json.dumps({"query": f"{noun} {i} {t if not stuck else 0}"})}
        messages.append({"role": "assistant", "content": None, "tool_calls": [{"id": str(t), "function": function}]})
        seen = "Error: the desk does not answer" if stuck and t else f"entry {i * 7 + t} is open"
        messages.append({"role": "tool", "tool_call_id": str(t), "content": seen})
    raw = {"messages": messages, "task": f"task {i}", "model": model}
    return raw if success is None else {**raw, "success": success}


def paired(path: Path, tasks: int = 200, *, noise: bool = False, seed: int = 0) -> Path:
    """A small model that gets stuck on some tasks, and a strong one that solves most of these but not the hard ones."""
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(tasks):
        hard, stuck = bool(rng.random() < 0.3), bool(rng.random() < 0.4)
        small = rng.random() < (0.1 if hard else 0.15 if stuck else 0.95)
        strong = rng.random() < (0.1 if hard else 0.95)
        if noise:
            small, strong = rng.random() < 0.45, rng.random() < 0.7
        lines.append(session(i, "small", hard=hard, stuck=stuck, success=bool(small)))
        lines.append(session(i, "strong", hard=hard, stuck=False, success=bool(strong)))
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return paired(tmp_path_factory.mktemp("log") / "log.jsonl")


@pytest.fixture(scope="module")
def episodes(log):
    return import_logs(log, "openai-jsonl")[0]


@pytest.fixture(scope="module")
def advice(episodes):
    return advise(episodes, Costs())


# Groups


def with_goals(goals: list[str], ids: list[str] | None = None, families: list[str] | None = None):
    """Episodes without steps, of recorded tasks."""
    base = import_logs_of([session(0, "m", hard=False, stuck=False, success=True)])[0]
    names = ids or [f"id {i}" for i in range(len(goals))]
    return [
        replace(base, task=Task(name, (families or names)[i], "recorded", goal), goal=goal)
        for i, (name, goal) in enumerate(zip(names, goals, strict=True))
    ]


def import_logs_of(records: list[dict]):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        path.write_text("\n".join(map(json.dumps, records)))
        return import_logs(path, "openai-jsonl", keep_unknown=True)[0]


def words(seed: int, n: int = 12) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(f"w{rng.integers(10_000)}" for _ in range(n))


def test_copies_and_groups_are_joined_and_others_are_not():
    goals = [words(i) for i in range(30)]
    goals[7] = goals[3] + " please"
    found = groups(with_goals(goals, families=[f"f{max(1, i)}" for i in range(30)]))
    assert found.group_E[7] == found.group_E[3] and found.group_E[0] == found.group_E[1]
    assert found.count == 28
    assert found.facts() == {"tasks": 30, "groups": 28, "joined_by_the_log": 1, "joined_by_alike_goals": 1}


def test_a_prompt_that_all_share_makes_no_copies():
    frame = words(999, 80)
    assert groups(with_goals([f"{frame} {words(i, 6)}" for i in range(40)])).count == 40


def test_short_goals_are_copies_only_if_they_are_the_same():
    goals = ["go north", "go south", "Go  north", *[words(i) for i in range(20)]]
    found = groups(with_goals(goals)).group_E
    assert found[0] == found[2] != found[1]


def test_goals_of_one_template_do_not_become_one_task():
    assert groups(with_goals([f"please do the usual thing with item number {i}" for i in range(40)])).count >= 10


@hypothesis_settings(deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=200), st.integers(0, 5))
def test_a_group_is_in_one_fold(numbers, seed):
    group_N = np.unique(numbers, return_inverse=True)[1]
    fold_N = folds(group_N, 5, seed)
    assert all(len(set(fold_N[group_N == g])) == 1 for g in set(group_N.tolist()))
    if len(set(numbers)) >= 5:
        assert set(fold_N.tolist()) == set(range(5))


# The reader


def plain_grams(parts: tuple[str, ...]) -> int:
    """How many different words and neighbouring pairs there are, a text; by another way than hashing."""
    import re

    count = 0
    for part in parts:
        found = [re.sub(rb"[0-9]", b"0", w.lower()) for w in re.findall(rb"[A-Za-z0-9_\x80-\xff]+", part.encode())]
        count += len(set(found)) + len(set(itertools.pairwise(found)))
    return count


ALPHABET = st.text(st.sampled_from("ab cdE9_-.\n\u00e9\u4e2d"), max_size=60)


@hypothesis_settings(deadline=None)
@given(st.tuples(ALPHABET, ALPHABET, ALPHABET, ALPHABET))
def test_grams_are_the_words_and_pairs_of_each_text(parts):
    found = grams(parts)
    assert len(found.index_G) <= plain_grams(parts) <= len(found.index_G) + 2  # two may share a number, rarely
    assert ((found.index_G >= 0) & (found.index_G < ROOM)).all() and (found.part_G < len(FIELDS)).all()
    assert len({*zip(found.part_G.tolist(), found.index_G.tolist(), strict=True)}) == len(found.index_G)


def hashed(part: bytes, salt: int) -> set[int]:
    """The numbers of the words and pairs of one text, without arrays."""
    import re

    def number(word: bytes) -> int:
        return sum(letter * pow(0x100000001B3, i, 1 << 64) for i, letter in enumerate(word))

    words = [number(re.sub(rb"[0-9]", b"0", w.lower())) for w in re.findall(rb"[A-Za-z0-9_\x80-\xff]+", part)]
    found = set()
    for gram in (*words, *(one * 0x2545F4914F6CDD1D + other for one, other in itertools.pairwise(words))):
        mixed = (gram % (1 << 64) ^ salt) * 0x9E3779B97F4A7C15 % (1 << 64)
        found.add(((mixed ^ mixed >> 29) * 0x9E3779B97F4A7C15 % (1 << 64)) >> 49)
    return found


@hypothesis_settings(deadline=None)
@given(st.tuples(ALPHABET, ALPHABET, ALPHABET, ALPHABET))
def test_the_numbers_of_grams_are_those_that_routers_were_fitted_on(parts):
    found = grams(parts)
    salts = (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89)
    expected = [
        (i, n) for i, (part, salt) in enumerate(zip(parts, salts, strict=True)) for n in sorted(hashed(part.encode(), salt))
    ]
    assert [*zip(found.part_G.tolist(), found.index_G.tolist(), strict=True)] == expected


def test_words_count_in_their_text_whatever_their_case_and_digits():
    one, other = grams(("Order 17", "", "", "")), grams(("order 94", "", "", ""))
    assert (one.index_G == other.index_G).all()
    moved = grams(("", "order 94", "", ""))
    assert set(moved.part_G.tolist()) == {1} and not set(moved.index_G.tolist()) & set(one.index_G.tolist())
    assert len(grams(("", "", "", "")).index_G) == 0


@given(st.text(max_size=40), st.integers(1, 4))
@hypothesis_settings(max_examples=25, deadline=None)
def test_any_text_of_any_length_is_read(text, times):
    context = Context(text * 10**times, (text * 10**times,), (), 10)
    assert sum(map(len, texts(context, Action(text)))) < 6000
    assert len(grams(texts(context, Action(text))).index_G) < 5000


def test_a_reader_scores_one_step_as_it_scores_many(episodes):
    some = episodes[:60]
    rows = read_rows(some, groups(some).group_E, [own_steps(e) for e in some])
    failed_N = np.array([float(not e.success) for e in some])[rows.episode_N]
    every = np.ones(len(rows), dtype=bool)
    reader = replace(fit_reader(rows, failed_N, every, seed=0), agent="small")
    p_N = probability(reader, rows, every)
    row = 0
    for episode in some:
        for context, step in zip(episode.contexts(50), episode.steps, strict=True):
            if episode.agent == "small":
                assert reader.score(context, step.choice.action, step.choice.features) == pytest.approx(p_N[row], abs=1e-12)
            row += 1


def a_reader(episodes) -> tuple[Reader, list[tuple[Context, Action, Features]]]:
    rows = read_rows(episodes, groups(episodes).group_E, [own_steps(e) for e in episodes])
    failed_N = np.array([float(not e.success) for e in episodes])[rows.episode_N]
    steps = [(c, s.choice.action, s.choice.features) for e in episodes for c, s in zip(e.contexts(50), e.steps, strict=True)]
    return fit_reader(rows, failed_N, np.ones(len(rows), dtype=bool), seed=0), steps


def logit_of(p: float) -> float:
    return float(np.log(p / (1 - p)))


def test_no_text_moves_a_score_further_than_the_texts_of_the_fit_did(episodes):
    reader, steps = a_reader(episodes)
    low_P, high_P = reader.range_2P
    seen = FIELDS.index("seen")
    for context, action, features in steps[:200]:
        plain = logit_of(reader.score(context, action, features))
        for attack in (
            " refund dispute escrow" * 500,
            " entry is open" * 500,
            context.goal * 50,
            "\u200b" * 9000,
            "zz " * 3000,
        ):
            *before, last = context.observations
            now = reader.score(replace(context, observations=(*before, last + attack)), action, features)
            assert abs(logit_of(now) - plain) <= high_P[seen] - low_P[seen] + 1e-9


def test_no_feature_moves_a_score_further_than_its_bins(episodes):
    reader, steps = a_reader(episodes)
    context, action, features = steps[5]
    widest = sum(np.ptp(np.append(bins, 0.0)) for bins in reader.bins_FB)
    plain = logit_of(reader.score(context, action, features))
    for value in (-1e300, 0.0, 1e300, float("inf"), float("nan")):
        now = reader.score(context, action, Features((value,) * len(FEATURES), (True,) * len(FEATURES)))
        assert abs(logit_of(now) - plain) <= widest + 1e-9


def test_a_router_that_reads_needs_to_know_what_is_proposed(advice, episodes):
    router = router_of(advice, fitted_with(episodes, "tool_calls"))
    step, context = episodes[0].steps[1], episodes[0].contexts(50)[1]
    with pytest.raises(ValueError, match=r"Context\.proposed"):
        router.decide(context, step.choice.features, Memory(), seed=0)
    decision = decide(router, context, step.choice.candidates, step.choice.scores)
    assert decision.score_kind == router.estimates and decision.route in ("continue", "takeover")


# The gain


@given(st.integers(0, 1000))
@hypothesis_settings(max_examples=25, deadline=None)
def test_the_gain_is_what_random_escalation_of_as_many_leaves(seed):
    rng = np.random.default_rng(seed)
    worth, asked, model = rng.choice([-1, 0, 1], 300), rng.random(300) < 0.3, rng.integers(0, 3, 300)
    drawn = []
    for _ in range(300):  # random escalation, with each model's own share
        at_random = np.zeros(300, dtype=bool)
        for m in range(3):
            mine = np.flatnonzero(model == m)
            at_random[rng.permutation(mine)[: asked[mine].sum()]] = True
        drawn.append((asked * worth).mean() - (at_random * worth).mean())
    assert mean_gain(asked.astype(float), worth.astype(float), model) == pytest.approx(np.mean(drawn), abs=0.01)


def test_knowing_the_model_alone_gains_nothing():
    model = np.repeat([0, 1], 100)
    worth = np.where(model == 1, 1.0, 0.0)
    assert mean_gain((model == 1).astype(float), worth, model) == 0.0


def test_an_interval_is_over_groups_not_over_sessions():
    """The same 40 groups, each session five times: more sessions of the same tasks are no more evidence."""
    rng = np.random.default_rng(0)
    worth, asked = rng.choice([0.0, 1.0], 40), (rng.random(40) < 0.5).astype(float)

    def width(times: int) -> float:
        repeat = [np.repeat(a, times) for a in (worth, np.zeros(40, int), np.arange(40), np.zeros(40, int))]
        units = Units(repeat[0], {}, repeat[1], repeat[2], repeat[3])
        low, high = gain_of(np.repeat(asked, times), units, 0).ci95
        return high - low

    assert width(5) == pytest.approx(width(1), rel=1e-9)


def test_an_interval_counts_that_the_operating_points_were_chosen(monkeypatch):
    """Scores that say nothing, of steps whose routes were drawn: what was chosen varies from log to log."""
    monkeypatch.setattr("r2v.evaluation.gain.RESAMPLES", 300)
    monkeypatch.setattr("r2v.evaluation.gain.RECHOSEN", 200)
    rng, holds, by = np.random.default_rng(0), [], []
    kinds, group = ("benefit", "risk"), np.repeat(np.arange(60), 5)
    for _ in range(200):
        solved = np.repeat(rng.random(60) < 0.6, 5)
        e = np.where(rng.random(300) < 0.5, 0.05, 0.95)
        helped = rng.random(300) < e
        worth = np.where(helped, 1 / e, -1 / (1 - e)) * (solved - 0.6)
        scores = {kind: rng.normal(size=300) for kind in kinds}
        units = Units(worth, scores, np.zeros(300, dtype=int), group, folds(group, 5, 0))
        asked, _ = escalated(units, SHARES, kinds)
        wider = choice_widens(units, SHARES, kinds, 0)
        fixed, chosen = gain_of(asked, units, 0), gain_of(asked, units, 0, wider=wider)
        assert chosen.gain == fixed.gain and wider >= 1
        holds.append([low <= 0 <= high for low, high in (fixed.ci95, chosen.ci95)])
        by.append(wider)
    fixed, chosen = np.mean(holds, axis=0)
    assert fixed < 0.9 and chosen > 0.92 and 1.1 < np.mean(by) < 1.5
    assert choice_widens(units, (0.2,), ("risk",), 0) == 1.0


def test_auroc_among_equals_is_the_mean_over_strata_weighted_by_pairs():
    rng = np.random.default_rng(0)
    score, y, t = rng.random(300), (rng.random(300) < 0.4).astype(float), rng.integers(0, 4, 300)
    parts = [(auroc(score[t == k], y[t == k]), y[t == k].sum() * (1 - y[t == k]).sum()) for k in range(4)]
    wanted = sum(a * n for a, n in parts) / sum(n for _, n in parts)
    found = auroc_equal_B(score, y, np.arange(300), t, np.ones((1, 300)))
    assert found[0] == pytest.approx(wanted)
    # a score that only counts steps is at chance, however the outcome depends on the step
    assert auroc_equal_B(t.astype(float), y, np.arange(300), t, np.ones((1, 300)))[0] == 0.5


# Advice


def test_a_planted_signal_is_found_beside_the_nulls(advice):
    facts = advice.facts
    assert (facts["verdict"], facts["evidence"], facts["teacher"], facts["slms"]) == ("route", "paired", "strong", ["small"])
    assert facts["gain_ci95"][0] > 0.02 and facts["sessions_needed"] == 0
    success = facts["nulls"]["success"]
    assert success["router"] > success["random"] and success["router"] > success["slm alone"]
    assert facts["nulls"]["gain_over_step_0"]["gain"] > 0, "being stuck shows only later"
    assert 0.5 < facts["auroc_equal_step"] < 1 and 0 < facts["usd_saved_share"] < 1
    assert [line["share"] for line in facts["table"]] == sorted(line["share"] for line in facts["table"])
    json.dumps(facts, allow_nan=False)


def test_several_weaker_models_are_told_by_their_mean(advice):
    success = advice.facts["nulls"]["success"]["slm alone"]
    assert paragraph(advice.facts).startswith(f"small alone solves {success:.0%} of 200 sessions, strong ")
    several = paragraph(advice.facts | {"slms": ["small", "smaller"], "tasks_used": 120})
    assert several.startswith(f"The 2 weaker models alone solve {success:.0%} of 200 sessions on average, strong ")
    assert "% of the same 200 tasks. " in paragraph(advice.facts)
    assert "% of their 120 tasks, each counted once a session. " in several


def test_the_page_marks_what_it_recommends_and_defines_its_columns(advice):
    facts = advice.facts
    shown = page(facts, title="logs")
    (line,) = re.findall(r"<tr class=marked><td>(.*?)</td></tr>", shown)
    known, success = facts["measured"], facts["nulls"]["success"]
    said = [facts["share_escalated"], success["router"], success["random"], facts["at_risk"], facts["usd_saved_share"]]
    assert [known[key] for key in ("share", "success", "random_success", "at_risk", "usd_saved_share")] == pytest.approx(
        said
    )
    share, score, _, _, *others = line.split("</td><td>")
    assert ([share, *others], score) == ([f"{one:.1%}" for one in said], "measured")
    shares = [float(cells[0].strip("%")) for cells in table(facts)[1:]]
    assert shares == sorted(shares) and len(shares) == len(facts["table"]) + 1
    assert f"r2v fit escalates from {facts['threshold']:.3f} ({facts['score']})" in shown
    unmarked = {**facts, "gain_over_random": None}
    assert len(table(unmarked)) == len(facts["table"]) + 1
    assert "<circle class=mark" in shown and f"recommended: {facts['share_escalated']:.0%}" in shown
    assert "<title>r2v advise: logs</title>" in shown
    for title in table(facts)[0]:
        assert f"<b>{title}</b>: " in shown, title
    assert "measured, not recommended" in page({**facts, "verdict": "no_route"}, title="x")


def test_each_row_has_the_baseline_that_its_gain_is_over(advice):
    """The router and the first step alone may escalate other shares of each model: then random escalation differs."""
    nulls = advice.facts["nulls"]
    cells = re.search(r"Beside what needs no router.*?</table>", page(advice.facts, title="x"), re.S)[0]
    lines = {name: rest.split("</td><td>") for name, rest in re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td></tr>", cells)}
    router, first = lines["router"], lines["first step only, as many"]
    assert float(router[1].strip("%")) == pytest.approx(100 * nulls["success"]["random"], abs=0.06)
    for solved, random, gain, _ in (router, first):
        assert float(solved.strip("%")) - float(random.strip("%")) == pytest.approx(float(gain), abs=0.16)
    direct = nulls["gain_over_step_0"]
    assert lines["router less first step only"][2] == f"{100 * direct['gain']:+.1f}"


def test_noise_is_no_route_and_says_how_many_more_sessions(tmp_path):
    episodes, _ = import_logs(paired(tmp_path / "log.jsonl", noise=True), "openai-jsonl")
    facts = advise(episodes, Costs()).facts
    assert facts["verdict"] == "no_route" and facts["sessions_needed"] > 0
    assert "No router beats random" in paragraph(facts) and str(facts["sessions_needed"]) in paragraph(facts)


def test_one_models_outcomes_are_a_bracket_not_a_route(episodes, monkeypatch):
    monkeypatch.setattr("r2v.studies.advise.SHARES", (0.1, 0.1001, 0.2))
    facts = advise([e for e in episodes if e.agent == "small"], Costs()).facts
    assert (facts["verdict"], facts["evidence"], facts["gain_over_random"]) == ("not_enough", "outcomes", None)
    success = facts["nulls"]["success"]
    assert success["router, at least"] < success["slm alone"] < success["router, at most"]
    assert "Nobody else played these tasks" in page(facts, title="x")
    assert len({line["share"] for line in facts["table"]}) == len(facts["table"]) == 2
    assert "--map model=" not in facts["why"] and facts["why"].startswith("only one model's outcomes")
    apart = [replace(e, agent=f"m{i // 2 % 2}") for i, e in enumerate(episodes) if e.agent == "small"]
    assert advise(apart, Costs()).facts["why"].startswith("which model is the stronger one cannot be said")
    nameless = [replace(e, agent="recorded") for e in episodes if e.agent == "small"]
    assert "name the model of each record, if there are several (--map model=...)" in advise(nameless, Costs()).facts["why"]


def test_what_is_missing_is_always_said(episodes):
    solved = [e for e in episodes if e.success or e.agent == "small"]
    beside = advise(solved, Costs(), slms=["strong"]).facts
    assert beside["verdict"] == "not_enough" and re.fullmatch(
        r"no stronger model is left beside strong: small solves [0-9.]+% of the \d+ tasks that it shares with strong, and "
        r"that one 100.0%; name the weaker one \(--slm\), or the stronger one \(--teacher\)", beside["why"],
    )  # fmt: skip
    spread = [replace(e, agent=f"m{i % 40}") for i, e in enumerate(episodes)]
    assert "one model has to play 20 tasks alone" in advise(spread, Costs(), slms=["m1"]).facts["why"]


def test_two_columns_of_folds_leave_out_both():
    fold_N2 = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [1, 1]])
    found = [(held.tolist(), rest.tolist()) for held, rest in splits(fold_N2)]
    assert len(found) == 4
    assert found[0] == ([True, False, False, False, False], [False, False, False, True, True])
    assert found[3] == ([False, False, False, True, True], [True, False, False, False, False])


def third_model(episodes):
    """The small model's sessions as another one's, whose outcomes mean nothing."""
    rng = np.random.default_rng(0)
    small = [e for e in episodes if e.agent == "small"]
    return [replace(e, agent="other", success=bool(rng.random() < 0.5)) for e in small]


def test_a_model_left_out_is_measured_beside_the_others(episodes, monkeypatch):
    from r2v.learning import reading

    seen = []
    fit = reading.fit_reader
    monkeypatch.setattr(reading, "fit_reader", lambda rows, y, use, **k: seen.append((rows, use)) or fit(rows, y, use, **k))
    facts = advise([*episodes, *third_model(episodes)], Costs()).facts
    unseen = facts["left_out_models"]
    assert facts["slms"] == ["other", "small"] and unseen["folds"] == 2 and unseen["models"].keys() == {"other", "small"}
    assert any(len(set(rows.agent_N[use].tolist())) == 1 for rows, use in seen), "readers that saw one model alone"
    for name in ("other", "small"):
        both = facts["by_model"][name], unseen["models"][name]
        assert both[0]["units"] == both[1]["units"] and all(g["gain_ci95"][0] <= g["gain_ci95"][1] for g in both)
    assert facts["by_model"]["small"]["gain_ci95"][0] > 0, "what the small model's own steps show"
    shown = page(facts, title="x")
    assert "gain, the model left out too" in shown and "For a model that is not in these logs" in shown
    json.dumps(facts, allow_nan=False)


def test_one_model_leaves_nothing_to_learn_about_it(advice):
    assert advice.facts["left_out_models"] is None


@pytest.mark.parametrize("outcome", [None, True])
def test_ten_sessions_are_a_useful_page(outcome):
    few = import_logs_of([session(i, "m", hard=False, stuck=i % 2 == 0, success=outcome) for i in range(10)])
    facts = advise(few, Costs()).facts
    assert facts["verdict"] == "not_enough" and facts["sessions_needed"] >= 10
    assert "10 different tasks of at least 20" in facts["why"]
    assert facts["happened"]["tools"] == {"desk": 40} and facts["happened"]["repeated"] == 15 / 40
    shown = page(facts, title="<b>")
    assert "desk (40)" in shown and "&lt;b&gt;" in shown and "<b>" not in shown


def chose(code: Code) -> Decision:
    """That the teacher takes the step, for this reason."""
    return Decision("escalate", code, None, None, None, 1.0, (), "")


def observed(episodes, seed: int = 0):
    """As a ledger in mode observe: the teacher answered beside the SLM's draft, and differed on what is hard."""
    rng = np.random.default_rng(seed)
    found = []
    for e in episodes:
        if e.agent != "small":
            continue
        hard = e.goal.split()[0] in HARD
        steps = []
        for s in e.steps:
            other = bool(rng.random() < (0.8 if hard else 0.1))
            action = Action("something else") if other else s.choice.action
            choice = replace(s.choice, source="teacher", action=action, decision=chose("observe"))
            steps.append(replace(s, alike=not other, choice=choice))
        found.append(replace(e, steps=tuple(steps), success=None))
    return found


def test_drafts_beside_answers_are_learned_from_without_any_outcome(episodes):
    facts = advise(observed(episodes), Costs()).facts
    assert (facts["verdict"], facts["evidence"], facts["score"]) == ("route", "alike", "disagreement")
    low, high = facts["alike_share_ci95"]
    assert low < facts["alike_share"] < high and 0.6 < facts["alike_share"] < 0.8
    assert "would have done" in paragraph(facts) and facts["at_risk"] is not None


def routed(episodes, seed: int = 0):
    """The same in mode active: a router that knows where they differ escalates these, and few others."""
    rng = np.random.default_rng(seed)
    found = []
    for e in episodes:
        steps = []
        for s in e.steps:
            if rng.random() < (0.1 if s.alike else 0.8):
                s = replace(s, choice=replace(s.choice, decision=chose("risk_above")))
            else:
                own = replace(s.choice, source="slm", action=s.choice.candidates[0].action, decision=None)
                s = replace(s, alike=None, choice=own)
            steps.append(s)
        found.append(replace(e, steps=tuple(steps)))
    return found


def test_steps_that_the_router_chose_say_nothing_of_the_others(episodes):
    everything = observed(episodes)
    share = np.mean([s.alike for e in everything for s in e.steps])
    half = len(everything) // 2
    mixed = [*everything[:half], *routed(everything[half:])]
    facts = advise(mixed, Costs()).facts
    chosen = sum(s.choice.source == "teacher" for e in mixed[half:] for s in e.steps)
    assert facts["evidence"] == "alike" and facts["steps_used"] == 4 * half and chosen > 100
    assert facts["teacher_beside_drafts"] == {"counted": 4 * half, "chosen_by_router": chosen}
    assert facts["alike_share"] == pytest.approx(share, abs=0.06)
    assert f"({chosen} others, which the router chose to escalate, are left out)" in paragraph(facts)
    alone = advise(routed(everything), Costs()).facts
    assert alone["evidence"] is None and "that the router chose, which say nothing of the others" in alone["why"]
    drawn = [
        replace(e, steps=tuple(replace(s, choice=replace(s.choice, decision=chose("explore"))) for s in e.steps))
        for e in everything
    ]
    evidence = evidence_of(drawn, groups(drawn))
    assert evidence.kind == "alike" and 1 - evidence.labels["differs"].mean() == pytest.approx(share)


def test_of_steps_that_were_not_compared_as_many_are_at_risk(episodes):
    everything = observed(episodes)
    whole = evidence_of(everything, groups(everything))
    some = [
        replace(
            e,
            steps=tuple(
                replace(s, alike=s.alike, choice=s.choice)
                if s.t % 2
                else replace(s, alike=None, choice=replace(s.choice, features=None, candidates=()))
                for s in e.steps
            ),
        )
        for e in everything
    ]
    half = evidence_of(some, groups(some))
    assert len(half.rows) * 2 == len(whole.rows)
    risks = []
    for evidence in (whole, half):
        units = evidence.units({"differs": np.zeros(len(evidence.rows))}, np.zeros(len(evidence.rows), dtype=int))
        risks.append(evidence.at_risk(units, np.ones(len(units), dtype=bool)))
    differ = [[not s.alike for s in e.steps] for e in everything]
    assert risks[0] == np.mean([any(d) for d in differ]) and risks[1] == min(
        1.0, np.mean([2 * sum(d[1::2]) for d in differ])
    )


def test_steps_after_the_last_help_are_the_slms_own(episodes):
    e = episodes[0]
    helped = replace(e.steps[1], choice=replace(e.steps[1].choice, source="teacher"))
    assert own_steps(e) == [0, 1, 2, 3]
    assert own_steps(replace(e, steps=(e.steps[0], helped, *e.steps[2:]))) == [2, 3]
    assert differs(helped) is False and differs(e.steps[1]) is None
    other = replace(helped, choice=replace(helped.choice, action=Action("x", e.steps[1].choice.action.tool_calls[:0])))
    assert differs(other) is True


def test_a_session_that_was_helped_was_not_played_alone(episodes):
    """It is read after its last help, and says nothing of what the SLM solves."""
    small = [e for e in episodes if e.agent == "small"]
    half = len(small) // 2
    helped = [
        replace(
            e, success=True, steps=(replace(e.steps[0], choice=replace(e.steps[0].choice, source="teacher")), *e.steps[1:])
        )
        for e in small[half:]
    ]
    mixed = [*small[:half], *helped]
    advice = advise(mixed, Costs())
    facts, evidence = advice.facts, advice.evidence
    assert (facts["evidence"], facts["sessions_alone"], facts["sessions_helped"]) == ("outcomes", half, len(helped))
    solved = np.mean([e.success for e in small[:half]])
    assert facts["nulls"]["success"]["slm alone"] == pytest.approx(solved)
    assert f"{solved:.0%} of the {half} that one model played without help are solved" in paragraph(facts)
    assert len(evidence.rows) == 4 * half + 3 * len(helped) and len(evidence.unit_rows) == half
    assert evidence_of(helped, groups(helped)) is None


def test_the_models_can_be_named(episodes):
    facts = advise(episodes, Costs(), slms=["strong"], teacher="small").facts
    assert facts["slms"] == ["strong"] and facts["teacher"] == "small"


# The stronger model


def outcomes_of(solved: dict[str, dict[int, list[bool]]]):
    """Sessions without much in them, of model -> number of a task -> outcomes; each task is a group of its own."""
    base = import_logs_of([session(0, "m", hard=False, stuck=False, success=True, steps=1)])[0]
    return [
        replace(base, agent=model, success=success, task=Task(f"t{i}", f"t{i}", "recorded", f"t{i}"), goal=f"t{i}")
        for model, of_tasks in solved.items()
        for i, known in of_tasks.items()
        for success in known
    ]


def of_rate(tasks: range, solved: int) -> dict[int, list[bool]]:
    """The first of the tasks are solved."""
    return {i: [n < solved] for n, i in enumerate(tasks)}


def stronger(solved: dict[str, dict[int, list[bool]]], **options):
    episodes = outcomes_of(solved)
    return stronger_of(episodes, groups(episodes).group_E, **options)


def test_models_are_compared_on_the_tasks_that_they_share():
    """The higher rate is of easier tasks alone."""
    easy = {"cheap": of_rate(range(60), 48), "strong": {**of_rate(range(60), 54), **of_rate(range(60, 100), 4)}}
    found = stronger(easy)
    near = found.nearest
    assert (found.model, found.how, near.model, near.common_tasks, near.solved_by_stronger, near.solved) == (
        "strong", "outcomes", "cheap", 60, 0.9, 0.8,
    )  # fmt: skip
    assert near.difference == pytest.approx(0.1) and near.difference_ci95[0] < 0.1 < near.difference_ci95[1]


def test_several_records_of_a_task_count_as_one():
    many = {"a": {i: [i < 20] if i < 40 else [False] * 9 for i in range(50)}, "b": of_rate(range(50), 15)}
    near = stronger(many).nearest
    assert stronger(many).model == "a" and (near.common_tasks, near.solved_by_stronger, near.solved) == (50, 0.4, 0.3)


def test_of_several_models_none_may_be_better_on_what_they_share():
    logs = {
        "best": of_rate(range(100), 70), "easier": of_rate(range(60), 60), "weak": of_rate(range(100), 30),
        "elsewhere": of_rate(range(200, 225), 25),
    }  # fmt: skip
    logs["best"] |= of_rate(range(60), 60)
    logs["easier"] |= {59: [False]}
    found = stronger(logs)
    assert (found.model, found.nearest.model, found.compared_with) == ("best", "easier", 2)
    assert found.share_no_task == ("elsewhere",)
    assert not found.nearest.clear


def test_where_nothing_decides_the_options_are_named():
    apart = stronger({"a": of_rate(range(30), 20), "b": of_rate(range(30, 60), 10)})
    assert apart.model is None and "no two of these models share enough tasks (0 groups" in apart.why
    assert "--slm, --teacher" in apart.why
    pairs = {"a": of_rate(range(30), 20), "b": of_rate(range(30), 10)}
    pairs |= {"c": of_rate(range(30, 60), 20), "d": of_rate(range(30, 60), 10)}
    found = stronger(pairs)
    assert (found.model, found.undecided) == (None, ("a", "c"))
    assert "which of a, c is the stronger model cannot be said: they share 0 groups of tasks" in found.why
    equal = stronger({"a": of_rate(range(30), 15), "b": of_rate(range(32), 15)})
    assert equal.model is None and "each solves 50.0% of the 30 tasks that both played; name it (--teacher)" in equal.why
    turns = {"a": of_rate(range(60), 40), "b": of_rate(range(30, 90), 40), "c": {}}
    turns["a"] |= {i: [True] for i in range(30, 60)} | {i: [False] for i in range(30)}
    turns["b"] |= {i: [False] for i in range(30, 60)} | {i: [True] for i in range(60, 90)}
    turns["c"] = {i: [False] for i in range(60, 90)} | {i: [True] for i in range(30)}
    circle = stronger(turns)
    assert circle.undecided == ("a", "b", "c") and "each solves less than another one" in circle.why

    price = {name: validated(PriceSettings, {"input": usd, "output": usd}) for name, usd in (("a", 1), ("b", 2), ("c", 9))}
    priced = stronger(turns, prices=price)
    assert priced.undecided == ("a", "b", "c"), "the dearest one solves none of what another solves"
    assert "(--prices)" in circle.why and priced.why.endswith("name it (--teacher)")


def test_prices_settle_what_outcomes_leave_open():
    cheap, dear = (validated(PriceSettings, {"input": usd, "output": usd}) for usd in (1, 10))
    close = {"a": of_rate(range(60), 31), "b": of_rate(range(60), 30)}
    assert (stronger(close).model, stronger(close, prices={"a": cheap}).model) == ("a", "a")
    found = stronger(close, prices={"a": cheap, "b": dear})
    assert (found.model, found.how, found.nearest.model) == ("b", "prices", "a") and found.nearest.difference < 0
    clear = {"a": of_rate(range(60), 50), "b": of_rate(range(60), 20)}
    kept = stronger(clear, prices={"a": cheap, "b": dear})
    assert (kept.model, kept.how) == ("a", "outcomes")
    equal = {"a": of_rate(range(60), 30), "b": of_rate(range(60), 30)}
    assert stronger(equal).model is None and stronger(equal, prices={"a": dear, "b": cheap}).model == "a"


def test_how_the_stronger_model_was_chosen_is_said_and_written(log, tmp_path):
    done = run("advise", str(log), "--out", str(tmp_path / "advice"), "--json")
    line = next(line for line in done.stdout.splitlines() if line.startswith("stronger "))
    facts = json.loads(done.stdout.splitlines()[-1])["stronger"]
    near = facts["nearest"]
    assert (facts["model"], facts["how"], near["model"], near["common_tasks"]) == ("strong", "outcomes", "small", 200)
    wanted = f"of the 200 tasks that it shares with small, it solves {near['solved_by_stronger']:.1%} and that one "
    assert wanted + f"{near['solved']:.1%}, each task counted once (" in line and line.endswith("; --teacher names another")
    assert "is taken as the stronger model" in (tmp_path / "advice" / "advice.html").read_text()
    assert json.loads((tmp_path / "advice" / "advice.json").read_text())["stronger"] == facts
    named = run("advise", str(log), "--teacher", "strong", "--out", str(tmp_path / "named"))
    assert "\nstronger " not in f"\n{named.stdout}"


def test_models_and_sessions_that_are_left_out_are_said(episodes, monkeypatch):
    monkeypatch.setattr("r2v.studies.evidence.MOST_STEPS", 400)
    other = [replace(e, agent="other", task=replace(e.task, id=f"other {e.task.id}")) for e in episodes[:30]]
    facts = advise([*episodes, *other], Costs()).facts
    assert "; without a common task, so left out: other; --teacher names another" in chosen_line(facts)
    assert "small alone solves" in paragraph(facts) and "of 100 sessions (drawn from 200), strong" in paragraph(facts)


def test_a_model_that_cannot_be_chosen_is_in_the_verdict(tmp_path):
    easy = [session(i, "one", hard=False, stuck=False, success=bool(i % 2)) for i in range(100)]
    other = [session(i, "two", hard=True, stuck=False, success=bool(i % 3)) for i in range(100, 200)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, [*easy, *other])))
    done = run("advise", str(tmp_path / "log.jsonl"), "--out", str(tmp_path / "advice"), "--json")
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["verdict"] == "not_enough" and facts["stronger"]["model"] is None
    assert "share enough tasks (0 groups" in done.stdout and "(--slm, --teacher)" in facts["why"]


# Money


def test_what_routing_saves_is_in_money_where_prices_are_known(episodes, tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text("small: {input: 0.5, output: 1.5}\nteacher: {input: 5, output: 15}\n")
    facts = advise(episodes, Costs(read_prices(path), days=2.0)).facts
    assert facts["priced"] and facts["usd_a_day_teacher_alone"] == pytest.approx(facts["usd_teacher_alone"] / 2)
    strong = [tokens_of(e) for e in episodes if e.agent == "strong"]
    assert facts["usd_teacher_alone"] == pytest.approx(sum(t @ np.array([5e-6, 15e-6]) for t in strong))
    assert facts["usd_saved_share"] == pytest.approx(1 - facts["usd_routed"] / facts["usd_teacher_alone"])
    assert "a day" in paragraph(facts)
    free = advise(episodes, Costs()).facts
    assert not free["priced"] and facts["usd_saved_share"] < free["usd_saved_share"]


def test_a_wrong_price_is_one_line(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text("small: {input: -1, output: 2}\n")
    with pytest.raises(SettingsError, match=r"prices\.yaml: small"):
        read_prices(path)


def test_prices_of_a_model_that_is_not_there_are_refused(log, tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text("small: {input: 1, output: 2}\nStrogn: {input: 5, output: 15}\n")
    done = run("advise", str(log), "--prices", str(path), "--out", str(tmp_path / "advice"))
    assert isinstance(done.exception, SettingsError)
    assert str(done.exception).startswith(
        f"{path}: the logs have no model 'Strogn'; they have strong, small; slm and teacher"
    )
    assert "\n" not in str(done.exception) and not (tmp_path / "advice").exists()
    path.write_text("smal: {input: 1, output: 2}\n")
    refused = run("fit", str(log), "--prices", str(path), "--out", str(tmp_path / "router"))
    assert isinstance(refused.exception, SettingsError) and "they have small, strong" in str(refused.exception)
    path.write_text("slm: {input: 1}\n")
    first = run("advise", str(tmp_path / "none"), "--prices", str(path), "--out", str(tmp_path / "advice"))
    assert "prices.yaml: slm" in str(first.exception), "a wrong file of prices is found before logs are read"


def test_a_price_that_is_missing_is_named(episodes):
    facts = advise(episodes, Costs({"strong": validated(PriceSettings, {"input": 5, "output": 15})})).facts
    assert not facts["priced"] and facts["unpriced"] == ["small"]
    assert "to see money, give the price of small, too (--prices)" in paragraph(facts)


# The commands


def run(*arguments: str):
    return CliRunner().invoke(cli, list(arguments))


def test_advise_ends_with_its_verdict_and_leaves_a_page(log, tmp_path):
    done = run("advise", str(log), "--out", str(tmp_path / "advice"), "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout.splitlines()[-1])
    wanted = {"verdict", "share_escalated", "gain_over_random", "gain_ci95", "usd_saved_share", "sessions_needed"}
    assert wanted | {"auroc_equal_step"} <= facts.keys() and facts["verdict"] == "route"
    assert json.loads((tmp_path / "advice" / "advice.json").read_text())["verdict"] == "route"
    assert "<svg" in (tmp_path / "advice" / "advice.html").read_text()
    assert "\n\n\n" not in done.output and "Next: r2v fit on the same logs" in done.output


def test_progress_is_shown_while_logs_are_read_and_measured(log, tmp_path, monkeypatch):
    monkeypatch.setattr("r2v.runtime.progress.LINE_EVERY_S", 0.0)
    done = run("advise", str(log), "--out", str(tmp_path / "advice"))
    assert "  read: 1 sessions so far\n" in done.stderr and "  read: 400 sessions so far\n" in done.stderr
    assert "  measure: 1/20, about " in done.stderr
    assert "  measure: 20/20, about 0 s left other tasks left out\n" in done.stderr
    assert "so far" not in done.stdout and "measure:" not in done.stdout


def test_folds_that_were_fitted_are_counted(episodes):
    """Of several models those are counted, too, on which each is left out."""
    three = [replace(e, agent=f"small {i // 2 % 2}") if e.agent == "small" else e for i, e in enumerate(episodes)]
    told: list[tuple[int, int | None, str]] = []
    advise(three, Costs(), report=lambda done, total, note="": told.append((done, total, note)))
    assert [done for done, *_ in told] == [*range(1, 41)] and {total for _, total, _ in told} == {40}
    assert [note for *_, note in told][:10:9] == ["tasks left out"] * 2 and told[-1][2] == "models left out"


def test_fit_writes_the_router_that_was_measured(log, episodes, tmp_path):
    out = tmp_path / "router"
    done = run("fit", str(log), "--out", str(out), "--json")
    assert done.exit_code == 0 and "Next: r2v fit" not in done.output, done.output
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["ready"] and facts["router"] == str(out) and json.loads((out / "fit.json").read_text())["ready"]
    router = load_router(out)
    assert isinstance(router, Reading) and router.hands_over and router.fitted_with.verifier == "tool_calls"
    routes = []
    for e in episodes:
        if e.agent == "small":
            decisions = [
                decide(router, c, s.choice.candidates, s.choice.scores) for c, s in zip(e.contexts(50), e.steps, strict=True)
            ]
            routes.append(any(d.route == "takeover" for d in decisions))
    assert np.mean(routes) == pytest.approx(facts["share_escalated"], abs=0.12)
    share = facts["share_from_threshold"]
    assert share in [line["share"] for line in facts["table"] if line["threshold"] == router.threshold]
    assert np.mean(routes) == pytest.approx(share, abs=0.05)  # the table's scores are of fits without the session
    assert f"asks     from {facts['score']} {router.threshold:.3f} on: about {share:.0%} of these sessions\n" in done.stdout
    weights = (out / "weights.safetensors").stat().st_size
    assert weights < 700_000
    # The settings of `r2v init` take the router once they are changed as the last line says.
    assert f"route: {{router: {out}, mode: shadow}} in the gateway's settings, and no k" in done.stdout
    assert run("init", str(tmp_path / "r2v.yaml")).exit_code == 0
    text = (tmp_path / "r2v.yaml").read_text()
    text = text.replace("router: recorded", f"router: {out}").replace("mode: observe", "mode: shadow")
    (tmp_path / "r2v.yaml").write_text("\n".join(line for line in text.splitlines() if not line.startswith("  k:")))
    assert load_configured(load(tmp_path / "r2v.yaml", GatewaySettings).route).router.fitted_with == router.fitted_with


def test_the_threshold_is_on_the_scale_of_the_served_scores(tmp_path):
    """Readers that are too sure are calibrated, each by its own slope; their threshold is of what they say afterwards."""
    draw, lines = np.random.default_rng(0), []
    for i in range(300):
        hard, stuck = draw.random() < 0.3, draw.random() < 0.4
        alone, strong = 0.55 - (0.25 if stuck else -0.15), 0.8 - (0.25 if hard else 0)
        lines.append(session(i, "small", hard=hard, stuck=stuck, success=bool(draw.random() < alone)))
        lines.append(session(i, "strong", hard=hard, stuck=False, success=bool(draw.random() < strong)))
    (tmp_path / "weak.jsonl").write_text("\n".join(map(json.dumps, lines)))
    episodes = import_logs(tmp_path / "weak.jsonl", "openai-jsonl")[0]
    advice = advise(episodes, Costs(), share=0.2)
    router = router_of(advice, FittedWith(None, 50, None))
    assert router.teacher is not None and router.teacher.calibration.slope < 0.6
    small = [e for e in episodes if e.agent == "small"]
    highest = [
        max(router.score_of(c, s.choice.action, s.choice.features) for c, s in zip(e.contexts(50), e.steps, strict=True))
        for e in small
    ]
    assert np.mean(np.array(highest) >= router.threshold) == pytest.approx(0.2, abs=0.04)


def test_the_table_has_the_thresholds_of_the_router(advice, episodes):
    """What a line says that a threshold escalates is what the served router escalates there."""
    router = router_of(advice, fitted_with(episodes, None))
    table = advice.facts["table"]
    assert router.threshold in [line["threshold"] for line in table] and router.threshold == advice.facts["threshold"]
    small = [e for e in episodes if e.agent == "small"]
    highest = [
        max(router.score_of(c, s.choice.action, s.choice.features) for c, s in zip(e.contexts(50), e.steps, strict=True))
        for e in small
    ]
    for line in table:
        assert np.mean(np.array(highest) >= line["threshold"]) == pytest.approx(line["share"], abs=0.12)


def test_what_one_split_shows_and_another_does_not_takes_more_than_one_session(advice):
    shown = Gain(0.25, 0.08, (0.03, 0.13), (0.01, 0.15), 60)
    other = Gain(0.25, 0.05, (0.0, 0.1), (-0.01, 0.11), 60)
    assert shown.groups_needed < 60 and other.groups_needed == 87
    found = verdict_of(advice.evidence, shown, other, {})
    assert found["verdict"] == "no_route" and found["sessions_needed"] == np.ceil(27 * 200 / 60)


@pytest.mark.parametrize(
    ("text", "line"),
    [(None, "a file of verdicts holds"), ("verdicts: 3", "must be a list"), ("version: 1", "must be a list")],
)
def test_a_wrong_file_of_verdicts_is_one_line(log, tmp_path, text, line):
    path = tmp_path / "verdicts.yaml"
    if text is not None:
        path.write_text(text)
    done = run("advise", str(log), "--verdict", str(path), "--out", str(tmp_path / "advice"))
    assert isinstance(done.exception, SettingsError) and line in str(done.exception)


def test_fit_promises_a_router_only_where_the_logs_hold_evidence(tmp_path):
    few = [session(i, "m", hard=False, stuck=False, success=None) for i in range(10)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, few)))
    arguments = ("fit", str(tmp_path / "log.jsonl"), "--out", str(tmp_path / "router"))
    done = run(*arguments)
    assert done.exit_code == 2 and "no router written (not_enough)\n" in done.output and "--unproven" not in done.output
    asked = run(*arguments, "--unproven")
    assert asked.exit_code == 2 and "(not_enough); --unproven needs evidence, too: 10 different tasks" in asked.output


def test_fit_writes_nothing_that_may_lose(tmp_path):
    log = paired(tmp_path / "log.jsonl", noise=True, tasks=120)
    done = run("fit", str(log), "--out", str(tmp_path / "router"), "--json")
    assert done.exit_code == 2 and not (tmp_path / "router").exists()
    assert json.loads(done.stdout.splitlines()[-1])["ready"] is False
    forced = run("fit", str(log), "--out", str(tmp_path / "router"), "--share", "0.23", "--unproven", "--json")
    assert forced.exit_code == 0 and json.loads((tmp_path / "router" / "fit.json").read_text())["ready"] is False


def test_a_model_that_is_not_in_the_logs_is_one_line(log):
    done = run("advise", str(log), "--teacher", "stronk")
    assert done.exit_code != 0 and "has no model 'stronk'; it has strong, small" in str(done.exception)
    done = run("advise", str(log), "--teacher", "small", "--slm", "small")
    assert done.exit_code != 0 and "--slm and --teacher both name small" in str(done.exception)


def test_a_candidate_is_read_where_the_teacher_answered(episodes):
    """A reader sees what the SLM would have done, in training as in service."""
    from r2v.learning.reading import slm_action

    step = episodes[0].steps[0]
    mine = Candidate(Action("mine"), None, None, NO_USAGE)
    choice = replace(step.choice, source="teacher", action=Action("the teacher's"), candidates=(mine,), scores=(0.5,))
    assert slm_action(replace(step, choice=choice)) == Action("mine")


def test_long_contexts_have_features_of_their_ends():
    observations = tuple(f"page {i} " + "lorem ipsum " * 400 for i in range(20))
    context = Context("find lorem", observations, tuple(Action(f"read {i}") for i in range(19)), 50)
    candidate = (Candidate(Action("read 20"), None, None, NO_USAGE),)
    found = featurise(context, candidate, (0.5,))
    values = dict(zip(FEATURES, found.values, strict=True))
    assert values["context_length"] == pytest.approx((sum(map(len, observations)) + 19 * 6 + 10) / 10_000, rel=0.01)
    assert values["goal_in_last"] == 0.5 and values["unseen_words"] < 0.1
