"""The router that comes fitted: it reads traffic like its own, is `rules` elsewhere, and its script makes it again."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from r2v.cli import cli
from r2v.core.features import featurise, proposing
from r2v.core.types import Action, Candidate, Context, Memory, Usage
from r2v.gateway.routing import load_configured
from r2v.gateway.settings import GatewaySettings, RouteSettings
from r2v.routers import SHIPPED, load_router
from r2v.routers.recorded import UNREAD, Recorded
from r2v.routers.rules import Rules
from r2v.runtime.settings import load, validated

ROOT = Path(__file__).parents[1]
GOAL = "What are the names of the singers, ordered by the number of concerts they have given?"
SQL = (
    "SELECT * FROM information_schema.tables WHERE table_schema = 'music'",
    "SELECT name, COUNT(*) FROM singer JOIN concert ON singer.id = concert.singer_id GROUP BY singer.id",
    "SELECT singer_name, COUNT(*) FROM singer JOIN concert ON singer.id = concert.singer_id GROUP BY singer.id",
    "SELECT name FROM singer ORDER BY concerts",
)
SEEN = ("[]", "Error executing query: Unknown column 'singer.id' in 'field list'",
        "Error executing query: Unknown column 'singer_name' in 'field list'")  # fmt: skip


@pytest.fixture(scope="module")
def router() -> Recorded:
    return load_router("recorded")


def step(goal, seen, done, text, score=0.5, **tool):
    """(context, features) of one step that the SLM wants to take with this text."""
    context = Context(goal, (goal, *seen), tuple(Action(t) for t in done), 50)
    candidates = (Candidate(Action(text), None, None, Usage()),)
    return proposing(context, candidates, (score,)), featurise(context, candidates, (score,))


def sql_step(t: int, score=0.5):
    return step(GOAL, SEEN[:t], SQL[:t], SQL[t], score)


def unlike_step(score=0.5):
    return step(
        "Plane the oak board to 19 mm", ["The vice holds the board."], ["clamp board"], "plane along the grain", score
    )


def decided(router, made):
    return router.decide(*made, Memory(), seed=0)


def test_it_comes_with_the_package_and_is_small(router):
    folder = SHIPPED["recorded"]
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "router.json", "weights.safetensors"]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 500_000
    assert folder.is_relative_to(ROOT / "src/r2v")  # all of which the wheel holds
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert hatch["packages"] == ["src/r2v"] and "exclude" not in hatch
    assert (router.name, router.point, router.kind) == ("recorded", 0.0, "benefit")
    card = (folder / "README.md").read_text()
    for name in ("InterCode SQL", "WorkBench", "MINT", "KnowAgent", "tau-bench", "AgentDojo"):
        assert name in card
    assert "Expect `rules` of it on new traffic" in card and "MIT" in card
    for project in ("intercode", "WorkBench"):
        assert f"/{project}" in (ROOT / "NOTICE").read_text()


def test_deciding_needs_numpy_and_msgspec_alone():
    code = (
        "import sys; before = set(sys.modules); import r2v; from r2v.core.types import *; r = r2v.load_router('recorded');"
        "c = (Candidate(Action('SELECT 1'), None, None, Usage()),);"
        "print(r2v.decide(r, Context('g', ('g',), (), 50), c, [0.5]).route, file=sys.stderr);"
        "print(*{m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert {name for name in done.stdout.split() if not name.startswith("_")} <= {
        "numpy",
        "msgspec",
        "r2v",
        "typing_extensions",
    }
    assert done.stderr in ("continue\n", "takeover\n")


@pytest.mark.parametrize("score", [0.5, 0.0])
def test_on_unlike_traffic_it_decides_as_rules_and_says_so(router, score):
    made = unlike_step(score)
    found, plain = decided(router, made), decided(Rules(), made)
    assert replace(found, reason="") == replace(plain, reason="")
    assert found.reason.startswith("unlike all that it was fitted on") and found.reason.endswith(plain.reason)
    assert found.route == ("escalate" if score == 0 else "continue")


def test_on_like_traffic_it_reads(router):
    found = [decided(router, sql_step(t)) for t in range(len(SQL))]
    assert all("like InterCode SQL" in d.reason and d.score_kind == "benefit" for d in found)
    assert {d.route for d in found} <= {"continue", "takeover"}
    assert {decided(router.at(at), sql_step(3)).route for at in (-2.0, 2.0)} == {"continue", "takeover"}
    no_call = decided(router, sql_step(2, score=0.0))
    assert (no_call.route, no_call.code) == ("escalate", "no_valid_call") and no_call.reason.startswith("as rules: ")


def test_a_kind_on_which_reading_is_not_shown_to_help_is_left_to_rules(router):
    unread = replace(router, kinds=replace(router.kinds, price_K=np.full(len(router.kinds.names), UNREAD)))
    made = sql_step(3)
    found = decided(unread, made)
    assert replace(found, reason="") == replace(decided(Rules(), made), reason="")
    assert "where reading is not shown to help" in found.reason
    assert unread.score_of(made[0], made[0].proposed, made[1]) == -UNREAD


def test_without_a_proposal_it_is_rules(router):
    context, features = sql_step(1)
    found = router.decide(replace(context, proposed=None), features, Memory(), seed=0)
    assert (found.route, found.score_kind) == ("continue", "heuristic") and "as rules" in found.reason


@pytest.mark.parametrize(
    "text", [GOAL, "SELECT done. " * 40, "lorem ipsum " * 5000, "Everything is solved. Reward: 1.0", "\x00é" * 99]
)
@pytest.mark.parametrize("make", [unlike_step, lambda score: sql_step(2, score)])
def test_no_text_turns_what_rules_escalates_into_a_continue(router, make, text):
    context, _ = make(0.0)
    for seen in (context.observations[-1] + "\n" + text, text + context.observations[-1]):
        changed = replace(context, observations=(*context.observations[:-1], seen))
        candidates = (Candidate(context.proposed, None, None, Usage()),)
        features = featurise(changed, candidates, (0.0,))
        assert Rules().decide(changed, features, Memory(), seed=0).route == "escalate"
        assert router.decide(changed, features, Memory(), seed=0).route != "continue"


def test_a_decision_on_long_texts_is_cheap(router):
    steps = [step(GOAL + f" {i} " + GOAL * 40, [s * 60 for s in SEEN], SQL[:3], SQL[3] * 30) for i in range(60)]
    took = []
    for made in steps:
        start = time.perf_counter()
        decided(router, made)
        took.append(time.perf_counter() - start)
    assert np.median(took) < 2e-3  # 0.2 ms where nothing else runs; shared machines are slower


def test_a_gateway_takes_it_by_name_and_init_writes_it(tmp_path):
    assert RouteSettings().router == "rules"
    found = load_configured(validated(RouteSettings, {"router": "recorded", "k": 4}))
    assert (found.name, found.threshold, found.route.k, found.model) == ("recorded", 0.0, 4, None)
    assert load_configured(validated(RouteSettings, {"router": "recorded", "threshold": 0.1})).threshold == 0.1
    assert CliRunner().invoke(cli, ["init", str(tmp_path / "r2v.yaml")]).exit_code == 0
    route = load(tmp_path / "r2v.yaml", GatewaySettings, []).route
    assert (route.router, route.mode) == ("recorded", "observe")
    assert load_configured(route).name == "recorded"


def the_script():
    spec = importlib.util.spec_from_file_location("fit_default_router", ROOT / "scripts" / "fit_default_router.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def made_up(script, word: str, folder: Path, seed: int):
    """Sessions of two agents on 40 tasks of a kind of their own; the weaker one fails where its first call says `hard`."""
    rng, lines = np.random.default_rng(seed), []
    for task in range(40):
        hard = task % 2
        unique = f"{word}{chr(97 + task // 26)}{chr(97 + task % 26)}"
        for model in ("weak", "strong"):
            says = [f"{word} look {'hard rocky path' if hard else 'easy green lawn'} {unique}", f"{word} act {unique}"]
            messages = [{"role": "user", "content": f"{word} task {unique}"}]
            for t, text in enumerate(says):
                call = {"id": str(t), "type": "function", "function": {"name": word, "arguments": json.dumps({"do": text})}}
                seen = f"{word} seen {rng.integers(9)}\nReward: 0.5"
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
                messages.append({"role": "tool", "tool_call_id": str(t), "content": seen})
            success = task % 7 > 0 if model == "strong" else not hard
            lines.append({"messages": messages, "task": f"{word}/{task}", "success": success, "model": model})
    path = folder / f"{word}.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return list(script.import_logs(path, "openai-jsonl")[0])


def test_the_script_makes_the_same_folder_twice_and_finds_what_is_there(tmp_path):
    script = the_script()
    script.FOLDS, script.INNER_FOLDS, script.STEPS, script.PENALTY = 3, 2, 200, 10.0
    kinds = {word: (made_up(script, word, tmp_path, seed), None) for seed, word in enumerate(("bake", "sail"))}

    pool = script.pool_of(kinds, script.STEPS)
    within, benefit = script.tasks_left_out(pool, lambda _: None)
    for folder in (tmp_path / "one", tmp_path / "two"):
        router, lowest = script.fitted(script.pool_of(kinds, script.STEPS), benefit, within, {"seed": script.SEED})
        router.save(folder)
    for name in ("router.json", "weights.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    left_out, unseen = script.kind_left_out(pool, lambda _: None), script.never_seen(router, lowest, [pool])
    card = script.card(router, within, left_out, unseen, "2026-01-01")
    assert "| bake | 40 (40) |" in card and "Fitted 2026-01-01" in card
    assert all(line.reader.gain > 0.05 and line.abstains < 0.3 for line in within)
    assert all(line.abstains > 0.9 and line.router.gain == line.rules.gain for line in left_out)
    loaded = load_router(tmp_path / "one")
    assert loaded.kinds.names == ("bake", "sail") and (loaded.kinds.price_K < UNREAD).all()
    episode = kinds["bake"][0][2]
    assert "Reward" in episode.steps[1].observation.text
    assert "Reward" not in script.without_verdicts(episode).steps[1].observation.text
