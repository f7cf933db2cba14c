"""The estimators on real models: MINT's episodes with and without a stronger model's feedback, RouteLLM's answers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"
MINT, QUERIES = DATA / "trajectories/mint/dev_episodes.jsonl.xz", DATA / "queries/routellm.jsonl.xz"


@pytest.fixture(scope="module")
def recorded():
    spec = importlib.util.spec_from_file_location("recorded_help", ROOT / "benchmarks" / "recorded_help.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not MINT.exists(), reason=f"{MINT} is not here")
def test_benefit_finds_whom_help_helps_and_risk_does_not(recorded):
    found = recorded.mint(MINT)
    assert (found["tasks"], found["pairs"]) == (357, 9280)
    for gain in found["gain"].values():
        assert gain["benefit"][1] > 0, "help by benefit is no better than help at random"
        assert gain["benefit - risk"][1] > 0
        assert gain["risk"][1] < 0 < gain["benefit"][0] - gain["random"]
    helper = found["helper"]
    for policy in ("never", "always"):
        assert helper["predicted"][policy] == pytest.approx(helper["seen"][policy], abs=0.05)


@pytest.mark.skipif(not QUERIES.exists(), reason=f"{QUERIES} is not here")
def test_the_query_router_is_better_than_chance_on_real_questions(recorded):
    found = recorded.routellm(QUERIES)
    assert found["chance_97.5"] < found["area"] < found["oracle"]
