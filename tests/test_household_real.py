"""Recorded ALFWorld games: all load, their walkthroughs win, and walks match TextWorld."""

from __future__ import annotations

import json
import os

import pytest

from r2v.domains.household.env import Household
from r2v.domains.household.games import find_games, load_game, real_tasks

WALKS, STEPS = 20, 25


def test_all_games_load_and_recorded_walkthroughs_win(games):
    """All 140 games of valid_seen carry a walkthrough; those of train do not."""
    found = find_games(games)
    assert len(found) == 340
    followed = 0
    for path in found:
        env = Household(load_game(path), any_dialect=False)
        assert len(env.admissible_commands()) > 5
        plan = json.loads(path.read_text()).get("walkthrough", [])
        won = False
        for command in plan:
            assert command in env.admissible_commands(), f"{path}: {command}"
            _, _, won = env.play(command)
        assert won == bool(plan), path
        followed += won
    assert followed == 140


def test_real_games_become_tasks(games):
    tasks = real_tasks(games)
    assert len({task.id for task in tasks}) == 340
    assert all(not task.id.startswith("/") and task.goal for task in tasks)


def test_walks_match_textworld(games):
    os.environ.setdefault("ALFWORLD_DATA", str(games))
    pytest.importorskip("textworld.envs.pddl", reason="needs the extra r2v[alfworld]")
    pytest.importorskip("alfworld.agents.environment.alfred_tw_env", reason="needs the extra r2v[alfworld]")
    import textworld_reference as reference

    reference.speed_up()
    found = find_games(games)
    chosen = found[:: len(found) // WALKS][:WALKS]
    assert len(chosen) == WALKS
    for i, path in enumerate(chosen):
        reference.compare_walk(path, STEPS, seed=5000 + i)
