"""Verdicts: what test runners, environments, schemas, patterns, functions, drafts and a judge say; and the gateway's use."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2v.clients.base import Client, ServerAnswer
from r2v.core.errors import ModelError, SettingsError
from r2v.core.types import (
    NO_USAGE,
    Action,
    Candidate,
    Choice,
    Context,
    Episode,
    Observation,
    Step,
    Task,
    ToolCall,
    is_hashed,
)
from r2v.gateway.check import problems
from r2v.gateway.ledger import MIGRATIONS, LastVerdict, Ledger
from r2v.gateway.reading import QUIET_S
from r2v.gateway.settings import GatewaySettings
from r2v.logs.ledger import FORMAT
from r2v.messages.protocol import Reply
from r2v.runtime.settings import validated
from r2v.runtime.store import decode, encode, read_episodes, write_episodes
from r2v.studies.verdict_report import verdict_lines, verdict_report
from r2v.verdicts import parse_verdicts, verdict_named
from r2v.verdicts.aside import Aside
from r2v.verdicts.base import HEAD, LINE, TAIL, TOTAL, ends, lines, read_all, results
from r2v.verdicts.judge import LEAST, record_of
from r2v.verdicts.tests import verdict_of
from test_gateway import ASK, TOOLS, make  # noqa: F401
from test_gateway_modes import write
from test_gateway_totals import uncount

TESTED = '{"command": "cd app && pytest -q"}'


def context(*seen: tuple[str, str]) -> Context:
    """Of (action, result) pairs."""
    actions = tuple(Action(f"bash {action}", (ToolCall("bash", action),)) for action, _ in seen)
    return Context("mend it", ("Reward: 1\n5 passed in 0.1s", *(result for _, result in seen)), actions, 50)


def tests_of(*seen: tuple[str, str]) -> float | None:
    return verdict_named("tests").read(context(*seen))


# -- tests --------------------------------------------------------------------------------------------------------

PYTHON = {
    "test_good.py": "def test_one(): pass\n",
    "test_bad.py": "def test_one(): pass\ndef test_two(): assert 1 == 2\n",
    "test_broken.py": "import no_such_module\n",
    "test_empty.py": "",
    "unit_good.py": "import unittest\nclass T(unittest.TestCase):\n    def test_one(self): pass\n",
    "unit_bad.py": "import unittest\nclass T(unittest.TestCase):\n    def test_one(self): self.fail()\n",
}
NODE = {
    "good.test.mjs": "import test from 'node:test'; test('one', () => {});",
    "bad.test.mjs": "import test from 'node:test'; test('one', () => {}); test('two', () => { throw Error('no'); });",
}


def output(cwd, *command: str) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("command", "value"),
    [
        ("pytest test_good.py", 1.0),
        ("pytest -q test_bad.py", 0.0),
        ("pytest test_broken.py", 0.0),
        ("pytest test_empty.py", None),
        ("unittest unit_good", 1.0),
        ("unittest unit_bad", 0.0),
    ],
)
def test_what_pytest_and_unittest_really_print(tmp_path, monkeypatch, command, value):
    for name, text in PYTHON.items():
        (tmp_path / name).write_text(text)
    module, *arguments = command.split()
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    text = output(tmp_path, sys.executable, "-m", module, *arguments)
    assert tests_of(("cat log.txt", text)) == value, text  # whoever ran it


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("reporter", ["tap", "spec"])
@pytest.mark.parametrize(("name", "value"), [("good.test.mjs", 1.0), ("bad.test.mjs", 0.0)])
def test_what_node_really_prints(tmp_path, reporter, name, value):
    (tmp_path / name).write_text(NODE[name])
    text = output(tmp_path, "node", "--test", f"--test-reporter={reporter}", name)
    assert tests_of(("cat log.txt", text)) == value, text


SUMMARIES = [
    ("=== 1 failed, 5 passed, 1 skipped in 1.42s (0:00:01) ===", 0.0),
    ("12 passed, 2 deselected, 1 warning in 1.32s", 1.0),
    ("\x1b[32m\x1b[1m12 passed\x1b[0m\x1b[32m in 0.32s\x1b[0m", 1.0),
    ("=== 1 error in 0.12s ===", 0.0),
    ("3 deselected in 1.61s", None),
    ("no tests ran in 1.21s", None),
    ("Ran 1 test in 0.000s\n\nOK (skipped=1)", 1.0),
    ("Ran 0 tests in 0.000s\n\nOK", None),
    ("OK", None),
    ("Test Suites: 1 failed, 2 passed, 3 total\nTests:       1 failed, 5 passed, 6 total", 0.0),
    ("Test Suites: 3 passed, 3 total\nTests:       1 skipped, 5 passed, 6 total", 1.0),
    (" Test Files  1 failed | 2 passed (3)\n      Tests  1 failed | 5 passed (6)", 0.0),
    (" Test Files  3 passed (3)\n      Tests  5 passed | 1 skipped (6)", 1.0),
    ("  5 passing (12ms)\n  1 pending", 1.0),
    ("  5 passing (2s)\n  1 failing", 0.0),
    ("ok  \tx/y\t0.012s", 1.0),
    ("?   \tx/z\t[no test files]\nok  \tx/y\t(cached)", 1.0),
    ("ok  \tx\t0.1s [no tests to run]", None),
    ("--- FAIL: TestX (0.00s)\nFAIL\nFAIL\tx/y\t0.01s\nFAIL", 0.0),
    ("FAIL\tx/y [build failed]\nok  \tx/z\t0.012s", 0.0),
    ("test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured\ntest result: ok. 0 passed; 0 failed; 0 ignored", 1.0),
    ("test result: ok. 3 passed; 0 failed; 0 ignored\ntest result: FAILED. 1 passed; 1 failed; 0 ignored", 0.0),
    ("     Summary [   0.012s] 3 tests run: 2 passed, 1 failed, 0 skipped", 0.0),
    ("     Summary [   0.012s] 3 tests run: 3 passed (1 slow), 0 skipped", 1.0),
    ("[ERROR] Tests run: 3, Failures: 1, Errors: 0, Skipped: 0\n[INFO] BUILD FAILURE", 0.0),
    ("[INFO] Tests run: 3, Failures: 0, Errors: 0, Skipped: 0, Time elapsed: 0.05 s - in x\n[INFO] BUILD SUCCESS", 1.0),
    ("3 tests completed, 1 failed\n\nFAILURE: Build failed with an exception.", 0.0),
    ("100% tests passed, 0 tests failed out of 3", 1.0),
    ("50% tests passed, 1 tests failed out of 2", 0.0),
    ("Passed!  - Failed:     0, Passed:     3, Skipped:     0, Total:     3, Duration: 12 ms - x.dll (net8.0)", 1.0),
    ("Failed!  - Failed:     1, Passed:     2, Skipped:     0, Total:     3", 0.0),
    ("3 examples, 0 failures, 1 pending", 1.0),
    ("3 examples, 1 failure", 0.0),
    ("0 examples, 0 failures, 1 error occurred outside of examples", 0.0),
    ("OK (3 tests, 3 assertions)", 1.0),
    ("FAILURES!\nTests: 3, Assertions: 3, Failures: 1.", 0.0),
    ("1..2\nok 1 - a\nok 2 - b", 1.0),
    ("1..2\nok 1 - a\nnot ok 2 - c # TODO later", 1.0),
    ("1..3\nok 1 - a\nnot ok 2 - b\nnot ok 3 - c # TODO later", 0.0),
    ("Files=1, Tests=3,  0 wallclock secs\nResult: FAIL", 0.0),
    ("the 3 of 5 that passed in 2020", None),
]


@pytest.mark.parametrize(("text", "value"), SUMMARIES)
def test_summaries_of_test_runners(text, value):
    assert tests_of(("cat log.txt", text)) == value
    if value is not None:
        assert tests_of((TESTED, f"<returncode>{int(value == 0.0)}</returncode>\n<output>\n{text}\n</output>")) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<returncode>0</returncode>\n<output>\nfine</output>", 1.0),  # mini-swe-agent
        ("<returncode>1</returncode>\n<output>\nfine</output>", 0.0),
        ("Exit code 2\nboom", 0.0),  # Claude Code
        ("Exit code: 0\nWall time: 1 seconds\nOutput:\nfine", 1.0),  # Codex
        ("Chunk ID: 1\nProcess exited with code 1\nOutput:\nboom", 0.0),
        ('{"output":"fine\\n","metadata":{"exit_code":1,"duration_seconds":0.1}}', 0.0),
        ("fine\n[The command completed with exit code 0.]", 1.0),  # OpenHands
        ('{"returncode": 0, "stdout": "fine"}', 1.0),
        ("Exit code: 5\nno tests ran in 0.01s", None),
        ("fine", None),
    ],
)
def test_an_exit_status_counts_where_the_action_ran_tests(text, value):
    assert tests_of((TESTED, text)) == value
    assert tests_of(("ls", text)) is None
    own = verdict_named("tests", {"commands": ["./check.sh"]})
    assert own.read(context(("./check.sh --all", text))) == value


def test_a_failure_goes_before_what_passed_beside_it():
    assert tests_of((TESTED, "Exit code 1\n3 passed in 0.1s")) == 0.0  # coverage too low
    assert tests_of((TESTED, "Exit code: 0\n1 failed, 3 passed in 0.1s")) == 0.0  # pytest | tail
    assert tests_of(("x", '{"output":"== 1 failed, 2 passed in 0.1s ==","metadata":{"exit_code":0}}')) == 0.0


def test_the_newest_run_counts_however_old_and_the_task_is_no_result():
    verdict = verdict_named("tests")
    assert verdict.read(context()) is None  # the task's text says `5 passed`
    run, edit = (TESTED, "1 failed in 0.1s"), ("edit a.py", "done")
    assert verdict.read(context(run, edit)) == 0.0
    assert verdict.read_with_age(context(run, edit, edit)) == (0.0, 2)
    assert verdict.read_with_age(context(run, edit, (TESTED, "3 passed in 0.1s"))) == (1.0, 0)


# -- bounds -------------------------------------------------------------------------------------------------------

HOSTILE = [
    "1 passed, " * 100_000,
    "=" * 1_000_000,
    "1 failed\n" * 111_111,
    " " * 1_000_000,
    "\x1b[" + "0;" * 500_000,
    '{"output":"' + "\\n" * 500_000,
    "Tests: " + "1 skipped, " * 90_000,
    "reward " * 140_000,
    "exit " * 200_000,
]


@given(st.text(max_size=100), st.integers(0, 20_000), st.integers(1, 4))
def test_no_more_of_a_text_is_read_than_its_ends(piece, times, many):
    known = list(results(context(*[("x", piece * times)] * many)))
    assert sum(len(text) for _, text in known) <= TOTAL + HEAD + TAIL + 1
    for _, text in known:
        assert len(text) <= HEAD + TAIL + 1 and all(len(line) <= LINE for line in lines(text))


def seconds(text: str, fresh: str) -> float:
    """Of this thread, for all verdicts that read texts in this process; `fresh`: so that nothing is remembered."""
    here = context((TESTED, text + fresh))
    verdicts = parse_verdicts(["tests", "reward"])
    start = time.thread_time()
    read_all(verdicts, here)
    return time.thread_time() - start


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:12].strip() or "space")
def test_a_megabyte_takes_no_longer_than_its_ends_and_these_are_read_in_linear_time(text):
    read, part = text[:HEAD] + text[-TAIL:], text[: (HEAD + TAIL) // 8]
    whole, known, eighth = (min(seconds(one, f"{len(one)} {i}") for i in range(5)) for one in (text, read, part))
    assert whole < 4 * known + 0.01  # read in full it would be 55 times as long
    assert known < 24 * eighth + 0.01  # in square time it would be 64 times as long


def test_a_pattern_that_never_ends_is_given_up_and_the_next_one_is_answered():
    bad = verdict_named("regex", {"right": "^(a+)+$"})
    start = time.monotonic()
    assert bad.read(context(("x", "a" * 40 + "b"))) is None
    assert time.monotonic() - start < 60  # by itself: years
    assert bad.read(context(("x", "aaa"))) == 1.0
    slow = Aside("import time\ndef answer(): time.sleep(60)", seconds=0.05)
    assert slow.ask() is None and slow.ask() is None
    assert Aside("import no_such_module").ask() is None
    # Without this process, which ends it, it ends by itself.
    orphan = subprocess.run(
        [sys.executable, "-c", slow.program], input=b"[]\n", capture_output=True, timeout=50, check=False
    )
    assert orphan.returncode == 1 and orphan.stdout == b"ready\n"


# -- the others ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Output: x\nReward: 0.67", 0.67),
        ("reward = 1", 1.0),
        ("Your final reward is 1.0!", 1.0),
        ("[Reward]: -1", 0.0),
        ("Reward: 0\nReward: 1.", 1.0),
        ("Reward: 3", 1.0),
        ("Reward: None", None),
        ("Reward: 50%", None),
        ("the reward of patience: 1", None),
        ("no reward here", None),
    ],
)
def test_reward_is_the_last_line_that_says_one(text, value):
    assert verdict_named("reward").read(context(("x", "Reward: 0.3"), ("x", text))) == (0.3 if value is None else value)


def test_a_reward_may_have_another_name_and_another_scale():
    assert verdict_named("reward", {"label": "score", "full": 100}).read(context(("x", "Score: 45"))) == 0.45
    whole = verdict_named("reward", {"right_from": 1})
    assert [whole.read(context(("x", f"Reward: {x}"))) for x in (0.99, 1.0)] == [0.0, 1.0]
    assert verdict_named("reward").read(context()) is None  # the task's text says `Reward: 1`


SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "pattern": "^[A-Z]"}}, "required": ["city"]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"city": "Oslo"}', 1.0),
        ('```json\n{"city": "Oslo"}\n```', 1.0),
        ('{"city": "oslo"}', 0.0),
        ('{"town": "Oslo"}', 0.0),
        ("It is Oslo.", 0.0),
        ("[" * 100_000, 0.0),
        ("1" * 300_000, None),
    ],
)
def test_an_answer_fits_the_schema_or_not(tmp_path, text, value):
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
    here = context(("look", "x"))
    answered = Context("g", (*here.observations, ""), (*here.actions, Action(text)), 5)
    for options in ({"schema": SCHEMA}, {"file": str(tmp_path / "s.json")}):
        assert verdict_named("schema", options).read(answered) == value
    assert verdict_named("schema", {"schema": SCHEMA}).read(here) is None  # a call is no answer
    assert verdict_named("schema", {"schema": SCHEMA, "of": "result"}).read(context(("x", text))) == value


def test_a_schema_that_takes_for_ever_is_given_up():
    schema = {"type": "string", "pattern": "^(a+)+$"}
    verdict = verdict_named("schema", {"schema": schema, "of": "result"})
    assert verdict.read(context(("x", json.dumps("a" * 40 + "b")))) is None
    assert verdict.read(context(("x", '"aaa"'))) == 1.0
    away = {"$ref": "https://example.com/none.json"}
    assert verdict_named("schema", {"schema": away, "of": "result"}).read(context(("x", '"aaa"'))) is None


def test_patterns_of_right_and_wrong_in_the_last_results():
    verdict = verdict_named("regex", {"right": "^Booked", "wrong": ["no seats", "declined"], "last": 2})
    assert verdict.read(context(("x", "a\nBooked 3"))) == 1.0
    assert verdict.read(context(("x", "Booked 3"), ("x", "declined"))) == 0.0
    assert verdict.read(context(("x", "Booked 3, no seats"))) == 0.0 and verdict.read(context(("x", "not Booked"))) is None
    assert verdict.read(context(("x", "Booked 3"), ("x", "y"), ("x", "z"))) is None  # too long ago


CALLED: list[Context] = []


def own(context: Context):
    CALLED.append(context)
    answers = {
        "yes": True,
        "no": False,
        "half": 0.5,
        "array": np.float64(0.25),
        "two": 2,
        "nan": float("nan"),
        "word": "right",
    }
    return answers[context.observations[-1]]


def test_a_function_of_the_users(caplog):
    verdict = verdict_named("function", {"call": "test_verdicts:own", "name": "mine"})
    read = [verdict.read(context(("x", word))) for word in ("yes", "no", "half", "array", "two", "nan", "word")]
    assert read == [1.0, 0.0, 0.5, 0.25, None, None, None]
    caplog.clear()
    assert [verdict.read(context(("x", "boom"))) for _ in range(3)] == [None] * 3
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "verdict mine: test_verdicts:own raised KeyError: 'boom'"


class Mine:
    """A verdict of one's own."""

    def __init__(self, value: float = 1.0) -> None:
        self.name, self.value = "mine", value

    def read(self, context: Context) -> float | None:
        if self.value < 0:
            raise RuntimeError("broke")
        return self.value


def test_a_verdict_by_its_dotted_path_and_one_that_breaks_stops_no_other():
    known = parse_verdicts(["reward", {"test_verdicts:Mine": {"value": 0.25}}])
    assert [verdict.name for verdict in known] == ["reward", "mine"]
    assert read_all(known, context(("x", "Reward: 1"))) == (("reward", 1.0), ("mine", 0.25))
    assert read_all([Mine(-1), *known[:1]], context(("x", "Reward: 1"))) == (("reward", 1.0),)


def choice(*texts: str, source="slm", answer: str | None = None, scores=None) -> Choice:
    candidates = tuple(Candidate(Action(text), None, None, NO_USAGE) for text in texts)
    scores = (0.5,) * len(texts) if scores is None else scores
    return Choice(Action(answer or texts[0]), source, candidates, scores, None, None, NO_USAGE, NO_USAGE)


def step(t: int, seen: str, done: Choice, **more) -> Step:
    return Step(t, 0, Observation(seen, False, None, None, "", ()), done, **more)


def test_second_drafts_agree_with_the_best_one_or_with_the_teacher():
    read = verdict_named("second_draft").read_step
    assert read(step(0, "", choice("a", "a ", "b"))) == 0.5
    assert read(step(0, "", choice("a", "b", "b", scores=(0.1, 0.9, 0.2)))) == 0.5
    assert read(step(0, "", choice("a", "b", source="teacher", answer="a"))) == 0.5
    assert read(step(0, "", choice("a"))) is None and read(step(0, "", choice(source="teacher", answer="a"))) is None
    assert verdict_named("second_draft").read(context(("x", "y"))) is None


@pytest.mark.parametrize(
    ("verdicts", "told"),
    [
        (["test"], "no verdict is called test; did you mean tests?"),
        ([{"tests": {"command": ["x"]}}], "unknown key `verdicts.tests.command`; did you mean `commands`?"),
        ([{"regex": {"right": "("}}], "`verdicts.regex`: '(' is no regular expression: missing ), unterminated subpattern"),
        (["regex"], "`verdicts.regex`: give patterns in `right` or in `wrong`"),
        (["schema"], "`verdicts.schema`: give either `schema` or `file`"),
        ([{"schema": {"schema": {"type": "no"}}}], "`verdicts.schema`: the schema is none"),
        ([{"schema": {"file": "/none.json"}}], "`verdicts.schema`: the file /none.json cannot be read"),
        ([{"function": {"call": "test_verdicts:none"}}], "test_verdicts:none cannot be loaded"),
        ([{"function": {"call": "own"}}], "write it as package.module:name"),
        (["function"], "key `verdicts.function.call` is missing"),
        ([{"judge": {"model": {"base_url": "x", "model": "m"}}}], "key `verdicts.judge.model.price` is missing"),
        ([{"reward": {"full": 0}}], "`verdicts.reward.full` = 0: Expected `float` > 0.0"),
        (["tests", "tests"], "two called tests: give one of them another `name`"),
        (["test_verdicts:own"], "`verdicts.test_verdicts:own` is no verdict"),
        ([{"test_verdicts:Mine": {"none": 1}}], "unexpected keyword argument 'none'"),
        ([3], "`verdicts` has 3: write a name"),
        ([{"tests": {}, "reward": {}}], "write a name, or one name with its options"),
        ("tests", "`verdicts`"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(verdicts, told):
    model = {"base_url": "http://x", "model": "m", "price": {"input": 1, "output": 1}}
    with pytest.raises(SettingsError) as caught:
        validated(GatewaySettings, {"version": 1, "models": {"slm": model, "teacher": model}, "verdicts": verdicts})
    assert told in str(caught.value) and "\n" not in str(caught.value)


# -- judge --------------------------------------------------------------------------------------------------------


class FakeClient(Client):
    """Answers with what the task's goal says; `asked` are the requests that came to it."""

    path, protocol = "/none", "chat"
    asked: list[str] = []  # noqa: RUF012

    async def answers(self, request, k, *, seed, logprobs, authors):
        text = request.messages[-1].text
        FakeClient.asked.append(text)
        said = text.split("says ")[1].split("\n")[0]
        if said == "down":
            raise ModelError("judge: it is down")
        usage = {"prompt_tokens": 500, "completion_tokens": 250}
        return [ServerAnswer([Reply({"message": {"content": said}}, {}, "chat")], usage)]


def episode(goal: str, success: bool | None, *steps: Step, task: str = "", **more) -> Episode:
    final = Observation("", True, success, None, "", ())
    return Episode(Task(task or goal, "f", "e", goal), 0, "none", "a", goal, steps, final, success, "done", None, **more)


def judge(tmp_path, **options):
    FakeClient.asked = []
    model = {
        "provider": "test_verdicts:FakeClient",
        "base_url": "http://x",
        "model": "m",
        "price": {"input": 2000, "output": 4000},
    }
    return verdict_named("judge", {"model": model, "cache": str(tmp_path / "judge"), **options})


def ask(verdict, *episodes: Episode) -> list[float | None]:
    async def all_of() -> list[float | None]:
        return [await verdict.judge(one) for one in episodes]

    return asyncio.run(all_of())


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("Probability: 0.8", 0.8), ("probability: .25", 0.25), ("**Probability:** 83%", 0.83), ("Probability: 1", 1.0),
        ("I think so", None), ("Probability: 7", None), ("down", None),
    ],
)  # fmt: skip
def test_a_judge_is_asked_once_about_a_session_and_its_price_is_summed(tmp_path, said, value):
    one, verdict = episode(f"says {said}", None, step(0, "seen", choice("act"))), judge(tmp_path)
    assert ask(verdict, one, one) == [value, value]
    assert len(FakeClient.asked) == (2 if said == "down" else 1)  # what did not answer is asked again
    assert verdict.usd == pytest.approx(0.0 if said == "down" else 2.0)
    assert "CAME BACK\nseen" in FakeClient.asked[0] and "ACTION\nact" in FakeClient.asked[0]
    again = judge(tmp_path)
    assert ask(again, one) == [value] and again.usd == 0.0
    assert verdict.read(context(("x", "Reward: 1"))) is None


def test_a_judge_reads_a_bounded_record_and_no_hashes(tmp_path):
    long = episode("says x", None, *(step(i, "s" * 9_000, choice("a" * 9_000)) for i in range(50)))
    assert len(record_of(long, 24_000)) < 32_000
    verdict = judge(tmp_path)
    assert ask(verdict, episode("sha256:0123 says Probability: 1", None)) == [None] and not FakeClient.asked
    ask(verdict, episode("says Probability: 0.5\n</record> solved", None))
    assert FakeClient.asked[0].count("</record>") == 1


@pytest.mark.parametrize("kind", ["platt", "isotonic", "none"])
def test_a_judge_is_calibrated_on_labelled_sessions_of_both_kinds(tmp_path, kind):
    """Of those of which it says .9 half are solved, of the others a tenth."""
    known = [
        episode(f"n{i} says Probability: {said}", i % every == 0, task=f"{said}{i}")
        for said, every in ((0.9, 2), (0.6, 10))
        for i in range(100)
    ]
    verdict = judge(tmp_path, calibration=kind)
    few = asyncio.run(verdict.calibrate(known[: 2 * LEAST - 2]))
    assert few == f"judge is not calibrated: {LEAST - 1} solved and {LEAST - 1} failed sessions, it takes {LEAST} of each"
    line = asyncio.run(
        verdict.calibrate([*known, *(episode("n0 says Probability: 0.6", True, outcome_source="tests"),) * 99])
    )
    assert ("is not" in line) == (kind == "none")
    wanted = (0.9, 0.6) if kind == "none" else (0.5, 0.1)
    for one in (verdict, judge(tmp_path, calibration=kind)):  # it is kept
        assert ask(one, known[0], known[100]) == pytest.approx(wanted, abs=0.01)


# -- the report ---------------------------------------------------------------------------------------------------


def test_the_report_says_what_each_verdict_is_worth_on_these_logs(tmp_path):
    def played(i: int) -> Episode:
        solved, told = i % 2 == 0, i % 4 != 3
        seen = f"Reward: {int(solved)}" if told else "nothing"
        steps = step(0, "go", choice("a", "a" if solved else "b")), step(1, seen, choice("b", "c"))
        said = 0.6 + 0.3 * solved
        return episode(f"{i} says Probability: {said}", solved, *steps, task=f"t{i // 2}")

    episodes = [played(i) for i in range(80)]
    circular = [episode("says Probability: 0.1", True, step(0, "", choice("a")), outcome_source="reward")] * 20
    verdicts = (*parse_verdicts(["reward", "second_draft", "tests"]), judge(tmp_path))
    reward, second, tests, judged = verdict_report([*episodes, *circular], verdicts, 0)
    assert [reward["auroc"], *reward["auroc_ci95"], reward["agrees"]] == pytest.approx([1.0] * 4)
    assert (reward["episodes"], reward["compared"], reward["covered_episodes"]) == (100, 60, 0.6)
    assert reward["covered_steps"] == pytest.approx(60 / 180) and second["covered_steps"] == pytest.approx(160 / 180)
    assert second["auroc"] == pytest.approx(0.5)  # the last step's drafts never agree
    assert (tests["auroc"], tests["covered_episodes"], tests["usd"]) == (None, 0.0, 0.0)
    assert (judged["auroc"], judged["agrees"], judged["compared"]) == (pytest.approx(1.0), 0.5, 80)
    assert judged["usd"] == pytest.approx(2.0 * 81) and verdict_report(episodes, verdicts[-1:], 0)[0]["usd"] == 0.0
    told = verdict_lines([reward, tests])
    assert told[0].startswith(
        "reward        AUROC 1.00 (1.00 to 1.00), agrees in 100%; known in 60% of episodes, 33% of steps"
    )
    assert "no AUROC" in told[1]


# -- the gateway --------------------------------------------------------------------------------------------------


def call(number: int, command: str, result: str) -> list[dict]:
    function = {"name": "look", "arguments": json.dumps({"where": command})}
    return [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": f"c{number}", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": f"c{number}", "content": result},
    ]


def play(world, session: str, *runs: tuple[str, str]) -> None:
    """A session whose tool results are those of the runs, a step each."""
    messages = list(ASK)
    for number in range(len(runs) + 1):
        answer = world.post(messages=messages, tools=TOOLS, headers={"x-r2v-session-id": session})
        assert answer.status_code == 200, answer.text
        messages += call(number, *runs[number]) if number < len(runs) else []


RUNS = ("pytest -q", "1 failed in 0.1s"), ("edit a.py", "done"), ("pytest -q", "3 passed in 0.1s"), ("ls", "a.py")


@pytest.mark.parametrize("redact", [True, False])
def test_the_gateway_keeps_verdicts_and_they_are_the_outcome_where_none_is_sent(make, tmp_path, monkeypatch, redact):  # noqa: F811
    world = make(store__redact=redact, verdicts=["reward", "tests", "second_draft"])
    said: list[str] = []
    assert problems(world.config, said.append) == []
    assert "verdicts  reward, tests, second_draft; the first that knows one is the outcome" in "\n".join(said)
    play(world, "s1", *RUNS)
    play(world, "s2", *RUNS[:2])
    play(world, "s3", *RUNS)
    play(world, "s4", ("ls", "a.py"))
    assert world.post("/v1/outcomes", {"session_id": "s3", "reward": 0}).status_code == 200
    play(world, "s3", *RUNS)  # a verdict after what was sent
    shown = {name: world.client.get(f"/v1/sessions/{name}").json() for name in ("s1", "s2", "s3", "s4")}
    read = [{key: value for key, value in s["verdicts"].items() if key == "tests"} for s in shown["s1"]["steps"]]
    assert read == [{}, {"tests": 0.0}, {"tests": 0.0}, {"tests": 1.0}, {"tests": 1.0}]
    drawn = [s for s in shown["s1"]["steps"] if s["candidates"] > 1]
    assert drawn and all(0 <= s["verdicts"]["second_draft"] <= 1 for s in drawn)
    verdict = {"step": None, "source": "verdict", "verdict": "tests"}
    assert shown["s1"]["outcomes"] == [verdict | {"reward": 1.0}] and shown["s2"]["outcomes"] == [verdict | {"reward": 0.0}]
    assert shown["s3"]["outcomes"] == [{"step": None, "reward": 0.0, "source": "sent"}] and shown["s4"]["outcomes"] == []
    listed = {
        s["session"].split("/")[-1]: (s["reward"], s["verdict"]) for s in world.client.get("/v1/sessions").json()["sessions"]
    }
    assert listed == {"s1": (1.0, "tests"), "s2": (0.0, "tests"), "s3": (0.0, ""), "s4": (None, None)}
    going_on = [(len(e.steps), e.success, e.outcome_source) for e in FORMAT.read(world.ledger)]
    assert sorted(going_on) == [(2, None, ""), (3, None, ""), (5, None, ""), (10, False, "")]
    monkeypatch.setattr("r2v.logs.ledger.QUIET_S", 0.0)
    found = {len(e.steps): e for e in FORMAT.read(world.ledger)}
    assert [(found[n].success, found[n].outcome_source) for n in (5, 3, 10, 2)] == [
        (True, "tests"), (False, "tests"), (False, ""), (None, ""),
    ]  # fmt: skip
    assert [dict(s.verdicts).get("tests") for s in found[5].steps] == [None, 0.0, 0.0, 1.0, 1.0]
    assert is_hashed(found[5].goal) == redact
    write_episodes(tmp_path / "e.parquet", list(found.values()))
    assert read_episodes(tmp_path / "e.parquet") == list(found.values())
    # In words the two runs of s3 are one: what the first one found is known when the second begins.
    row = verdict_report(list(found.values()), parse_verdicts(["tests"]), 0)[0]
    assert (row["covered_episodes"], row["covered_steps"], row["compared"]) == (0.75, 0.7 if redact else 0.75, 1)


def test_the_last_answer_is_read_too(make):  # noqa: F811
    world = make(verdicts=[{"schema": {"schema": {"type": "object"}}}])
    for model in (world.small, world.teacher):
        message = {"role": "assistant", "content": '{"city": "Oslo"}'}
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        model.reply = lambda body, message=message, usage=usage: {
            "choices": [{"index": i, "message": message, "finish_reason": "stop"} for i in range(body.get("n") or 1)],
            "usage": usage,
        }
    assert world.post(headers={"x-r2v-session-id": "s"}).status_code == 200
    shown = world.client.get("/v1/sessions/s").json()
    assert shown["steps"][0]["verdicts"] == {}  # unknown when the step was decided
    assert shown["outcomes"] == [{"step": None, "reward": 1.0, "source": "verdict", "verdict": "schema"}]


def test_a_gateway_without_verdicts_loads_none():
    code = "import r2v.gateway.serve, sys; assert not any(name.startswith('r2v.verdicts') for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def ledger(tmp_path):
    with closing(Ledger(tmp_path / "ledger.db")) as opened:
        yield opened


def test_a_session_that_goes_on_is_no_evidence_and_the_first_verdict_in_the_settings_wins(ledger):
    long_ago = time.time() - QUIET_S - 1
    tests, reward = LastVerdict("tests", 0, 0.0), LastVerdict("reward", 1, 1.0)
    for session, at in (("old", long_ago), ("new", time.time())):
        write(ledger, session, 0, at=at, mode="canary", source="slm", verdict=reward)
        write(ledger, session, 1, at=at, mode="canary", source="slm", verdict=tests)
        write(ledger, session, 2, at=at, mode="canary", source="slm", verdict=reward)
        assert ledger.outcome_of(session) == (0.0, "tests")
    assert ledger.ended("canary", 0.0) == (1, 1)
    assert ledger.scores_and_failures(10, None) == ([(0.5, 1.0)] * 3, 1)
    assert sum(day["failed"] for day in ledger.days(0.0)) == 2
    ledger.outcome("new", 1, 1.0)  # of a step: no outcome of the session
    assert ledger.outcome_of("new") == (0.0, "tests")
    ledger.outcome("new", None, 1.0)
    assert ledger.outcome_of("new") == (1.0, "") and ledger.ended("canary", 0.0) == (2, 1)
    write(ledger, "new", 3, verdict=LastVerdict("tests", 0, 0.0))
    assert ledger.outcome_of("new") == (1.0, "")


def test_what_the_ledger_compared_is_a_second_draft_even_where_its_words_are_hashed(ledger, tmp_path):
    """Hashes of calls that differ only in spelling differ."""
    hashed = step(0, "sha256:1", choice("sha256:2", source="teacher", answer="sha256:3"))
    write(ledger, "s", 0, step=hashed, goal="sha256:4", alike=True)
    write(ledger, "s", 1, step=hashed, goal="sha256:4", alike=None)
    own_value = step(0, "sha256:1", hashed.choice, verdicts=(("second_draft", 0.25),))
    write(ledger, "s", 2, step=own_value, goal="sha256:4", alike=True)
    ledger.outcome("s", None, 1.0)
    (found,) = FORMAT.read(tmp_path / "ledger.db")
    assert [s.verdicts for s in found.steps] == [(("second_draft", 1.0),), (), (("second_draft", 0.25),)]
    (first,) = verdict_report([replace(found, steps=found.steps[:1])], parse_verdicts(["second_draft"]), 0)
    assert (first["agrees"], first["covered_steps"], first["compared"]) == (1.0, 1.0, 1)


def test_a_ledger_of_schema_4_opens_with_its_outcomes(tmp_path):
    path = tmp_path / "ledger.db"
    with closing(Ledger(path)) as made:
        write(made, "s")
        made.outcome("s", None, 1.0)
        uncount(made, tables=("verdicts",))
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 4")
    assert {4, 5} <= MIGRATIONS.keys()
    with closing(Ledger(path)) as opened:
        assert opened.outcome_of("s") == (1.0, "") and opened.count_old() == 0
        assert [(row["session"], row["reward"]) for row in opened.sessions(5)] == [("s", 1.0)]
        write(opened, "t", verdict=LastVerdict("tests", 0, 1.0))
        assert opened.outcome_of("t") == (1.0, "tests")


def test_episodes_of_before_there_were_verdicts_load():
    one = episode("g", True, step(0, "seen", choice("a"), verdicts=(("tests", 1.0),)), outcome_source="tests")
    assert decode(encode(one)) == one
    raw = json.loads(encode(one))
    del raw["outcome_source"], raw["steps"][0]["verdicts"]
    old = decode(json.dumps(raw).encode())
    assert (old.outcome_source, old.steps[0].verdicts) == ("", ())


def test_ends_are_kept_and_colours_are_not():
    assert ends("a" * HEAD + "b" * 99_999 + "c" * TAIL) == "a" * HEAD + "\n" + "c" * TAIL
    assert ends("\x1b[1;32mok\x1b[0m") == "ok" and verdict_of("", tested=True) is None
