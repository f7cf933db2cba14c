"""The SLM on a GPU: does it draw what it draws on the CPU, and how much faster is it trained and played?

    python benchmarks/slm_on_gpu.py                        # a model of 0.4 billion random weights
    python benchmarks/slm_on_gpu.py --hidden 64 --layers 3 # the quickstart's size

The teacher's episodes of generated household tasks are cloned for some steps; then the cloned model proposes K candidates at
each step of all episodes at once. Without a GPU only the CPU's rows are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from r2v.clients.local.policy import LocalPolicy
from r2v.core.agent import Solo
from r2v.core.types import Candidate, Episode
from r2v.domains.household import DOMAIN
from r2v.domains.household.env import Household
from r2v.domains.household.expert import HouseholdExpert
from r2v.domains.household.scenes import SceneSettings, generate, make_tasks
from r2v.evaluation.closed_loop import cases, play
from r2v.learning.clone import clone
from r2v.learning.models import new_model, save_model
from r2v.learning.settings import CloneSettings, ModelSettings
from r2v.learning.tokenizer import train_tokenizer

SCENES, HORIZON = SceneSettings(), 50
Drawn = dict[tuple[int, int], tuple[Candidate, ...]]
"""By (episode, step)."""


def expert_episodes(count: int) -> list[Episode]:
    tasks = make_tasks(0, count, SCENES)
    agent = Solo(HouseholdExpert(), "teacher")

    def make(task, z):
        return Household(generate(task.id, task.family, SCENES).world()), "none"

    return asyncio.run(play(agent, cases(tasks, [0]), make, horizon=HORIZON))


async def propose(policy: LocalPolicy, episodes: Sequence[Episode], k: int, steps: int) -> Drawn:
    """Step by step in all episodes at once, as a run does it."""
    contexts = [episode.contexts(HORIZON) for episode in episodes]
    drawn: Drawn = {}
    for t in range(steps):
        live = [i for i, known in enumerate(contexts) if t < len(known)]
        found = await asyncio.gather(*(policy.propose(contexts[i][t], k, seed=1000 * i + t) for i in live))
        drawn |= {(i, t): candidates for i, candidates in zip(live, found, strict=True)}
    return drawn


def compare(drawn: Drawn, reference: Drawn) -> tuple[float, float]:
    """(share of candidates that are the same actions, largest difference of their log-probabilities)."""
    pairs = [pair for at in drawn for pair in zip(drawn[at], reference[at], strict=True)]
    apart = [abs((a.logp or 0) - (b.logp or 0)) for a, b in pairs if a.action == b.action]
    return len(apart) / len(pairs), max(apart, default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--train-steps", type=int, default=20)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=6, help="of each episode, on which candidates are drawn")
    options = parser.parse_args()
    episodes = expert_episodes(options.episodes)
    texts = [text for e in episodes for c in e.contexts(HORIZON) for text in (e.goal, *c.observations)]
    shape = ModelSettings(
        hidden_size=options.hidden,
        layers=options.layers,
        heads=max(4, options.hidden // 64),
        intermediate_size=3 * options.hidden,
        initializer_range=options.hidden**-0.5,
    )
    training = CloneSettings(
        steps=options.train_steps, batch_tokens=options.batch_tokens, learning_rate=1e-4, warmup_steps=5
    )
    places = [("cpu", "float32")]
    if torch.cuda.is_available():
        places += [("cuda", "float32"), ("cuda", "bfloat16")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = train_tokenizer(texts, pieces=DOMAIN.pieces, dropped=DOMAIN.dropped)
        model = new_model(shape, tokenizer, seed=0)
        print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million weights, {torch.get_num_threads()} threads")
        save_model(model, tokenizer, folder / "start")
        reference: Drawn = {}
        for device, precision in places:
            settings = shape.but(path=str(folder / "start"), device=device, precision=precision)
            out = folder / f"{device}-{precision}"
            out.mkdir()
            start = time.perf_counter()
            report = clone(episodes, settings, training, out / "model", checkpoints=out, seed=0, progress=lambda *_: None)
            trained = time.perf_counter() - start
            cloned = folder / "cpu-float32" / "model"
            for warm_up in (True, False):
                policy = LocalPolicy.load(cloned, device=device, precision=precision)
                start = time.perf_counter()
                drawn = asyncio.run(propose(policy, episodes[:8] if warm_up else episodes, 5, options.steps))
                played = time.perf_counter() - start
            reference = reference or drawn
            same, apart = compare(drawn, reference)
            print(
                f"{device} {precision}: loss {report.final_loss:.3f}, {report.tokens / trained:.0f} tokens a second; "
                f"{len(drawn) / played:.0f} steps of 5 candidates a second, {same:.4f} of these as on the CPU, their "
                f"log-probabilities apart by {apart:.2g} at most"
            )


if __name__ == "__main__":
    main()
