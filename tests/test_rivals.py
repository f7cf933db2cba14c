"""Rules of other systems: each escalates where its documentation says, and its folder decides the same."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from r2v.core.errors import SettingsError, StageError
from r2v.core.features import FEATURES, featurise
from r2v.core.reading import FIELDS, ROOM, Reader
from r2v.core.types import (
    Action,
    Candidate,
    Choice,
    Context,
    Episode,
    Features,
    Member,
    Memory,
    Observation,
    Step,
    Task,
    ToolCall,
    Usage,
)
from r2v.evaluation.branches import Branch
from r2v.learning.settings import RouterSettings
from r2v.routers import BUILT_IN, RIVALS, load_router, router_class
from r2v.routers.base import FittedWith, RouterBase
from r2v.routers.fit_data import FitData
from r2v.routers.reading_benefit import ReadingBenefit
from r2v.routers.rivals.advisor import Advisor
from r2v.routers.rivals.frugalgpt import FrugalGPT
from r2v.routers.rivals.lemonade_stall import LemonadeStall
from r2v.routers.rivals.litellm_stall import LiteLLMStall
from r2v.routers.rivals.plano_price import PlanoPrice
from r2v.routers.rivals.signals import CRITICAL, HARD, SOFT, finishes, kind, severity, stuck
from r2v.routers.rivals.switchyard_stage import SwitchyardStage
from r2v.routers.rivals.vllm_sr_session import VLLMSRSession

FINE = Features((0.0,) * len(FEATURES), (False,) * len(FEATURES))
RISKY = replace(FINE, present=tuple(name == "verifier_best" for name in FEATURES))
"""To a reader of `weighted`."""


def call(name: str, arguments: str = "{}") -> Action:
    return Action(f"{name} {arguments}", (ToolCall(name, arguments),))


READ, WRITE, RUN = call("read_file"), call("write_file"), call("bash", '{"command": "make"}')


def session(*steps: tuple[Action, str], proposed: Action = READ, goal: str = "mend it") -> Context:
    """What is known after these actions and their results."""
    return Context(goal, ("start", *(seen for _, seen in steps)), tuple(action for action, _ in steps), 50, proposed)


def route(router: RouterBase, context: Context, memory: Memory | None = None, features: Features = FINE) -> str:
    return router.decide(context, features, memory or Memory(), seed=0).route


def weighted(verifier_best: float, bias: float = 0.0) -> Reader:
    """Log-odds by whether the verifier's best score is known, and a bias; texts count nothing."""
    bins = np.full((1, 5), verifier_best)
    ends = np.zeros((2, len(FIELDS)))
    return Reader(("verifier_best",), np.arange(4.0)[None], bins, np.zeros(ROOM), ends, bias)


def test_they_have_short_names_beside_those_of_runs():
    assert not set(RIVALS) & set(BUILT_IN)
    for name in RIVALS:
        cls = router_class(name)
        assert cls.name == name and len(cls.cites) > 30 and cls.__doc__
        assert re.fullmatch("#[0-9a-f]{6}", cls.colour)
    assert {router_class(name).needs for name in RIVALS} == {
        frozenset(), frozenset({"branches"}), frozenset({"branches", "pool"}),
    }  # fmt: skip
    with pytest.raises(SettingsError, match="did you mean frugalgpt"):
        router_class("frugal_gpt")


@pytest.mark.parametrize(
    ("result", "found"),
    [
        ("all 12 tests pass", 0.0),
        ("make: exit code 2", SOFT),
        ("exited with code 1\nTraceback (most recent call last)", HARD),
        ("Error executing query: no such table", HARD),
        ("x" * 5000 + " ValueError: failed", HARD),
        ("x" * 2000 + " error " + "x" * 2000, 0.0),  # the middle of a long result is not read
        ("connect: Connection refused", CRITICAL),
    ],
)
def test_a_failed_result_is_as_bad_as_it_says(result, found):
    assert severity(result) == found


def test_calls_read_write_or_plan_by_their_first_known_word():
    found = {
        "read": [READ, call("get_user_details"), call("bash", '{"command": "grep -n x a.py"}'), Action("SELECT * FROM t")],
        "write": [WRITE, call("str_replace_editor"), call("send_money"), Action("UPDATE t SET a = 1")],
        "plan": [call("TodoWrite")],
        "other": [RUN, Action("go to shelf 1")],
    }
    assert {name: {kind(action) for action in actions} for name, actions in found.items()} == {n: {n} for n in found}


def test_an_end_is_a_submission_or_words_after_calls():
    words = Action("All is done.")
    assert finishes(session((READ, "text"), proposed=words))
    assert not finishes(session(proposed=words))  # it may be an agent that never calls tools
    assert not finishes(session((Action("SELECT 1"), "1"), proposed=words))
    assert finishes(session((Action("SELECT 1"), "1"), proposed=Action("submit")))
    assert finishes(session(proposed=Action("<thought> so </thought> <solution> 4 </solution>")))
    assert not finishes(session((READ, "text")))


def test_switchyard_needs_more_than_one_full_signal():
    router = SwitchyardStage()
    failed = (RUN, "error: it broke")
    assert route(router, session()) == "continue"
    early = session(failed)
    assert router.signal(early) == pytest.approx(np.tanh(0.5)) and route(router, early) == "continue"
    churning = session(*[(RUN, "fine")] * 4)
    assert router.signal(churning) == pytest.approx(np.tanh(0.5)) and route(router, churning) == "continue"
    both = session(*[(RUN, "fine")] * 3, failed)
    assert router.signal(both) == pytest.approx(np.tanh(1.0)) and route(router, both) == "escalate"
    producing = session(*[(RUN, "fine")] * 3, (WRITE, "error: it broke"))
    assert router.signal(producing) == 0
    for before in ((), (failed,)):  # of three calls before, the failure no longer counts
        written = session(*before, *[(WRITE, "done")] * 3)
        assert router.signal(written) == pytest.approx(-np.tanh(0.5)) and route(router, written) == "continue"
    assert route(router, session((WRITE, "done"), (RUN, "out of memory"))) == "escalate"  # a critical error alone


def test_litellm_counts_from_the_newest_call():
    router = LiteLLMStall()
    fine = [(call("a"), "1"), (call("b"), "2"), (call("c"), "3")]
    loop = [(RUN, "same"), (READ, "text")]
    assert route(router, session(*fine)) == "continue"
    assert route(router, session(*loop, *loop, (RUN, "same"))) == "escalate"  # other calls may stand between
    assert route(router, session(*loop, *loop, (RUN, "same"), fine[0])) == "continue"  # it moved on
    assert route(router, session((RUN, "same"), (RUN, "same"), *fine, (READ, ""), (RUN, "same"))) == "continue"  # of 6
    broken = [(call(name), "error") for name in "abc"]
    assert route(router, session(*broken)) == "escalate"
    assert route(router, session(*broken[:2], fine[2])) == "continue"
    assert route(router, session(*broken, (call("d"), "4"))) == "continue"
    words = (Action("one moment"), "yes")
    assert stuck(session((READ, "text"), words, words, words), 6) == 1  # words are no calls where tools are called


def test_vllm_sr_keeps_the_model_while_tools_are_called():
    router = VLLMSRSession(reader=weighted(0.0, bias=2.0))  # the risk is .88 everywhere
    assert route(router, session()) == "takeover"
    called = router.decide(session((READ, "text")), FINE, Memory(), seed=0)
    assert (called.route, called.score) == ("continue", None)
    risk = router.score_of(session(), READ, FINE)
    words = session((Action("which one?"), "the red one, please, and all that comes with it"))
    assert risk - 0.6 < router.score_of(words, READ, FINE) < risk - 0.1
    assert route(router.at(0.4), words) == "takeover"
    answered = session((READ, "x" * 5000), (Action("so?"), "yes"))
    assert route(router, answered) == "continue"  # much cache would be lost
    assert route(router.at(0.1), answered) == "takeover"
    assert route(router.at(0.1), session((Action("so?"), "yes"), (READ, "text"))) == "continue"


def test_lemonade_waits_for_something_to_be_written():
    router = LemonadeStall()
    reading = [(READ, "text")] * 7
    assert route(router, session(*reading)) == "continue"
    assert route(router, session(*reading, (READ, "text"))) == "takeover"
    assert route(router, session((WRITE, "done"), *reading, *reading)) == "continue"
    words = Action("I looked at all of it.")
    assert route(router, session((READ, "text"), proposed=words)) == "takeover"  # an empty diff
    assert route(router, session((WRITE, "done"), proposed=words)) == "continue"


def test_plano_pays_switches_from_a_share_of_what_staying_costs():
    router = PlanoPrice(reader=weighted(8.0, bias=-4.0))  # risky where the verifier's score is known
    steps = [(READ, "x" * 100)] * 6

    def played(router: PlanoPrice, risky: tuple[int, ...]) -> list:
        memory = Memory()
        for t in range(len(steps)):
            context = session(*steps[:t], goal="y" * 1000)
            memory = memory.after(router.decide(context, RISKY if t in risky else FINE, memory, seed=0))
        return list(memory.decisions)

    assert [d.route for d in played(router, ())] == ["continue"] * 6
    first = played(router, (0,))
    assert [d.route for d in first] == ["escalate", *["continue"] * 5]  # no cache to lose, and back to a cheaper model
    assert first[-1].state[0] == 0
    late = played(router, (3,))
    assert [(d.route, d.code) for d in late if d.code == "switch_cost"] == [("continue", "switch_cost")]
    rich = replace(router, share=100.0)
    paid = played(rich, (3, 5))
    assert [d.route for d in paid] == ["continue"] * 3 + ["escalate", "continue", "escalate"]
    # Spent on switches, what staying cost, characters that each model knows (1,005, and 112 more a step), price in use.
    assert [list(d.state) for d in paid[2:]] == [
        pytest.approx([0.0, 436.2, 1229, 0, 1]),
        pytest.approx([13410 - 234.9, 671.1, 1229, 1341, 10]),
        pytest.approx([13175.1, 3132.1, 1453, 1341, 1]),
        pytest.approx([13175.1 + 3581 - 257.3, 3389.4, 1453, 1565, 10]),
    ]
    assert played(replace(rich, share=13175.1 / 671.1 + 0.001), (3,))[3].route == "escalate"
    assert played(replace(rich, share=13175.1 / 671.1 - 0.001), (3,))[3].route == "continue"
    for spent, expected in ((1000.0, ("escalate", 3315.7)), (2000.0, ("continue", 2000.0))):  # the limit is 4051.46
        before = replace(late[0], state=(spent, 20_000.0, 1453.0, 1453.0, 1.0))
        decision = router.decide(session(*steps[:5], goal="y" * 1000), RISKY, Memory(decisions=(before,)), seed=0)
        assert (decision.route, pytest.approx(decision.state[0])) == expected


def test_an_advisor_is_asked_at_ends_and_stalls_three_times_at_most():
    router = Advisor()
    done, words = [(call(name), "1") for name in "abc"], Action("All is done.")
    assert route(router, session(*done, proposed=words)) == "escalate"
    assert route(router, session(*done[:2], proposed=words)) == "continue"  # too early for a question
    assert route(router, session(*done)) == "continue"
    loop, memory, routes = [(RUN, "same")] * 8, Memory(), []
    for t in range(8):
        decision = router.decide(session(*loop[:t]), FINE, memory, seed=0)
        routes.append(decision.route)
        memory = memory.after(decision)
    assert routes == ["continue"] * 3 + ["escalate"] * 3 + ["continue"] * 2
    quiet = router.decide(session(), FINE, Memory(), seed=0)
    assert route(router, session(*done), Memory(decisions=(quiet,) * 29)) == "continue"
    assert route(router, session(*done), Memory(decisions=(quiet,) * 30)) == "escalate"
    assert route(router, session(*done), Memory(decisions=(quiet,) * 30 + memory.decisions[3:4])) == "continue"


def episode(number: int, goal: str, seen: list[str], actions: list[Action], success: bool) -> Episode:
    steps: list[Step] = []
    for t, (text, action) in enumerate(zip(seen, actions, strict=True)):
        known = Context(goal, tuple(seen[: t + 1]), tuple(actions[:t]), 20)
        candidates = (Candidate(action, None, None, Usage(1)),)
        features = featurise(known, candidates, (0.5,))
        choice = Choice(action, "slm", candidates, (0.5,), features, None, Usage(1), Usage())
        steps.append(Step(t, 0, Observation(text, False, None, None, text, ()), choice))
    final = Observation("the end", True, success, None, "end", ())
    task = Task(f"task {number}", "keys", "made up", goal)
    return Episode(task, 0, "none", "slm", goal, tuple(steps), final, success, "done", None)


def made_data(tools: bool) -> FitData:
    """Hard tasks fail; the teacher solves them where a red door is seen, at any step; answers say how it went."""
    rng = np.random.default_rng(3)

    def made(first: int, count: int) -> list[Episode]:
        found = []
        for number in range(first, first + count):
            hard = bool(rng.random() < 0.5)
            doors = [f"a {colour} door" for colour in rng.permutation(["red", "blue", "green"])]
            word = "lost and unsure" if hard else "found and certain"
            step = call("open_door") if tools else Action("open door")
            last = Action(f"It is {word}." if tools else f"finish: {word}")
            goal = f"the {'hard' if hard else 'easy'} way"
            found.append(
                episode(number, goal, [*doors, "a hall, and the last door failed"], [step, step, step, last], not hard)
            )
        return found

    recorded, validation = made(0, 50), made(50, 10)
    branches = [
        Branch(i, t, 0, bool(e.success) or "red" in step.observation.text, bool(e.success))
        for i, e in enumerate(recorded)
        for t, step in enumerate(e.steps)
    ]
    return FitData(recorded, validation, FittedWith(1, 20, "tool_calls"), RouterSettings(), seed=0, branches=branches)


@pytest.fixture(scope="module")
def data() -> FitData:
    return made_data(tools=True)


def test_reading_benefit_prefers_the_step_whose_branch_gains(data):
    router = ReadingBenefit.fit(data)
    hard = next(e for e in data.validation if not e.success)
    gains, risks = {}, []
    for context, step in zip(hard.contexts(20)[:3], hard.steps, strict=False):
        read = (context, step.choice.action, step.choice.features)
        gains[step.observation.text] = router.score_of(*read)
        risks.append(data.reader.score(*read))
    assert gains["a red door"] > 0.5 > 0.3 > max(gains["a blue door"], gains["a green door"])
    assert max(risks) - min(risks) < 0.1  # the risk alone cannot tell them apart
    known = replace(hard.contexts(20)[0], observations=("a red door",), proposed=call("open_door"))
    decision = router.at(0.5).decide(known, hard.steps[0].choice.features, Memory(), seed=0)
    assert (decision.route, decision.score_kind) == ("escalate", "benefit")


def test_reading_benefit_drops_a_teacher_that_is_the_same_everywhere(data):
    always = [replace(b, helped=True) for b in data.branches]
    assert ReadingBenefit.fit(replace(data, branches=always)).teacher is None
    twice = [*data.branches, *(replace(b, draw=1, helped=True) for b in data.branches)]
    teacher = ReadingBenefit.fit(replace(data, branches=twice)).teacher
    assert teacher is not None and teacher.facts["rows"] == 200  # the futures of one step are one row


def test_frugalgpt_reads_answers_alone(data):
    router = FrugalGPT.fit(data)
    assert router.reader.facts["rows"] == 50
    features = data.validation[0].steps[-1].choice.features
    done = [(call("open_door"), "a red door")] * 3

    def decided(answer: Action, goal: str):
        return router.decide(session(*done, proposed=answer, goal=goal), features, Memory(), seed=0)

    assert decided(Action("It is lost and unsure."), "the hard way").route == "takeover"
    assert decided(Action("It is found and certain."), "the easy way").route == "continue"
    assert decided(call("open_door"), "the hard way").score is None
    words = made_data(tools=False)
    router = FrugalGPT.fit(words)
    assert not router.without_call and router.reader.facts["rows"] == 50
    assert router.thresholds(words.validation, [0.1, 0.5]) == sorted(
        router.thresholds(words.validation, [0.1, 0.5]), reverse=True
    )
    endless = [replace(e, steps=e.steps[:-1]) for e in words.recorded]
    with pytest.raises(StageError, match="finds no answer"):
        FrugalGPT.fit(replace(words, recorded=endless))
    with pytest.raises(StageError, match="no step among the validation episodes"):
        router.thresholds([replace(e, steps=e.steps[:-1]) for e in words.validation], [0.5])


@pytest.mark.parametrize("name", RIVALS)
def test_a_folder_decides_the_same(name, data, tmp_path):
    router = router_class(name).fit(replace(data, pool=[(Member("medium", 0.2), data)]))
    thresholds = router.thresholds(data.validation, [0.3])
    assert len(thresholds) == 1
    router = router.at(thresholds[0])
    router.save(tmp_path / name)
    loaded = load_router(tmp_path / name)
    assert type(loaded) is type(router)
    routes = set()
    for e in data.validation:
        memories = [Memory(), Memory()]
        for context, step in zip(e.contexts(20), e.steps, strict=True):
            known = replace(context, proposed=step.choice.action)
            one, two = (
                r.decide(known, step.choice.features, memory, seed=0)
                for r, memory in zip((router, loaded), memories, strict=True)
            )
            assert one == two and one.route in router.routes
            memories = [memory.after(one) for memory in memories]
            routes.add(one.route)
    assert "continue" in routes


def test_graded_rules_have_thresholds_and_fixed_ones_have_one_point(data):
    for cls in (LiteLLMStall, Advisor):
        assert cls.fit(data).thresholds(data.validation, [0.1, 0.5]) == [cls.threshold]
    found = SwitchyardStage.fit(data).thresholds(data.validation, [0.1, 1.0])
    assert found == [pytest.approx(np.tanh(0.5)), 0.0]
    assert route(SwitchyardStage().at(0.0), session()) == "continue"  # no sign of trouble is none at any threshold
