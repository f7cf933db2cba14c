"""python ray_play.py FOLDER ADDRESS: an SLM plays in local processes and on a cluster, with files in FOLDER/KIND."""

import sys
from pathlib import Path

from r2v.learning.clone import clone
from r2v.learning.settings import CloneSettings
from r2v.pipeline.agents import CLEAN, AgentSpec
from r2v.pipeline.play import play_episodes
from r2v.pipeline.run_folder import RunFolder
from r2v.pipeline.runner import StageContext, prepare
from r2v.pipeline.settings import RunSettings
from r2v.runtime.executor import ExecutorChoice
from r2v.runtime.settings import load
from r2v.runtime.store import write_episodes

if __name__ == "__main__":
    root = Path(sys.argv[1])
    settings = load(root / "tiny.yaml", RunSettings)
    tasks = settings.domain.tasks(settings.environment, 42, settings.seed)[:42]  # two jobs
    for choice in (ExecutorChoice(), ExecutorChoice("ray", sys.argv[2])):
        out = root / choice.kind
        prepare(out, "test")
        with choice.started(2, out) as executor:
            ctx = StageContext(settings, RunFolder(root), out, executor, lambda *_: None)
            taught = play_episodes(ctx, AgentSpec("teacher"), tasks, [CLEAN], "teacher")
            if not (root / "model").exists():
                clone(taught, settings.slm.trained, CloneSettings(steps=3, batch_tokens=1024), root / "model")
            played = play_episodes(ctx, AgentSpec("routed", Path("model")), tasks, [21], "slm")
        write_episodes(out / "episodes.parquet", [*taught, *played])
