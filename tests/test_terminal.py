"""Terminal tasks: solvable, not solved by nothing, equal at every start; the shell keeps what it promises, no more."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest

from r2v.clients.chat import ChatPolicy, ChatSettings
from r2v.clients.scripted import ScriptedPolicy
from r2v.core.agent import AgentModels, Routed, Solo
from r2v.core.checks import check_environment, check_perturbation, check_verifier
from r2v.core.errors import SettingsError
from r2v.core.fixed import Always, Never
from r2v.core.loop import run_episode, run_together
from r2v.core.protocols import Branching
from r2v.core.types import Action, Context, Memory
from r2v.domains.terminal import DOMAIN, folders
from r2v.domains.terminal.chat_format import SHELL
from r2v.domains.terminal.env import CLIP, Terminal, shown
from r2v.domains.terminal.shell import Output, State, execute
from r2v.domains.terminal.tasks import TASKS, all_tasks, make_tasks, task_named
from r2v.domains.terminal.verifier import TerminalVerifier
from r2v.perturbations.wrap import PerturbedBranching
from r2v.runtime import sandbox
from test_chat_policy import completion, serving

NAMES = [task.name for task in all_tasks()]
pytestmark = pytest.mark.skipif(
    "namespaces" not in sandbox.layers(), reason="this host allows no namespaces, which the terminal environment needs"
)


def usable(name: str):
    task = task_named(name)
    if missing := task.missing():
        pytest.skip(f"{name} needs {', '.join(missing)}")
    return task


async def play(environment, *commands):
    """The observations of the commands, and the closed environment's problem."""
    await environment.start()
    try:
        return [await environment.step(Action(command)) for command in commands]
    finally:
        await environment.close()


def say(name, *commands):
    """What the shell answers."""
    return [observation.text for observation in asyncio.run(play(Terminal(usable(name)), *commands))]


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_passes_and_an_empty_attempt_fails(name):
    task = usable(name)
    solved, end = asyncio.run(play(Terminal(task), (task.folder / "solution.sh").read_text(), "submit"))
    assert solved.text.startswith("exit code 0"), solved.text
    assert (end.done, end.success, end.reward) == (True, True, 1.0)
    environment = Terminal(task)
    (end,) = asyncio.run(play(environment, "Task complete."))
    assert (end.done, end.success, end.reward) == (True, False, 0.0) and environment.problem


@pytest.mark.parametrize("name", NAMES)
def test_a_task_starts_from_the_same_bytes_and_times(name, tmp_path):
    task = usable(name)
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        folders.make_start(task, tmp_path / place)
    first, second = (
        {
            path.relative_to(tmp_path / place): (
                path.lstat().st_mode,
                path.lstat().st_mtime,
                path.is_file() and path.read_bytes(),
            )
            for path in (tmp_path / place).rglob("*")
        }
        for place in ("a", "b")
    )
    assert first == second
    assert folders.fingerprint(tmp_path / "a") == folders.fingerprint(tmp_path / "b")


def test_there_are_enough_tasks_of_many_kinds_and_their_goals_are_one_paragraph():
    assert len(NAMES) >= 14 and len({task.definition.family for task in all_tasks()}) >= 8
    assert {task.definition.difficulty for task in all_tasks()} == {"easy", "medium", "hard"}
    assert all("\n" not in task.definition.goal and len(task.definition.goal) < 1000 for task in all_tasks())
    assert [task.id for task in make_tasks(["redact"])] == ["terminal/redact"]
    with pytest.raises(SettingsError, match="no terminal task `nonsense`; there are backup-rotate"):
        make_tasks(["nonsense"])


def test_directory_and_exported_variables_are_kept_and_nothing_else():
    kept = say(
        "git-split",
        "mkdir -p 'a b' && cd 'a b' && export X='1\n2' Y=3; z=4; f() { echo f; }",
        'echo "$X|$Y|$z|$PWD"; f',
        "cd -",
    )
    assert kept == [
        "exit code 0",
        "exit code 127\n1\n2|3||/task/a b\nbash: line 1: f: command not found",
        "exit code 0\n/task",
    ]


def test_outputs_come_in_order_and_endings_are_told():
    answers = say(
        "redact",
        "echo one; echo two >&2; echo three; exit 3",
        "if",
        "kill -9 $$",
        "sleep 60 & echo $! > pid; echo started",
        "test -e /proc/$(cat pid) && echo alive || echo gone",
        "yes | head -c 300000",
        "cat",
        "echo '\ud800'",
        "echo \0",
        "x" * 70_000,
    )
    assert answers[0] == "exit code 3\none\ntwo\nthree"
    assert answers[1].startswith("exit code 2\nbash:") and "syntax error" in answers[1]
    assert answers[2] == "exit code 137"
    assert answers[3:5] == ["exit code 0\nstarted", "exit code 0\ngone"]
    assert answers[5].startswith("exit code 137 (stopped: output)") and "characters left out" in answers[5]
    assert answers[6:8] == ["exit code 0", "exit code 0\n?"]
    assert all(answer.startswith("exit code 137 (stopped: error)\na command may have") for answer in answers[8:])


def test_a_command_that_takes_too_long_is_stopped_and_leaves_the_shell_as_it_was():
    with tempfile.TemporaryDirectory() as place:
        output, state = execute("cd /; export X=1; sleep 30", Path(place), State(), command_s=0.5)
        assert (output.code, output.stopped, state) == (None, "timeout", State())
        assert shown(output, 0.5) == "exit code 124 (stopped after 0.5 s)"


def test_long_output_is_cut_in_the_middle():
    text = shown(Output(0, "a" * CLIP + "b" * CLIP, None), 1)
    assert text.startswith("exit code 0\naaa") and text.endswith("bbb") and f"{CLIP} characters left out" in text


def test_graders_and_references_are_out_of_reach():
    assert (TASKS / "redact" / "grade.py").exists()
    answers = say(
        "redact",
        f"ls {TASKS} {TASKS}/redact",
        "find / -path /usr -prune -o -path /proc -prune -o -name grade.py -print -o -name solution.sh -print 2>/dev/null",
        "ls /tmp /task/..",
    )
    assert "grade.py" not in answers[0] + answers[1] and answers[1] in ("exit code 0", "exit code 1")
    assert "r2v-" not in answers[2]


@pytest.mark.parametrize(
    "cheat",
    [
        # looks for the verdict where a naive grader would leave it
        "cat > redact <<'E'\n#!/bin/sh\nexit 0\nE\nchmod +x redact",
        # one answer for everything
        "cat > redact <<'E'\n#!/bin/sh\ncat sample.redacted\nE\nchmod +x redact",
        # takes the tools that a grader may use out of the way
        "mkdir bin; for p in od tr cat bash python3; do printf '#!/bin/sh\\nexit 0\\n' > bin/$p; chmod +x bin/$p; done; "
        "export PATH=/task/bin",
        # goes through the walls: a link out of the folder, a pipe that blocks its reader, a locked folder
        "ln -s /etc/passwd redact; mkfifo sample.redacted2; mkdir locked; chmod 0 locked",
    ],
)
def test_cheats_fail(cheat):
    *_, end = asyncio.run(play(Terminal(usable("redact")), cheat, "submit"))
    assert (end.done, end.success) == (True, False)


HALF_RIGHT = (
    (
        "git-secret",
        "export FILTER_BRANCH_SQUELCH_WARNING=1; git reset -q --hard; git filter-branch --tag-name-filter cat --tree-filter "
        "'for f in deploy/credentials.ini settings/login.ini; do [ ! -f $f ] || echo x > $f; done' -- --all",
        "a commit still holds the file",
    ),
    (
        "git-lost-commit",
        "git fsck --unreachable --no-reflogs | awk '$2 == \"commit\" { print $3 }' | xargs -n 1 git branch -f recovered",
        "`recovered` is not on the lost commit",
    ),
    (
        "failing-test",
        "sed -i 's/self.assertEqual(.*/pass/' tests/test_sets.py && python3 -m unittest",
        "a function does not do what its docstring says",
    ),
)


@pytest.mark.parametrize(("name", "command", "problem"), HALF_RIGHT)
def test_half_right_attempts_fail(name, command, problem):
    environment = Terminal(usable(name))
    attempt, end = asyncio.run(play(environment, command, "submit"))
    assert attempt.text.startswith("exit code 0") and (end.success, environment.problem) == (False, problem)


def test_the_environment_conforms_with_and_without_perturbations():
    task = usable("git-split")
    commands = [
        "git log --oneline",
        "cd src && ls",
        "nonsense",
        "echo x > y; git add -A; git commit -m y; git log -1",
        "submit",
    ]
    asyncio.run(check_environment(lambda: Terminal(task), commands))
    for family in DOMAIN.families:
        perturbation = DOMAIN.perturbation(family, 2.0, task.definition.goal)
        asyncio.run(
            check_environment(lambda p=perturbation: PerturbedBranching(Terminal(task), p, seed=3, salt="x"), commands)
        )


def test_a_clone_is_another_future():
    async def both():
        environment = Terminal(usable("redact"))
        assert isinstance(environment, Branching)
        await environment.start()
        before = await environment.step(Action("mkdir d && cd d && export X=1 && echo a > f && mkfifo p && ln -s f l"))
        copy = environment.clone()
        same = await copy.step(Action("true"))
        assert same.latent == before.latent
        changed = await copy.step(Action("echo b > f; pwd; echo $X"))
        original = await environment.step(Action("cat f"))
        await environment.close()
        after = await copy.step(Action("cat l"))
        await copy.close()
        return changed, original, after

    changed, original, after = asyncio.run(both())
    assert changed.text == "exit code 0\n/task/d\n1" and original.text == "exit code 0\na" and after.text == "exit code 0\nb"
    assert changed.latent != original.latent


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    # A temporary folder of its own: other tests make and remove theirs in /tmp meanwhile.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    asyncio.run(play(Terminal(usable("redact")), "mkdir -p a/b; touch a/b/c; chmod 0 a/b a", "submit"))
    assert not list(tmp_path.iterdir())


def test_a_routed_agent_with_the_terminal_verifier_solves_a_task():
    """The small model only looks around; with the teacher at every step the task is done, without it never."""
    played = usable("git-split")
    (task,) = make_tasks([played.name])
    script = [line for line in (played.folder / "solution.sh").read_text().splitlines() if line != "set -e"]
    models = AgentModels(
        ScriptedPolicy(lambda c: "git log --stat"), ScriptedPolicy([*script, "submit"]), TerminalVerifier(), 2
    )

    async def run(router):
        return await run_episode(
            Terminal(played),
            Routed(models, router),
            task,
            seed=0,
            perturbation="none",
            horizon=6,
            memory=Memory(),
        )

    solved = asyncio.run(run(Always()))
    assert (solved.success, solved.stop, solved.failure) == (True, "done", None) and len(solved.steps) == len(script) + 1
    assert all(0 <= score <= 1 for step in solved.steps for score in step.choice.scores)
    alone = asyncio.run(run(Never()))
    assert (alone.success, alone.stop) == (False, "horizon")
    scores = [step.choice.scores[0] for step in alone.steps]
    assert scores[0] > scores[-1]  # the same command over and over is worth less


def test_a_model_behind_a_chat_server_solves_a_task(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    played = usable("git-split")
    (task,) = make_tasks([played.name])
    replies = [f"So:\n```bash\n{(played.folder / 'solution.sh').read_text()}```", "submit"]
    with serving(lambda body, number: completion(replies[len(body["messages"]) // 2 - 1])) as server:
        model = ChatPolicy(ChatSettings(kind="chat", base_url=server.url, model="m"), name="teacher", chat_format=SHELL)
        episode = asyncio.run(
            run_episode(
                Terminal(played), Solo(model, "teacher"), task, seed=0, perturbation="none", horizon=3, memory=Memory()
            )
        )
    assert (episode.success, episode.failure, len(episode.steps)) == (True, None, 2)
    assert played.definition.goal in server.bodies[0]["messages"][1]["content"]


def test_agents_that_part_get_folders_of_their_own():
    (task,) = make_tasks(["redact"])
    slm, teacher = (ScriptedPolicy([f"echo {who} > who", "cat who", "submit"]) for who in ("slm", "t"))
    models = AgentModels(slm, teacher, TerminalVerifier(), 2)
    one, two = asyncio.run(
        run_together(
            Terminal(task_named("redact")),
            [Routed(models, Never()), Routed(models, Always())],
            task,
            seed=0,
            perturbation="none",
            horizon=5,
            memory=Memory(),
        )
    )
    assert [e.steps[2].observation.text for e in (one, two)] == ["exit code 0\nslm", "exit code 0\nt"]
    assert (one.success, two.success) == (False, False)


TEXTS = (
    "exit code 0\nMakefile\nmain.c\nsrc/",
    "exit code 1\nTraceback (most recent call last):\n  File \"a.py\", line 3, in <module>\n    f()\nValueError: 17",
    "exit code 2\nmain.c:3:5: error: x\nmain.c:9:1: error: y\nmake: *** [Makefile:3: all] Error 1",
    "exit code 0\n" + "\n".join(f"line {i} of /task/data/file.csv" for i in range(30)),
    "exit code 0",
)  # fmt: skip


@pytest.mark.parametrize("family", DOMAIN.families)
def test_shell_perturbations_conform_leave_the_opening_and_use_every_operator(family):
    check_perturbation(lambda strength: DOMAIN.perturbation(family, strength, "mend it"), TEXTS, seeds=20)
    perturbation = DOMAIN.perturbation(family, 8.0, "mend it")
    used = set()
    for seed in range(60):
        assert perturbation.apply(TEXTS[0], where="observation", previous="", seed=seed, t=0) == (TEXTS[0], ())
        for text in TEXTS:
            _, changes = perturbation.apply(text, where="observation", previous="exit code 0\nbefore", seed=seed, t=1)
            used |= {change.operator for change in changes}
    assert used == {name for name, _, _ in perturbation.on_observation}


def test_shell_perturbations_are_of_these_families_only():
    with pytest.raises(SettingsError, match="there are flaky, partial"):
        DOMAIN.perturbation("inject", 1.0, "mend it")


def test_the_verifier_conforms():
    context = Context("mend it", ("opening", TEXTS[1], TEXTS[3]), (Action("make"), Action("ls")), 20)
    asyncio.run(
        check_verifier(TerminalVerifier(), context, ["make", "ls", "pytest", "", "submit", "make", "cat > a <<E\nx\nE"])
    )
