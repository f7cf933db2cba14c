"""Shared fixtures: small real parts, made once."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from r2v.domains.household.scenes import SceneSettings, make_tasks

SMALL = SceneSettings(house="small", receptacles=(5, 8), objects=(6, 11))


@pytest.fixture(scope="session")
def small_scenes() -> SceneSettings:
    return SMALL


@pytest.fixture(scope="session")
def small_tasks():
    return make_tasks(3, 60, SMALL)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of recorded real data; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("R2V_SHARED", Path(__file__).parents[2] / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (set R2V_SHARED)")
    return folder


@pytest.fixture(scope="session")
def games(shared_data, tmp_path_factory) -> Path:
    """The 340 recorded ALFWorld games."""
    folder = tmp_path_factory.mktemp("alfworld")
    with tarfile.open(shared_data / "alfworld" / "games_train_seen.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def pytest_collection_modifyitems(items):
    """The longest file first: where files are shared out to two processes, one would wait for it at the end."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")
