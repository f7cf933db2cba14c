"""What an Anthropic teacher's input costs in a session of Claude Code through the gateway, against the same session direct.

`python benchmarks/teacher_input_cost.py` plays a session as Claude Code sends it (system prompt with cache marks, and a
mark that moves to the newest block) against a made-up Messages server that keeps prompts as Anthropic does: what stands
before a mark is written at 1.25 times the price of input, and read at 0.1 times where it comes again. Played are: every step
direct; every step by the gateway's teacher; every second, third, fifth step by the teacher, the others by the SLM. A step
that the teacher missed is written with the next one that it answers: that costs more than direct, and the session less.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from servers import KEY, Model, gateway, running, settings

STEPS, SYSTEM, TOOLS, STEP = 40, 12_000, 30_000, 2_400
"""Steps; characters of the system prompt, of the tools, and of one step's result: 4 characters a token."""
MARK = {"cache_control": {"type": "ephemeral"}}


def request(t: int) -> dict:
    """The request of step t."""
    tool = {"name": "Bash", "description": "x" * TOOLS, "input_schema": {"type": "object", "properties": {}}}
    messages: list[dict] = [{"role": "user", "content": [{"type": "text", "text": "The test fails. Fix it."}]}]
    for i in range(t):
        use = {"type": "tool_use", "id": f"toolu_{i}", "name": "Bash", "input": {"command": f"step {i}"}}
        result = {"type": "tool_result", "tool_use_id": f"toolu_{i}", "content": f"{i} " + "y" * STEP}
        messages += [{"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    messages[-1]["content"][-1] |= MARK
    system = [{"type": "text", "text": "s" * SYSTEM, **MARK}]
    thinking = {"thinking": {"type": "adaptive"}, "output_config": {"effort": "medium"}}
    return {
        "model": "claude-opus-5-5",
        "max_tokens": 500,
        "system": system,
        "tools": [tool],
        "messages": messages,
        **thinking,
    }


class Cache:
    """The prompts that the server keeps."""

    def __init__(self) -> None:
        self.kept: set[str] = set()
        self.costs: list[float] = []
        """Of the input of each request, in tokens of fresh input."""

    def answer(self, body: dict) -> dict:
        blocks = [*body.get("tools", []), *body.get("system", [])]
        blocks += [block for message in body["messages"] for block in message["content"]]
        texts = [json.dumps({k: v for k, v in block.items() if k != "cache_control"}) for block in blocks]
        prefixes = ["".join(texts[: i + 1]) for i in range(len(texts))]
        marked = [prefix for prefix, block in zip(prefixes, blocks, strict=True) if "cache_control" in block]
        read = max((len(prefix) for prefix in prefixes if prefix in self.kept), default=0)
        written = max((len(prefix) for prefix in marked), default=0) - read
        self.kept |= set(marked)
        fresh = len(prefixes[-1]) - read - max(0, written)
        self.costs.append((fresh + 1.25 * max(0, written) + 0.1 * read) / 4)
        counts = {"input_tokens": fresh // 4, "cache_read_input_tokens": read // 4, "output_tokens": 20}
        usage = counts | {"cache_creation_input_tokens": max(0, written) // 4}
        content = [{"type": "text", "text": "done"}]
        head = {"id": "m", "type": "message", "role": "assistant", "model": body["model"], "stop_sequence": None}
        return {**head, "content": content, "stop_reason": "end_turn", "usage": usage}


def play(every: int | None) -> dict[int, float]:
    """Cost of the teacher's input at each step that it answers; None: without the gateway."""
    cache, teacher, small = Cache(), Model("teacher-1"), Model("small-1")
    teacher.reply = cache.answer
    steps = [t for t in range(STEPS) if every is None or t % every == 0]
    with running(teacher.app()) as there, running(small.app()) as here, tempfile.TemporaryDirectory() as folder:
        headers = {"x-api-key": KEY, "anthropic-version": "2023-06-01", "x-session-id": "s"}
        if every is None:
            for t in steps:
                httpx.post(f"{there}/v1/messages", json=request(t), headers=headers).raise_for_status()
        else:
            with gateway(settings(here, there, Path(folder) / "ledger.db", teacher_provider="anthropic")) as (url, _):
                for t in range(STEPS):
                    arm = {"x-r2v-arm": "teacher" if t in steps else "slm"}
                    httpx.post(f"{url}/v1/messages", json=request(t), headers=headers | arm).raise_for_status()
    return dict(zip(steps, cache.costs, strict=True))


def main() -> None:
    os.environ["R2V_API_KEY"] = KEY
    direct = play(None)
    print(f"{STEPS} steps direct: {sum(direct.values()):.0f} tokens' worth of input")
    print(f"{'teacher at every':>17}{'a step of its, x direct':>25}{'session, x direct':>19}")
    for every in (1, 2, 3, 5):
        found = play(every)
        ratio = sum(found.values()) / sum(direct[t] for t in found)
        print(f"{every:17}{ratio:25.3f}{sum(found.values()) / sum(direct.values()):19.3f}", flush=True)


if __name__ == "__main__":
    main()
