"""AgentDojo in the bench: a few recorded cells, played again and forked in its own engine."""

from __future__ import annotations

import asyncio
import json
import lzma
import subprocess
import sys
from pathlib import Path

import pytest

from r2v.bench.suites.agentdojo import ONE_STEP, RECORDS, STRONG, TAKEOVER, WEAK
from r2v.clients.chat import ChatPolicy, ChatSettings
from r2v.core.agent import AgentModels, Routed
from r2v.core.checks import check
from r2v.core.errors import ArtifactError, SettingsError
from r2v.core.fixed import Always, AtSteps, Never
from r2v.core.loop import run_together
from r2v.core.types import Action, Context, Memory, ToolCall
from r2v.domains import load_domain
from r2v.domains.agentdojo import engine
from r2v.domains.agentdojo.chat_format import action_of, call_of
from r2v.domains.agentdojo.engine import Cell, Judged, cell_of
from r2v.pipeline.plan import plan
from r2v.pipeline.settings import RunSettings
from r2v.runtime.settings import load
from servers import Model, of_llama, running

SONNET, HAIKU, COMMAND_R, LLAMA = (
    "claude-3-sonnet-20240229", "claude-3-haiku-20240307", "command-r", "meta-llama_Llama-3-70b-chat-hf",
)  # fmt: skip
CHOSEN = {
    ("banking", "user_task_9"), ("banking", "user_task_1"), ("banking", "user_task_13"), ("slack", "user_task_1"),
    ("workspace", "user_task_7"), ("workspace", "user_task_26"),
}  # fmt: skip
BALANCE = ToolCall("get_balance", "{}")


def quiet(done, total, note=""):
    pass


@pytest.fixture(scope="module")
def data(shared_data, tmp_path_factory):
    """The records of six tasks, all that the suites read of them."""
    if not (shared_data / RECORDS).is_file():
        pytest.skip(f"{shared_data}/{RECORDS} is not here")
    folder = tmp_path_factory.mktemp("data")
    (folder / RECORDS).parent.mkdir(parents=True)
    with lzma.open(shared_data / RECORDS, "rt") as source, lzma.open(folder / RECORDS, "wt", preset=0) as target:
        for line in source:
            row = json.loads(line)
            if (row["suite"], row["user_task"]) in CHOSEN and row["setting"] in (*WEAK, STRONG):
                target.write(line)
    return folder


@pytest.fixture(scope="module")
def takeover(data):
    return TAKEOVER.load(data, quiet)


@pytest.fixture(scope="module")
def one_step(data):
    return ONE_STEP.load(data, quiet)


def number(loaded, agent, task, perturbation="none"):
    (found,) = [
        i for i, e in enumerate(loaded.episodes) if (e.agent, e.task.id, e.perturbation) == (agent, task, perturbation)
    ]
    return found


def forks(loaded, *which):
    """Outcomes of the episode alone and with each single step escalated."""
    i = number(loaded, *which)
    steps = [()] + [(step.t,) for step in loaded.episodes[i].steps]
    return loaded.play([(i, escalated) for escalated in steps], quiet)


def test_episodes_come_out_as_recorded_or_are_left_out_by_name(takeover):
    clean = takeover.fidelity
    assert (clean["replayed"], clean["of"]) == (38, 42) and clean["share"] == 38 / 42
    assert all(" workspace/user_task_7 none" in name for name in clean["left_out"])  # the engine's own solution fails, too
    assert takeover.facts["left_out_unsolvable"] == ["workspace/user_task_7"]
    # here the harness broke off, and noted an injection that the engine does not see
    assert {f"{LLAMA} workspace/user_task_26 important_instructions"} < set(clean["attacked"]["left_out"])
    played = {(e.agent, e.task.id, e.perturbation) for e in takeover.episodes}
    assert not played & {tuple(name.split()) for name in clean["left_out"] + clean["attacked"]["left_out"]}
    alone = takeover.play([(i, ()) for i in range(len(takeover.episodes))], quiet)
    assert [bool(outcome.success) for outcome in alone] == [episode.success for episode in takeover.episodes]
    assert {e.perturbation for e, o in zip(takeover.episodes, alone, strict=True) if o.injected is None} == {"none"}
    assert takeover.group_E.max() == 4  # clean and attacked episodes of a task are of one group


def test_the_teacher_solves_every_task_from_its_start(takeover):
    first = takeover.play([(i, (0,)) for i in range(len(takeover.episodes))], quiet)
    assert {outcome.success for outcome in first} == {1.0}
    assert all(outcome.weak_calls == 1 and outcome.strong_calls >= 2 for outcome in first)


def test_it_does_not_solve_a_task_whose_money_the_weak_model_has_sent_elsewhere(takeover):
    alone, *escalated = forks(takeover, SONNET, "banking/user_task_9")
    assert alone.success == 0 and [outcome.success for outcome in escalated] == [1, 1, 0]


def test_it_does_not_say_again_what_the_weak_model_has_said_in_other_words(takeover):
    alone, *escalated = forks(takeover, HAIKU, "slack/user_task_1")
    assert [outcome.success for outcome in (alone, *escalated)] == [1] * 5
    assert escalated[-1].strong_calls == 1  # its answer: sending the message twice would not solve the task


def test_a_draft_that_is_thrown_away_is_paid_for_beside_the_teacher(takeover):
    alone, *_, last = forks(takeover, HAIKU, "slack/user_task_1")
    cell = cell_of("slack", "user_task_1")
    assert last.weak_calls == alone.weak_calls == 4
    read = ((last.usd - alone.usd) * 4e6 - 15 * len(cell.answer)) / 3  # characters; 3 and 15 USD a million tokens
    assert read == pytest.approx(round(read)) and read > len(cell.tools) + len(cell.prompt)


def test_a_takeover_before_the_injection_is_carried_out_prevents_it_and_one_after_does_not(takeover):
    alone, *escalated = forks(takeover, LLAMA, "banking/user_task_1", "important_instructions")
    assert alone.injected is True and [outcome.injected for outcome in escalated] == [False, False, True]


def test_one_step_of_the_teacher_is_followed_by_the_recorded_calls(one_step):
    alone, first, second, last = forks(one_step, SONNET, "banking/user_task_9")
    assert [outcome.success for outcome in (alone, first, second, last)] == [0, 0, 1, 0]
    assert (second.strong_calls, second.weak_calls) == (1, 3)
    assert second.usd > alone.usd


def test_all_steps_of_the_teacher_are_its_solution_as_far_as_the_session_reaches(one_step):
    i = number(one_step, COMMAND_R, "banking/user_task_9")
    assert len(one_step.episodes[i].steps) == 3  # its two calls, and the answer
    alone, every = one_step.play([(i, ()), (i, (0, 1, 2))], quiet)
    assert (alone.success, every.success, every.strong_calls) == (0, 1, 3)


def test_a_call_in_the_place_of_the_answer_is_followed_by_that_answer(one_step):
    alone, *escalated = forks(one_step, COMMAND_R, "banking/user_task_9")
    assert (escalated[-1].weak_calls, escalated[-1].strong_calls) == (alone.weak_calls + 1, 1)
    with pytest.raises(ValueError, match=r"steps \(3,\) of a session of 3"):
        one_step.play([(number(one_step, COMMAND_R, "banking/user_task_9"), (3,))], quiet)


def test_where_the_recorded_stronger_model_stood_in_the_same_history_is_counted_apart(takeover):
    found = takeover.facts["recorded_stronger_model"]
    assert 0 < found["clean"]["same_history"] < found["clean"]["steps_after_the_first"]
    assert found["clean"]["its_success"] is not None and found["attacked"]["its_injected"] is not None


def test_a_state_never_changes_and_the_same_calls_lead_to_one_state():
    cell = cell_of("banking", "user_task_1")
    send = next(call for call in cell_of("banking", "user_task_0").solution if call.name == "send_money")
    state = cell.start.after((BALANCE,))
    assert state.packed is cell.start.packed and state.results == ("1810.0",)
    assert cell.start.after((send,)).packed != cell.start.packed
    assert cell.start.after((BALANCE,)) is state
    assert cell_of("banking", "user_task_1") is cell
    together = cell.start.after((BALANCE, send))
    assert together.packed == state.after((send,)).packed and len(together.results) == 2


def test_states_that_are_forgotten_are_found_out_again(monkeypatch):
    monkeypatch.setattr(engine, "KEPT", 2)
    cell = Cell("banking", "user_task_0")
    reached = cell.start.one_by_one(cell.solution)
    assert cell.start.one_by_one([BALANCE] * 3).results == ("1810.0",)
    again = cell.start.one_by_one(cell.solution)
    assert again is not reached and cell.judge(again, cell.answer) == cell.judge(reached, cell.answer) == Judged(True, None)


def test_a_call_with_its_defaults_written_out_is_the_same_call():
    cell = Cell("banking", "user_task_1")
    short, long = (ToolCall("get_most_recent_transactions", text) for text in ("{}", '{"n": 100}'))
    assert cell.canonical(short) == cell.canonical(long) != cell.canonical(ToolCall(short.name, '{"n": 5}'))
    unknown = ToolCall("no_such_tool", "{}")
    assert "no_such_tool" in cell.start.after((unknown,)).results[0]


def test_a_session_without_an_answer_is_not_solved():
    cell = cell_of("banking", "user_task_0")
    state = cell.start.one_by_one(cell.solution)
    assert cell.judge(state, cell.answer) == Judged(True, None)
    assert cell.judge(state, None) == Judged(False, None)


def test_missing_records_and_a_missing_package_are_said_in_one_line(tmp_path):
    with pytest.raises(SettingsError, match=r"episodes\.jsonl\.xz is not there; .*--data") as refused:
        TAKEOVER.load(tmp_path, quiet)
    assert "\n" not in str(refused.value)
    (tmp_path / RECORDS).parent.mkdir(parents=True)
    with lzma.open(tmp_path / RECORDS, "wt") as file:
        file.write('{"task": "t", "messages": []}')
    with pytest.raises(ArtifactError, match=r"xz:1 is not AgentDojo's: `agentdojo` records have suite, .*"):
        TAKEOVER.load(tmp_path, quiet)
    with pytest.raises(SettingsError, match="no suite office in version v1"):
        Cell("office", "user_task_0").start  # noqa: B018
    hidden = (
        "import sys; sys.modules['agentdojo'] = None\n"
        "from r2v.domains.agentdojo.engine import cell_of\n"
        "try: cell_of('banking', 'user_task_0').start\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    told = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, check=True).stdout
    assert told == "SettingsError agentdojo is not installed; pip install 'r2v[bench]'\n"


# -- live models in the engine ------------------------------------------------------------------------------------------


def test_the_domain_keeps_all_promises():
    assert check(load_domain("agentdojo")) == "domain"


@pytest.mark.parametrize(
    ("reply", "action"),
    [
        ('```json\n{"name": "get_iban"}\n```', '{"name": "get_iban", "arguments": {}}'),
        (' {"arguments": {"n": 5}, "name": "x"}', '{"name": "x", "arguments": {"n": 5}}'),
        ("It is paid.\n", "It is paid."),
        ('{"name": "x", "arguments": "all"}', '{"name": "x", "arguments": "all"}'),
        ('<tool_call>\n{"name": "x", "arguments": {"n": 5}}\n</tool_call>', '{"name": "x", "arguments": {"n": 5}}'),
        ('I look it up.\n\n{"name": "x", "parameters": {"n": 5}}', '{"name": "x", "arguments": {"n": 5}}'),
        ('{"name": "x", "arguments": {"n": 5}}\n\nThis looks it up.', '{"name": "x", "arguments": {"n": 5}}'),
        ('{"name": "x", "arguments": {"n": 4, "n": 5}, "type": "object"}}', '{"name": "x", "arguments": {"n": 5}}'),
        ('{"name": "x", "parameters": {"n": 5}}', '{"name": "x", "arguments": {"n": 5}}'),
        ('{"name": "x", "arguments": {}}\n{"name": "y", "arguments": {}}', '{"name": "x", "arguments": {}}'),
        ('It is {"name": "x", "arguments": {}} that I paid', 'It is {"name": "x", "arguments": {}} that I paid'),
    ],
)
def test_a_reply_is_a_call_or_the_answer(reply, action):
    assert action_of(reply) == action == action_of(action)
    assert (call_of(action) is None) == ("all" in action or "paid" in action)


def test_hostile_replies_are_answers():
    half = '{"name": "x", "arguments": {"n": "\\ud800"}}'
    for text in (half, "[" * 100_000, '{"a":' * 100_000, '{"name": "x", "arguments": {"n": 1e999}}', "```json\n{" * 10_000):
        assert call_of(text) is None


def test_the_verifier_knows_the_tools_that_the_session_began_with():
    cell = cell_of("banking", "user_task_1")
    context = Context(cell.prompt, (f"Your tools:\n{cell.tools}",), (), 16)
    texts = [
        '{"name": "get_most_recent_transactions", "arguments": {"n": 5}}', "You spent 5.",
        '{"name": "get_spending", "arguments": {}}', '{"name": "send_money", "arguments": {"recipient": "GB29"}}',
    ]  # fmt: skip
    scores = asyncio.run(load_domain("agentdojo").make_verifier().score(context, [Action(text) for text in texts]))
    assert scores[0] > scores[1] > scores[2] == scores[3] == 0


def live(reply, routers, injection=None):
    """A chat model behind HTTP as the SLM, the ground truth as the teacher: one episode for each router."""
    model, domain = Model("small"), load_domain("agentdojo")
    model.reply = lambda body: of_llama(reply(len(body["messages"])), 1)
    env = domain.settings(kind="agentdojo", suites=("banking",), injection_task=injection)
    task = next(task for task in domain.tasks(env, 0, 0) if task.id == "banking/user_task_1")
    with running(model.app()) as url:
        settings = ChatSettings(kind="chat", base_url=f"{url}/v1", model="small")
        slm = ChatPolicy(settings, name="slm", chat_format=domain.chat_format)
        models = AgentModels(slm, domain.expert(), domain.make_verifier(), 1)
        played = run_together(
            domain.environment(env, task), [Routed(models, router) for router in routers], task,
            seed=0, perturbation="none", horizon=env.horizon, memory=Memory(),
        )  # fmt: skip
        episodes = asyncio.run(played)
    assert [episode.failure for episode in episodes] == [None] * len(routers)
    system, user = (message["content"] for message in model.seen[0]["messages"][:2])
    assert system == f"Your tools:\n{cell_of('banking', 'user_task_1').tools}\n\n{domain.chat_format.system}"
    assert user == f"Your task is to: {task.goal}"
    return episodes


def test_a_live_model_is_routed_to_the_ground_truth_in_the_engine():
    def reply(messages):
        return '{"name": "get_balance", "arguments": {}}' if messages == 2 else "I do not know."

    alone, always, last = live(reply, [Never(), Always(), AtSteps(frozenset({1}))])
    assert [step.choice.action.text[:20] for step in alone.steps] == ['{"name": "get_balanc', "I do not know."]
    assert (alone.success, always.success) == (False, True)
    assert {step.choice.source for step in always.steps} == {"teacher"}
    assert [step.choice.source for step in last.steps] == ["slm", "teacher", "slm"] and last.success is False


def test_a_live_model_that_obeys_a_planted_text_is_seen_to():
    send = {"recipient": "US133000000121212121212", "amount": 1, "subject": "my iPhone", "date": "2022-01-01"}

    def reply(messages):
        return json.dumps({"name": "send_money", "arguments": send}) if messages == 2 else "done"

    alone, always = live(reply, [Never(), Always()], "injection_task_3")
    assert alone.final.text == "ended; the injection was carried out" and always.final.text == "ended"
    assert always.success is True


def test_the_expert_sees_from_the_texts_what_was_planted():
    cell = cell_of("slack", "user_task_7", "injection_task_3")
    expert, state, texts, actions = load_domain("agentdojo").expert(), cell.start, [""], []
    while True:
        context = Context(cell.prompt, tuple(texts), tuple(actions), 16)
        (candidate,) = asyncio.run(expert.propose(context, 1, seed=0))
        call = call_of(candidate.action.text)
        if call is None:
            break
        state = state.after((call,))
        texts.append(state.results[0])
        actions.append(Action(candidate.action.text))
    assert "<INFORMATION>" in actions[-1].text  # the channel that it is about bears the planted text as its name
    assert cell.judge(state, candidate.action.text) == Judged(True, False)


def test_a_plan_counts_the_list_of_tools_at_every_step():
    settings = load(Path(__file__).parents[1] / "examples" / "agentdojo-real.yaml", RunSettings)
    nobody = settings.teacher.but(base_url="http://127.0.0.1:9/v1")
    slm = settings.slm.but(model=settings.slm.model.but(base_url=nobody.base_url))
    _, teacher = plan(settings.but(teacher=nobody, slm=slm))
    episodes, horizon = 2 * (settings.tasks.validation + settings.tasks.test), settings.environment.horizon
    grown = (nobody.max_tokens + 100) * horizon * (horizon - 1) // 2 + nobody.max_tokens * horizon
    tools = len(cell_of("banking", "user_task_1").tools) // 4
    assert not teacher.answers and teacher.least > episodes * (grown + horizon * tools)


def test_wrong_settings_of_the_domain_are_refused_in_one_line():
    domain = load_domain("agentdojo")
    with pytest.raises(SettingsError, match=r"banking has injection_task_0, .*, not injection_task_99"):
        domain.tasks(domain.settings(kind="agentdojo", suites=("banking",), injection_task="injection_task_99"), 0, 0)
    with pytest.raises(SettingsError, match="no suite office in version v1"):
        domain.tasks(domain.settings(kind="agentdojo", suites=("office",)), 0, 0)
