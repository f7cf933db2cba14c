"""A study of six jobs whose third waits for a file: python ray_jobs.py FOLDER [ADDRESS] prints what they made."""

import os
import signal
import sys
import time
from pathlib import Path

from rich.console import Console

from r2v.core.errors import R2VError, StageError
from r2v.pipeline.runner import study
from r2v.runtime.executor import ExecutorChoice


def job(asked: tuple[str, int]) -> int:
    folder, number = Path(asked[0]), asked[1]
    with (folder / "begun").open("a") as file:
        file.write(f"{number} {os.getpid()}\n")
    while number == 2 and not (folder / "go").exists():
        time.sleep(0.05)
    if (folder / "fail").exists():
        raise StageError(f"job {number} has no input")
    return number * number


if __name__ == "__main__":
    from ray_jobs import job as named  # by the name that workers know

    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests may ignore it
    root, address = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
    (root / "settings.yaml").write_text("version: 1\n")
    try:
        with study(
            root, root / "out", "squares", Console(quiet=True), ExecutorChoice("ray", address), fingerprint="squares"
        ) as ctx:
            print(ctx.map(named, [(str(root), i) for i in range(6)], "squares"))
    except R2VError as error:
        print(f"{type(error).__name__}: {error}")
