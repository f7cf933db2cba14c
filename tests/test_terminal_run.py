"""`r2v run` of the terminal from end to end, with two made-up chat models behind a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from r2v.domains.terminal.tasks import all_tasks, make_tasks
from r2v.pipeline.runner import run_stages
from r2v.pipeline.settings import RunSettings
from r2v.pipeline.stages import STAGES
from r2v.runtime import sandbox
from r2v.runtime.settings import load
from r2v.runtime.store import read_episodes, read_json
from servers import running

EXAMPLE = Path(__file__).parents[1] / "examples" / "terminal.yaml"


def app() -> Starlette:
    """TEACHER runs the reference solution and submits; SMALL does so in one of three tasks, else it only looks around."""
    solutions = {task.definition.goal.strip(): (task.folder / "solution.sh").read_text() for task in all_tasks()}

    async def complete(request: Request) -> JSONResponse:
        body = await request.json()
        goal = next(goal for goal in solutions if goal in body["messages"][1]["content"])
        steps = sum(message["role"] == "assistant" for message in body["messages"])
        knows = body["model"] == "TEACHER" or list(solutions).index(goal) % 3 == 0
        script = solutions[goal] if knows else "ls -la"
        reply = f"```bash\n{script}\n```" if steps == 0 else "submit"
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        return JSONResponse({"choices": [{"message": {"role": "assistant", "content": reply}}], "usage": usage})

    return Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"])])


def test_the_example_runs_with_chat_endpoints(tmp_path):
    if "namespaces" not in sandbox.layers():
        pytest.skip("the terminal needs namespaces, which this host does not allow")
    if len(make_tasks()) < 12:
        pytest.skip("git, gcc or make is not installed")
    settings = yaml.safe_load(EXAMPLE.read_text())
    with running(app()) as url:
        settings["teacher"]["base_url"] = settings["slm"]["model"]["base_url"] = f"{url}/v1"
        settings["tasks"] = {"policy": 0, "router": 4, "validation": 4, "test": 4}
        settings["perturbations"] |= {"strength": 0.2, "rollout": [21, 22], "validation": [31, 32], "test": [41, 42]}
        settings |= {"router": {"epochs": 3}, "threads": 1, "routers": ["verifier", "r2v"], "evaluate": {"clairvoyant": 0}}
        settings["slm"]["k"] = 2
        path = tmp_path / "settings.yaml"
        path.write_text(yaml.safe_dump(settings))
        done = subprocess.run(
            [sys.executable, "-c", "from r2v.cli import app; app()", "run", str(path), "--out", str(tmp_path / "run")],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    routers = json.loads((tmp_path / "run/8-evaluate/results.json").read_text())["routers"]
    assert routers["slm_only"]["success_rate"] < routers["llm_only"]["success_rate"] == 1.0
    assert all(router["broken"] == 0 for router in routers.values())


def test_collect_calls_no_teacher_whose_episodes_nobody_reads(tmp_path):
    asked = []

    async def complete(request: Request) -> JSONResponse:
        asked.append(await request.json())
        return JSONResponse({"choices": [{"message": {"role": "assistant", "content": "submit"}}]})

    settings = yaml.safe_load(EXAMPLE.read_text()) | {"tasks": {"policy": 2, "router": 2, "validation": 2, "test": 2}}
    with running(Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"])])) as url:
        settings["teacher"]["base_url"] = settings["slm"]["model"]["base_url"] = f"{url}/v1"
        path = tmp_path / "settings.yaml"
        path.write_text(yaml.safe_dump(settings))
        run_stages(STAGES[:1], load(path, RunSettings), tmp_path / "run", Console(quiet=True))
    assert asked == [] and read_episodes(tmp_path / "run/1-collect/episodes.parquet") == []
    assert {name: len(tasks) for name, tasks in read_json(tmp_path / "run/1-collect/tasks.json").items()} == settings[
        "tasks"
    ]
