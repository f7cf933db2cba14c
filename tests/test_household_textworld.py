"""Our engine against TextWorld's PDDL engine on generated games: texts, commands, rewards, ends must be equal."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("ALFWORLD_DATA", str(Path(__file__).parent))  # else alfworld.info makes a folder in the home
pytest.importorskip("textworld.envs.pddl", reason="needs the extra r2v[alfworld]")
pytest.importorskip("alfworld.info", reason="needs the extra r2v[alfworld]")

import alfworld.info

import textworld_reference as reference
from r2v.domains.household.games import FAMILIES
from r2v.domains.household.scenes import SceneSettings, generate

GAMES, STEPS, LEAST = 48, 180, 6_600
BEFORE_0_4 = (
    ("action help {", "action unused {"),
    ("move {o} to {r}", "put {o} in/on {r}"),
    ("You move the {o.name} to the {r.name}.", "You put the {o.name} in/on the {r.name}."),
    ("You arrive at {r.name}.", "You arrive at {lend.name}."),
)


def game_file(folder: Path, index: int) -> Path:
    """Scenes of all families; half of them stressed, a third in the old dialect."""
    old = index % 3 == 0
    settings = SceneSettings(
        receptacles=(6, 12), dialect="put" if old else "move", shared=0.25 * (index % 2), opened=0.25 * (index % 2)
    )
    scene = generate(f"differential/{index}", FAMILIES[index % 6], settings)
    domain, grammar = Path(alfworld.info.ALFRED_PDDL_PATH).read_text(), Path(alfworld.info.ALFRED_TWL2_PATH).read_text()
    if old:
        at = domain.index("(:action help")
        domain = domain[:at] + domain[domain.index(")\n)", at) + 3 :]
        for new, before in BEFORE_0_4[1:]:
            grammar = grammar.replace(new, before)
        grammar = grammar[: grammar.index("action help {")]
    path = folder / f"{index}.tw-pddl"
    path.write_text(
        json.dumps(
            {
                "pddl_domain": domain,
                "grammar": grammar.replace("UNKNOWN GOAL.", scene.sentence),
                "pddl_problem": reference.problem_text(scene),
                "walkthrough": [],
                "solvable": True,
            }
        )
    )
    return path


def test_generated_games_play_as_in_textworld(tmp_path):
    reference.speed_up()
    transitions = sum(reference.compare_walk(game_file(tmp_path, i), STEPS, seed=1000 + i) for i in range(GAMES))
    assert transitions >= LEAST
