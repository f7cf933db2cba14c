"""`r2v run examples/humaneval.yaml` from end to end, with two made-up chat models behind a real server."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from r2v.clients.cassette import Cassette
from r2v.domains.humaneval.env import goal_of
from r2v.domains.humaneval.problems import load_problems, shipped
from r2v.pipeline.runner import stage_fingerprint
from r2v.pipeline.settings import RunSettings
from r2v.pipeline.stages import STAGES
from r2v.runtime import sandbox
from r2v.runtime.settings import load
from r2v.runtime.store import read_episodes
from servers import running

EXAMPLE = Path(__file__).parents[1] / "examples" / "humaneval.yaml"


def app() -> Starlette:
    """TEACHER writes the canonical solution and submits it; SMALL does so for every other problem, else something short."""
    problems = {goal_of(problem).split("\n", 1)[0]: problem for problem in load_problems(shipped())}

    async def complete(request: Request) -> JSONResponse:
        body = await request.json()
        goal = body["messages"][1]["content"].removeprefix("Your task is to: ").split("\n", 1)[0]
        if goal not in problems:  # of a dry run
            return JSONResponse({"choices": [{"message": {"role": "assistant", "content": "yes"}}], "usage": {}})
        problem = problems[goal]
        knows = body["model"] == "TEACHER" or int(problem.id.split("/")[1]) % 2 == 0
        code = problem.prompt + problem.canonical if knows else f"def {problem.entry_point}(*arguments):\n    return 1\n"
        written = any(code.strip() in m["content"] for m in body["messages"] if m["role"] == "assistant")
        reply = "submit" if written else f"write_code\n```python\n{code}```"
        message = {"role": "assistant", "content": reply}
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        return JSONResponse({"choices": [{"message": message}], "usage": usage})

    return Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"])])


def r2v(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from r2v.cli import app; app()", *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("humaneval")
    with pytest.MonkeyPatch.context() as patch, running(app()) as url:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.delenv("HUMANEVAL_OVERRIDE_PATH", raising=False)
        settings = yaml.safe_load(EXAMPLE.read_text())
        for model in (settings["teacher"], settings["slm"]["model"]):
            price = {"input": 1.0, "output": 2.0}
            model |= {"base_url": f"{url}/v1", "cassette": str(folder / "answers"), "price": price}
        settings |= {"router": {"epochs": 5}, "threads": 1}
        path = folder / "settings.yaml"
        path.write_text(yaml.safe_dump(settings))
        planned = r2v("run", str(path), "--out", str(folder / "run"), "--dry-run")
        assert not (folder / "run").exists() and not (folder / "answers.sqlite").exists()
        first = r2v("run", str(path), "--out", str(folder / "run"))
        second = r2v("run", str(path), "--out", str(folder / "run"))
        after = r2v("run", str(path), "--out", str(folder / "run"), "--dry-run")
    return folder / "run", first, second, planned, after


def test_a_dry_run_says_what_would_be_done_and_what_it_costs(finished):
    run, _, _, planned, after = finished
    assert "2-perturb   skipped: the SLM is a chat endpoint" in planned and "up to date" not in planned
    assert "6-rollout   to do: " in planned and after.count("up to date") == 9 and "to do" not in after
    slm, cost = next(pair for pair in itertools.pairwise(planned.splitlines()) if pair[0].startswith("slm"))
    assert "SMALL at http://127.0.0.1:" in slm and "answers in" in slm and "no log-probabilities" in slm
    least, most, usd = re.fullmatch(r" +([\d.]+) to ([\d.]+) million tokens, ([\d.]+) to [\d.]+ USD", cost).groups()
    assert 0 < float(least) < float(most) and float(least) < float(usd) < 2 * float(least)  # 1 and 2 USD a million
    said = refused_but_printed(run.parent / "settings.yaml")
    assert "does not answer" in said.stdout and "start its server" in said.stderr and said.stderr.count("\n") == 1


def refused_but_printed(settings: Path) -> subprocess.CompletedProcess[str]:
    """A dry run whose servers have ended."""
    command = [sys.executable, "-c", "from r2v.cli import app; app()", "run", str(settings), "--out", "x", "--dry-run"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_run_is_played_again_from_its_cassette_without_the_models_bit_for_bit(finished):
    run = finished[0]
    cassette = Cassette(run.parent / "answers")
    assert cassette.pack() > 0
    (run.parent / "answers.sqlite").unlink()
    again = run.parent / "again" / run.name  # routers say which run they were fitted in
    r2v("run", str(run.parent / "settings.yaml"), "--out", str(again), "--until", "evaluate")
    found = [json.loads((folder / "8-evaluate" / "results.json").read_text()) for folder in (run, again)]
    assert [one["provenance"].pop("times") for one in found]
    assert json.dumps(found[0]) == json.dumps(found[1]) and not (run.parent / "answers.sqlite").exists()
    episodes = [(folder / "8-evaluate" / "episodes.parquet").read_bytes() for folder in (run, again)]
    assert episodes[0] == episodes[1]


def test_stages_that_train_are_skipped_and_said_to_be(finished):
    _, first, second, *_ = finished
    lines = {line.split()[0]: line for line in first.splitlines() if line[:1].isdigit()}
    for stage in ("2-perturb", "3-clone", "4-propose", "5-prefer"):
        assert "skipped: the SLM is a chat endpoint" in lines[stage]
    assert "skipped" not in lines["6-rollout"]
    assert second.count("up to date") == 9


def test_the_run_has_results_episodes_and_a_report(finished):
    run, first, *_ = finished
    results = json.loads((run / "8-evaluate" / "results.json").read_text())
    assert results["preference"] is None
    assert results["provenance"]["sandbox"] == list(sandbox.layers())
    assert first.startswith(f"sandbox  {', '.join(sandbox.layers())}")
    assert set(results["routers"]) == {"slm_only", "llm_only", "random", "heuristic", "verifier", "r2v"}
    alone, teacher = results["routers"]["slm_only"], results["routers"]["llm_only"]
    assert teacher["success_rate"] == 1.0 and alone["success_rate"] < 1.0
    assert "llm_only" in first
    episodes = read_episodes(run / "8-evaluate" / "episodes.parquet")
    assert {episode.task.environment for episode in episodes} == {"humaneval"}
    assert {episode.failure for episode in episodes} == {None}
    assert all(router["broken"] == 0 for router in results["routers"].values())
    assert alone["tokens_per_episode"]["teacher"] == 0 < alone["tokens_per_episode"]["slm"]
    assert alone["usd_per_episode"] > 0 and teacher["usd_per_episode"] == pytest.approx(20e-6 * teacher["steps_per_episode"])
    for episode in episodes:
        if episode.agent == "slm_only" and episode.stop == "done":
            assert episode.success == (int(episode.task.id.split("/")[1]) % 2 == 0)
    page = (run / "9-report" / "report.html").read_text()
    assert "nothing was trained" in page


def test_another_problem_file_of_the_same_name_is_another_run(tmp_path, monkeypatch):
    problems = tmp_path / "problems.jsonl"
    monkeypatch.setenv("HUMANEVAL_OVERRIDE_PATH", str(problems))
    settings, collect = load(EXAMPLE, RunSettings), STAGES[0]
    fingerprints = []
    for content in ("one", "one", "other"):
        problems.write_text(content)
        fingerprints.append(stage_fingerprint(collect, settings, tmp_path))
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_what_does_not_fit_is_one_line(finished, refused, tmp_path):
    run = finished[0]
    for only in ((), ("--only", "consistency")):
        assert "chat endpoint" in refused("ablate", run, *only)
    assert "names logs" in refused("run", EXAMPLE.with_name("own-logs.yaml"), "--out", tmp_path / "logs", "--dry-run")
    assert "--fresh-tasks" in refused("evaluate", run, "--fresh-tasks", "3", "--out", tmp_path / "fresh")
