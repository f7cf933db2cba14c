"""Installs the agent programs of versions.json: `install.py FOLDER [--latest]`. Does nothing where they are there."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
UV = Path(sys.executable).with_name("uv")


def npm(folder: Path, packages: dict[str, str], before: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text(json.dumps({"private": True, "dependencies": packages}))
    program(["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", *before], folder)


def pip(folder: Path, packages: dict[str, str], before: list[str]) -> None:
    program([str(UV), "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)])
    wanted = [name if version == "*" else f"{name}=={version}" for name, version in packages.items()]
    program([str(UV), "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *before, *wanted])


def program(command: list[str], folder: Path | None = None) -> None:
    """Raises SystemExit, with what it wrote, where it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def wanted(text: str, latest: bool) -> tuple[dict[str, dict[str, str]], str]:
    """The versions of each group, and the day that pins what the programs need, too."""
    pins = json.loads(text)
    day = pins.pop("before")
    if latest:
        # npm takes * as the newest that says it runs on this Node; `latest` is what its users get who name no version.
        pins = {group: dict.fromkeys(packages, "latest" if group == "npm" else "*") for group, packages in pins.items()}
    return pins, day


def main(folder: Path, latest: bool) -> None:
    text = (HERE / "versions.json").read_text()
    stamp = folder / "versions.json"
    if not latest and stamp.exists() and stamp.read_text() == text:
        return
    pins, day = wanted(text, latest)
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        work = [
            pool.submit(npm if group == "npm" else pip, folder / group, packages,
                        [] if latest else [f"--before={day}" if group == "npm" else f"--exclude-newer={day}"])
            for group, packages in pins.items()
        ]  # fmt: skip
        for each in work:
            each.result()
    stamp.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--latest" in sys.argv[2:])
