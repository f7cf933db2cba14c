"""A router from logs alone: every format is read, nothing is pretended."""

from __future__ import annotations

import json
import lzma
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from r2v.cli import cli
from r2v.core.errors import ArtifactError, SettingsError
from r2v.logs.importing import import_logs
from r2v.pipeline.settings import LogsSettings
from r2v.routers import load_router
from r2v.routers.base import FittedWith
from r2v.runtime.settings import load
from r2v.runtime.store import read_episodes

SHARED = Path(os.environ.get("R2V_SHARED", Path(__file__).parents[2] / "shared"))
TAU = SHARED / "data/trajectories/tau_bench/episodes.jsonl.xz"
LOOP = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "book a flight"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "search", "arguments": '{"to": "SEA"}'}}]},
    {"role": "tool", "tool_call_id": "a", "content": "Error: no flights"},
    {"role": "assistant", "content": "I could not find one."},
    {"role": "user", "content": "thanks"},
]  # fmt: skip
BLOCKS = [
    {"role": "user", "content": "book a flight"},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "search", "input": {"to": "SEA"}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "Error: no flights"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "I could not find one."}]},
    {"role": "user", "content": "thanks"},
]
ATIF = {
    "schema_version": "ATIF-v1.5", "session_id": "s-1", "agent": {"name": "x", "version": "1", "model_name": "m"},
    "steps": [
        {"step_id": 1, "source": "user", "message": "book a flight"},
        {"step_id": 2, "source": "agent", "message": "",
         "tool_calls": [{"tool_call_id": "a", "function_name": "search", "arguments": {"to": "SEA"}}],
         "observation": {"results": [{"source_call_id": "a", "content": "Error: no flights"}]}},
        {"step_id": 3, "source": "agent", "message": "I could not find one."},
    ],
    "extra": {"reward": 0.0},
}  # fmt: skip
RECORDS = {
    "openai-jsonl": ("log.jsonl", json.dumps({"messages": LOOP, "success": False, "task": "t1"})),
    "anthropic-jsonl": ("log.jsonl", json.dumps({"messages": BLOCKS, "system": "s", "reward": 0, "task": "t1"})),
    "mini-swe-agent": ("t1.traj.json", json.dumps({"messages": LOOP, "info": {"resolved": False}, "instance_id": "t1"})),
    "tau-bench": ("runs.json", json.dumps([{"task_id": "t1", "reward": 0.0, "traj": LOOP}])),
    "atif": ("t1.json", json.dumps(ATIF)),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_every_format_is_the_same_episode(tmp_path, kind):
    name, text = RECORDS[kind]
    (tmp_path / name).write_text(text)
    (episode,), unknown = import_logs(tmp_path / name, kind)
    assert (unknown, episode.success, len(episode.steps)) == (0, False, 2)
    first, second = episode.steps
    assert first.choice.action.tool_calls[0].name == "search" and "SEA" in first.choice.action.text
    assert second.choice.action.text == "I could not find one."
    assert second.observation.text == "Error: no flights" and episode.goal == "book a flight"
    assert first.choice.features is not None and not first.choice.features.present[0]  # no log-probabilities, none made up


def test_tau2_and_lines_of_steps_are_read_too(tmp_path):
    flat = [dict(m) for m in LOOP]
    flat[2] = {**flat[2], "tool_calls": [{"id": "a", "name": "search", "arguments": {"to": "SEA"}}]}
    runs = {"simulations": [{"task_id": "t1", "reward_info": {"reward": 1.0}, "messages": flat}]}
    (tmp_path / "tau2.json").write_text(json.dumps(runs))
    (episode,), _ = import_logs(tmp_path / "tau2.json", "tau-bench")
    assert episode.success and len(episode.steps) == 2


def test_outcomes_may_come_from_a_report(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.traj.json").write_text(json.dumps({"messages": LOOP, "info": {}}))
    report = tmp_path / "report"
    report.write_text(json.dumps({"resolved_ids": ["a"], "unresolved_ids": ["b"]}))
    episodes, unknown = import_logs(tmp_path, "mini-swe-agent", report)
    assert {e.task.id: e.success for e in episodes} == {"a": True, "b": False} and unknown == 1


def test_bad_logs_are_one_line_that_names_the_place(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"messages": LOOP, "success": True}) + "\n{oops\n{}\n")
    with pytest.raises(ArtifactError, match=r"log\.jsonl:2 is not JSON"):
        import_logs(path, "openai-jsonl")
    path.write_text('{"rows": 1}')
    with pytest.raises(ArtifactError, match=r"log\.jsonl:1 is not openai-jsonl"):
        import_logs(path, "openai-jsonl")


def synthetic(path: Path, tasks: int, seed: int = 0) -> None:
    """Failing episodes repeat a failing call; a third of the labels is noise."""
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(tasks):
        stuck = rng.random() < 0.5
        messages = [{"role": "user", "content": f"do thing {i}"}]
        for t in range(6):
            text = '{"x": 1}' if stuck and t > 2 else json.dumps({"x": int(rng.integers(1000))})
            function = {"name": "run", "arguments": text}
            messages.append({"role": "assistant", "content": None, "tool_calls": [{"id": str(t), "function": function}]})
            messages.append(
                {"role": "tool", "tool_call_id": str(t), "content": "Error" if stuck else f"ok {rng.integers(99)}"}
            )
        success = bool(rng.random() < (0.2 if stuck else 0.8))
        lines.append(json.dumps({"messages": messages, "success": success, "task": f"t{i}"}))
    path.write_text("\n".join(lines))


def fitted(*arguments: str) -> tuple[int, dict]:
    done = CliRunner().invoke(cli, ["fit", *arguments, "--json"])
    return done.exit_code, json.loads(done.stdout.splitlines()[-1])


def test_outcomes_of_one_model_show_a_risk_but_no_route(tmp_path):
    """What a teacher would make of the failures is not in such logs: the router is written only if one insists."""
    synthetic(tmp_path / "log.jsonl", 240)
    log, out = str(tmp_path / "log.jsonl"), tmp_path / "router"
    status, told = fitted(log, "--out", str(out))
    assert (status, told["verdict"], told["router"]) == (2, "not_enough", None) and not out.exists()
    status, told = fitted(log, "--out", str(out), "--unproven")
    assert status == 0 and told["failures_found_ci95"][0] > 0 and told["auroc_equal_step_ci95"][0] > 0.6
    report = json.loads((out / "fit.json").read_text())  # what `r2v promote` reads
    assert report["ready"] is False and report["gain_over_random"] is None
    router = load_router(out)
    assert router.fitted_with == FittedWith(1, 50, "tool_calls")
    assert router.threshold is not None and "first_token_entropy" not in router.reader.names
    episodes, _ = import_logs(tmp_path / "log.jsonl", "openai-jsonl")
    step, context = episodes[0].steps[-1], episodes[0].contexts(50)[-1]
    assert 0 <= router.score_of(context, step.choice.action, step.choice.features) <= 1


def test_too_few_logs_are_refused_with_how_many_it_takes(tmp_path):
    synthetic(tmp_path / "log.jsonl", 15)
    status, told = fitted(str(tmp_path / "log.jsonl"), "--out", str(tmp_path / "router"), "--unproven")
    assert status == 2 and told["router"] is None and told["sessions_needed"] >= 20
    assert "15 different tasks of at least 20" in told["why"] and not (tmp_path / "router").exists()


@pytest.mark.skipif(not TAU.exists(), reason=f"{TAU} is not here")
def test_real_tau_bench_runs_are_read(tmp_path):
    episodes, unknown = import_logs(TAU, "tau-bench")
    assert (len(episodes), unknown) == (594, 0)
    assert sum(len(e.steps) for e in episodes) == 7519
    assert np.mean([e.success for e in episodes]) == pytest.approx(0.673, abs=0.003)


def test_a_run_on_own_logs_inspects_and_fits(tmp_path, shared_data):
    """`r2v run` of a file with `logs`: the page and the router in one folder; the example loads."""
    assert load(Path(__file__).parents[1] / "examples/own-logs.yaml", LogsSettings).logs.format == "ledger"
    recorded = shared_data / "trajectories/tau_bench/episodes.jsonl.xz"
    few = tmp_path / "few.jsonl"
    with lzma.open(recorded, "rt") as stream:
        few.write_text("".join(line for _, line in zip(range(150), stream, strict=False)))
    written = CliRunner().invoke(cli, ["import", str(few), str(tmp_path / "few.parquet"), "--format", "tau-bench"])
    assert written.exit_code == 0, written.output
    assert read_episodes(tmp_path / "few.parquet") == import_logs(few, "tau-bench")[0]
    config = tmp_path / "logs.yaml"
    config.write_text(f"version: 1\nlogs: {{path: {few}, format: tau-bench}}\n")
    done = CliRunner().invoke(cli, ["run", str(config), "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out/inspect/inspect.html").exists() and "AUROC" in done.output
    assert (tmp_path / "out/advice/advice.html").exists() and "no router written" in done.output
    config.write_text(f"version: 1\nunproven: true\nlogs: {{path: {few}, format: tau-bench}}\n")
    done = CliRunner().invoke(cli, ["run", str(config), "--out", str(tmp_path / "again")], catch_exceptions=False)
    assert done.exit_code == 0 and load_router(tmp_path / "again/router").threshold is not None
    refused = CliRunner().invoke(cli, ["run", str(config), "--out", str(tmp_path / "out"), "--until", "fit"])
    assert isinstance(refused.exception, SettingsError)
