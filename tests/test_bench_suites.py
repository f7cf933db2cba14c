"""The bench's suites: KnowAgent in the household engine, RouteLLM's questions, the household with fresh tasks."""

from __future__ import annotations

import json
import lzma
import tarfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from r2v.bench.prices import LIST
from r2v.bench.suites import household, knowagent
from r2v.bench.suites.knowagent import KNOWAGENT, Takeover, loaded, rebuild, transcript
from r2v.bench.suites.queries import QUERIES
from r2v.core.errors import SettingsError, StageError
from r2v.core.types import NO_USAGE, Action, Candidate, Usage
from r2v.domains.household.env import Household
from r2v.domains.household.expert import next_command, parse_sentence
from r2v.domains.household.rebuilt import Games, Rebuilt, normal, rebuilt
from r2v.domains.household.rules import is_won
from r2v.domains.household.scenes import SceneSettings, generate
from r2v.domains.household.texts import room
from r2v.evaluation.curves import resample_BT
from r2v.evaluation.outcomes import Row, gather
from r2v.evaluation.results import Played
from r2v.logs.importing import import_logs
from r2v.routers.r2v import R2V

FAMILY = "pick_clean_then_place_in_recep"
PUT = SceneSettings(house="small", receptacles=(5, 8), objects=(6, 11), dialect="put")


def quiet(done: int, total: int, note: str = "") -> None:
    assert 0 < done <= total


# -- KnowAgent ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    return generate("a game", FAMILY, PUT).world()


@pytest.fixture(scope="module")
def recorded(world, tmp_path_factory):
    """Three recordings of one game: one that looks around and gives up, one whose answer was forged, one that is solved."""
    look = [f"go to {world.names[r]}" for r in world.receptacles[:4]]
    lines = [line(world, "D0", look, False), line(world, "D1", look, False), line(world, "D2", by_expert(world, look), True)]
    lines[1]["steps"][2]["observation"] = "On the shelf 9, you see a vase 1."
    return imported(lines, tmp_path_factory.mktemp("knowagent"))


def imported(lines, folder):
    (folder / "episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return import_logs(folder / "episodes.jsonl", "knowagent-alfworld")[0]


def line(world, iteration, commands, success):
    game, steps = Household(world), []
    for command in commands:
        steps.append({"action": command, "observation": normal(game.play(command)[0])})
    return {
        "task": f"{FAMILY}-1/trial_1", "model": "llama-2-13b", "iteration": iteration, "success": success, "steps": steps,
        "intro": f"{room(world, world.start)}\nYour task is to: {world.sentence}",
    }  # fmt: skip


def by_expert(world, before):
    """These commands, and the expert's until the game is won."""
    game, belief, done, won = Household(world), knowagent.Belief(), [], False
    belief.read_room(room(world, world.start))
    while not won:
        done.append(before[len(done)] if len(done) < len(before) else next_command(parse_sentence(world.sentence), belief))
        said, _, won = game.play(done[-1])
        belief.read(done[-1], normal(said))
    return done


@pytest.fixture(scope="module")
def suite(world, recorded):
    return loaded(recorded, {recorded[0].task.id: (Rebuilt(world, [set(), {2}, set()], 0), recorded)}, quiet)


def test_a_recording_that_the_engine_does_not_repeat_is_left_out_by_name(suite, recorded):
    assert [episode.agent for episode in suite.episodes] == ["llama-2-13b D0", "llama-2-13b D2"]
    assert suite.fidelity == {
        "replayed": 2, "of": 3, "share": 2 / 3, "left_out": [f"{FAMILY}-1/trial_1 (llama-2-13b D1)"]
    }  # fmt: skip
    assert suite.group_E.tolist() == [0, 0]
    steps = sum(len(episode.steps) for episode in recorded)
    assert suite.facts["answers_predicted"] == suite.facts["answers_predicted_right"] == steps - 1  # one built the world


def test_a_recording_whose_end_differs_is_left_out(world, recorded, tmp_path):
    gave_up, _, solved = recorded
    goes_on = imported([line(world, "D3", [*by_expert(world, []), "look"], True)], tmp_path)
    wrong = [replace(gave_up, success=True), replace(solved, success=False), *goes_on]
    assert not any(knowagent.replay(world, episode, set())[0] for episode in wrong)
    assert knowagent.replay(world, solved, set())[0]


def test_the_expert_goes_on_from_the_state_that_the_weak_model_reached(suite, world):
    """Asked at once or one by one, in any order; and it is what the expert does in a game of its own."""
    asked = [(e, escalated) for e in (1, 0) for escalated in ((3,), (), (0,), (2,))]
    at_once = suite.play(asked, quiet)
    one_by_one = [Takeover(suite.episodes, suite.play.worlds)([key], quiet)[0] for key in asked]
    assert at_once == one_by_one == suite.play(asked, quiet)
    of = dict(zip(asked, at_once, strict=True))
    commands = [command for command, _ in transcript(suite.episodes[0])]
    for t in (0, 2, 3):
        assert (of[0, (t,)].success, of[0, (t,)].weak_calls) == (1, t + 1)  # what it wrote at step t is thrown away
        assert of[0, (t,)].strong_calls == len(by_expert(world, commands[:t])) - t
    assert (of[0, ()].success, of[1, ()].success, of[0, ()].strong_calls, of[0, ()].weak_calls) == (0, 1, 0, 4)


def test_the_expert_has_what_is_left_of_the_step_limit(suite, world, monkeypatch):
    needed = len(by_expert(world, [c for c, _ in transcript(suite.episodes[0])][:3]))
    for limit, success in ((needed, 1), (needed - 1, 0)):
        monkeypatch.setattr(knowagent, "LIMIT", limit)
        (outcome,) = Takeover(suite.episodes, suite.play.worlds)([(0, (3,))], quiet)
        assert (outcome.success, outcome.strong_calls) == (success, limit - 3)


def test_each_call_reads_all_before_it(suite, world):
    """In USD per million tokens of four characters: no model of the two has a price for what it reads again."""
    weak, strong = LIST["llama-2-13b"], LIST["gpt-4"]
    (alone, helped) = suite.play([(0, ()), (0, (3,))], quiet)
    commands = by_expert(world, [c for c, _ in transcript(suite.episodes[0])][:3])
    read, game, usd, of_weak = len(suite.episodes[0].steps[0].observation.text), Household(world), 0.0, 0.0
    for t, command in enumerate(commands):
        if t <= 3:
            draft = transcript(suite.episodes[0])[t][0]
            of_weak += read * weak.input + len(draft) * weak.output
        if t >= 3:
            usd += read * strong.input + len(command) * strong.output
        read += len(command) + len(normal(game.play(command)[0]))
    assert alone.usd == pytest.approx(of_weak / 4e6)
    assert helped.usd == pytest.approx((usd + of_weak) / 4e6)


ROOMS = ("-1", "-14", "-23", "-212")
"""Floor plans, which end the names of games."""


@pytest.fixture
def some_rooms(games, shared_data, tmp_path) -> Path:
    """The recorded episodes and the game files of these rooms, as they lie in the shared data."""
    for name in (knowagent.LOG, knowagent.GAMES):
        (tmp_path / name).parent.mkdir(parents=True)
    with lzma.open(shared_data / knowagent.LOG, "rt") as file, lzma.open(tmp_path / knowagent.LOG, "wt") as few:
        few.writelines(text for text in file if json.loads(text)["task"].split("/")[0].endswith(ROOMS))
    with tarfile.open(tmp_path / knowagent.GAMES, "w:xz") as archive:
        for path in sorted(games.rglob("*-*")):
            if path.name.endswith(ROOMS):
                archive.add(path, path.relative_to(games))
    return tmp_path


def test_real_games_are_rebuilt_and_can_be_won(some_rooms, games):
    """What the goal needs is hidden where nobody looked, and the recordings stay as they were."""
    suite = KNOWAGENT.load(some_rooms, quiet)
    assert suite.fidelity["replayed"] >= 50 and suite.facts["answers_predicted"] > 500
    starts = [(e, (0,)) for e in range(len(suite.episodes))]
    alone = [outcome.success for outcome in suite.play([(e, ()) for e, _ in starts], quiet)]
    assert alone == [float(episode.success) for episode in suite.episodes]
    assert np.mean([outcome.success for outcome in suite.play(starts, quiet)]) > np.mean(alone) + 0.2

    at_hand, hidden = Games(games / "json_2.1.1/valid_seen"), 0
    for task, (game, played) in rebuild(at_hand, suite.episodes).items():
        if game.hidden:
            hidden += game.hidden
            like = at_hand.of_room(task, room(game.world, game.world.start))
            seen = rebuilt(at_hand, task, like, [transcript(episode) for episode in played])
            assert solvable(game.world) and not solvable(seen.world)
    assert hidden > 0


def test_what_is_hidden_is_not_where_the_goal_wants_it(games):
    """Games at which nobody looked: all that the goal needs is hidden."""
    at_hand = Games(games / "json_2.1.1/valid_train")
    for task, like in islice(at_hand.paths.items(), 60):
        game = rebuilt(at_hand, task, like, [[]], hide=True)
        assert game.hidden and solvable(game.world) and not is_won(game.world, game.world.start)


def solvable(world):
    goal = world.goal
    lying = [world.type_of[thing] for things in world.start.contents.values() for thing in things]
    lamp = goal.kind != "light" or goal.receptacle_type in lying
    return lamp and lying.count(goal.object_type) >= (2 if goal.kind == "two" else 1)


# -- RouteLLM -----------------------------------------------------------------------------------------------------------

QUESTIONS = [
    ("mmlu", "law", 1, "May he keep the horse?\nA. Yes\nB. No\nAnswer:", True, False),
    ("mmlu", "anatomy", 2, "Which bone is longest?\nA. Femur\nB. Stapes\nAnswer:", False, True),
    ("mmlu", "biology", 3, "Which bone is longest?\nA. Femur\nB. Stapes\nAnswer:", True, True),
    ("gsm8k", "gsm8k", 4, "A hen lays two eggs a day; how many in a week?", False, True),
]


@pytest.fixture
def questions(tmp_path) -> Path:
    keys = ("dataset", "subject", "idx", "prompt", "weak_correct", "strong_correct")
    (tmp_path / "queries").mkdir()
    with lzma.open(tmp_path / "queries/routellm.jsonl.xz", "wt") as file:
        file.write("\n".join(json.dumps(dict(zip(keys, row, strict=True))) for row in QUESTIONS))
    return tmp_path


def test_a_question_is_a_session_of_one_step_without_a_draft(questions):
    suite = QUERIES.load(questions, quiet)
    assert [episode.goal for episode in suite.episodes] == [row[3] for row in QUESTIONS]
    assert [len(episode.steps) for episode in suite.episodes] == [1, 1, 1, 1]
    assert all(e.steps[0].choice.action == Action("") and e.steps[0].choice.features for e in suite.episodes)
    assert suite.group_E.tolist() == [0, 1, 1, 2]  # the same question in two subjects
    weak, strong = (suite.play([(e, escalated) for e in range(4)], quiet) for escalated in ((), (0,)))
    assert [outcome.success for outcome in weak] == [1, 0, 1, 0]
    assert [outcome.success for outcome in strong] == [0, 1, 1, 1]
    assert {(o.weak_calls, o.strong_calls) for o in weak} == {(1, 0)}
    assert {(o.weak_calls, o.strong_calls) for o in strong} == {(0, 1)}
    read = len(QUESTIONS[0][3])
    assert weak[0].usd == pytest.approx((read * 0.6 + 0.6) / 4e6) and strong[0].usd == pytest.approx((read * 10 + 30) / 4e6)


def test_the_questions_drawn_are_always_the_same(questions, monkeypatch):
    monkeypatch.setattr("r2v.bench.suites.queries.SAMPLE", 2)
    first, second = (QUERIES.load(questions, quiet) for _ in range(2))
    assert [e.task.id for e in first.episodes] == [e.task.id for e in second.episodes] and len(first.episodes) == 2
    assert (first.facts["questions"], first.facts["drawn"]) == (4, 2)
    outcomes = first.play([(0, (0,)), (1, (0,))], quiet)  # what is drawn keeps its own outcome
    assert [o.success for o in outcomes] == [
        float(row[5]) for row in QUESTIONS if row[3] in {e.goal for e in first.episodes}
    ][:2]


def test_real_questions(shared_data):
    suite = QUERIES.load(shared_data, quiet)
    weak, strong = (suite.play([(e, x) for e in range(4000)], quiet) for x in ((), (0,)))
    assert len(suite.episodes) == 4000 and 3900 < len(set(suite.group_E.tolist())) < 4000
    assert np.mean([o.success for o in strong]) > np.mean([o.success for o in weak]) + 0.1


@pytest.mark.parametrize("suite", [KNOWAGENT, QUERIES])
def test_records_that_are_not_there_are_named(suite, tmp_path):
    with pytest.raises(SettingsError, match=r"jsonl\.xz is not there; it is made of .*github\.com"):
        suite.load(tmp_path, quiet)


# -- the household with fresh tasks -------------------------------------------------------------------------------------


def test_it_needs_a_run_of_the_household(tmp_path):
    with pytest.raises(SettingsError, match=r"make one with `r2v run examples/household\.yaml --out RUN`"):
        household.bench(None)
    with pytest.raises(StageError, match="is not a run"):
        household.bench(tmp_path)
    other = "version: 1\nenvironment: {kind: humaneval}\nslm: {model: {path: x}}\n"
    chat = "teacher: {kind: chat, base_url: http://localhost:1/v1, model: m}\n"
    (tmp_path / "settings.yaml").write_text(other + chat)
    with pytest.raises(SettingsError, match="of the domain humaneval"):
        household.bench(tmp_path)


TASKS = ("a", "b", "c", "d")


def outcomes(success, asked):
    """Four tasks, one seed, ten steps each."""
    rows = [
        Row(task, 1, "none", won, False, 10, 10, calls, tuple(range(calls)), (calls, 0, 0))
        for task, won, calls in zip(TASKS, success, asked, strict=True)
    ]
    return gather(rows, TASKS, (1,), horizon=10)


def test_a_router_is_shown_beside_random_and_step_0_at_its_share():
    alone, teacher = outcomes((False, False, False, True), (0,) * 4), outcomes((True, True, False, True), (10,) * 4)
    mine, at_random = outcomes((True, True, False, True), (5, 5, 0, 0)), outcomes((False, True, False, True), (5,) * 4)
    played = {
        "slm_only": Played(alone, None), "llm_only": Played(teacher, None),
        "random": Played(at_random, 0.5, (0.5,), (at_random,)), "mine": Played(mine, 0.1, (0.1,), (mine,)),
    }  # fmt: skip
    risk_N = np.array([0.2, 0.9, 0.6, 0.1])
    found = household.table(played, dict.fromkeys(played, 0.3), risk_N, resample_BT(4, 50, 0))
    rows = {row.pop("router"): row for row in found["rows"]}
    assert rows["mine"].keys() == {"share_strong", "success", "ci95", "usd_per_solved"}
    assert (rows["mine"]["share_strong"], rows["mine"]["success"]) == (0.25, 0.75)
    assert rows["mine"]["usd_per_solved"] == pytest.approx(0.4)
    assert list(found["nulls"]) == ["mine"]
    nulls = found["nulls"]["mine"]
    assert nulls["random"]["success"] == pytest.approx(0.375)  # half way between .25 without calls and .5 at a share of .5
    assert nulls["step_0"]["success"] == 0.5  # a quarter of the episodes: b, which the teacher solves
    assert nulls["step_0"]["gain"] == 0.25
    low, high = nulls["step_0"]["ci95"]
    assert low < 0.25 < high
    assert household.handed_over(alone, teacher, risk_N, 0.375).tolist() == [0, 1, 0, 1]  # c is no use
    assert household.handed_over(alone, teacher, risk_N, 0.625).tolist() == [0.5, 1, 0, 1]


def test_an_episode_that_broke_before_its_first_step_is_not_handed_over(recorded):
    assert household._first_risk(R2V(risk=None), replace(recorded[0], steps=())) == 0


def test_drafts_are_paid_beside_the_expert(recorded):
    gave_up = recorded[0]
    drafts = tuple(Candidate(Action(text), None, None, NO_USAGE) for text in ("look", "inventory"))
    choice = replace(gave_up.steps[0].choice, action=Action("look"), candidates=drafts, slm=Usage(2), teacher=Usage(1))
    one = replace(gave_up, steps=(replace(gave_up.steps[0], choice=choice),))
    read = len(one.goal) + len(one.steps[0].observation.text)
    expected = 2 * read * 0.2 + len("lookinventory") * 0.2 + read * 30 + len("look") * 60
    assert household.cost(one) == pytest.approx(expected / 4e6)


def test_some_sessions_are_whole_groups():
    group_E = np.repeat(np.arange(40), np.arange(40) % 4 + 1)
    drawn = knowagent.some(group_E, 30)
    assert 30 <= len(drawn) < 34 and drawn == knowagent.some(group_E, 30)
    kept = set(group_E[drawn].tolist())
    assert drawn == [i for i, group in enumerate(group_E) if group in kept]
    assert knowagent.some(group_E, 1000) == list(range(len(group_E)))
