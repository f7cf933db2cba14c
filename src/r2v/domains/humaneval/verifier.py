"""The code verifier: does this step bring a right solution nearer? Local evidence, no oracle (method, section 4).

    .35 it runs: loads and passes the examples of the docstring, each within 5 s (all pass -> .85)
    .20 it defines the required function      .15 control flow      .10 a meaningful return      .10 imports      .10 length
    x (1 - .8 hacking): lookup tables, bare literal returns, swallowed exceptions      x .85 near an injected instruction
    - repetition (.10 to .25), of an attempt that failed (.05 to .20)

`test` and `submit` are judged by the code they are about, the one written last: 60/40 with the newest report of its tests,
if that has arrived. The smoke test is cached by its text.
"""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import Sequence
from functools import lru_cache

from r2v.core.types import Action, Context
from r2v.domains.humaneval.chat_format import PROGRAM
from r2v.runtime.sandbox.examples import Example, examples
from r2v.runtime.sandbox.try_solution import attempt
from r2v.verifiers.evidence import INJECTED, gives_orders

SMOKE_LIMIT_S = 5.0
SIGNATURE = re.compile(r"^def (\w+)\(", re.MULTILINE)
TESTED = re.compile(r"(\d+) of (\d+) examples pass")
REPORT = re.compile(rf"{TESTED.pattern}|FAILED|The code loads")
NO_CODE, UNTESTED_SUBMIT, TEST_AGAIN = 0.05, 0.5, 0.3
"""Score of a command that no code stands behind; factors of submitting code whose report is missing, of testing it twice."""


class CodeVerifier:
    """A `Verifier` for `write_code`, `test` and `submit`."""

    async def score(self, context: Context, actions: Sequence[Action]) -> tuple[float, ...]:
        known: dict[str, float] = {}
        for action in actions:
            if action.text not in known:
                known[action.text] = await asyncio.to_thread(score_action, context, action.text)
        return tuple(known[action.text] for action in actions)


def score_action(context: Context, text: str) -> float:
    done = [action.text for action in context.actions]
    command = text.strip().split("\n", 1)[0].strip()
    written = [t for t, earlier in enumerate(done) if earlier.startswith("write_code")]
    if command == "write_code":
        code = code_of(text)
        if code is None:
            return NO_CODE
        score = score_code(context.goal, code) - _repetition(text, done, context.observations)
    elif command in ("test", "submit") and written and (code := code_of(done[written[-1]])) is not None:
        score = score_code(context.goal, code)
        reports = [text for text in context.observations[written[-1] + 1 :] if REPORT.search(text)]
        if reports:
            score = _blend(score, reports[-1])
        if command == "submit":
            score *= 1.0 if reports else 0.5 + UNTESTED_SUBMIT * score
        else:
            score = TEST_AGAIN * score if reports else 0.5 + 0.3 * score
    else:
        return NO_CODE
    return min(1.0, max(0.0, score)) * (INJECTED if gives_orders(context.observations[-1]) else 1.0)


def code_of(text: str) -> str | None:
    """The program in an action."""
    block = PROGRAM.search(text)
    return block[1] if block is not None else None


def score_code(goal: str, code: str) -> float:
    """Score of the program by itself; `goal` has the signature and docstring."""
    names = SIGNATURE.findall(goal)
    wanted = names[-1] if names else ""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError):
        return 0.05
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    function = functions.get(wanted)
    body = ast.walk(function) if function is not None else ast.walk(tree)
    nodes = list(body)
    flow = any(isinstance(n, ast.For | ast.While | ast.If | ast.IfExp | ast.comprehension | ast.Call) for n in nodes)
    returns = [n.value for n in nodes if isinstance(n, ast.Return)]
    meaningful = any(value is not None and not isinstance(value, ast.Constant) for value in returns)
    parts = (
        (0.35, smoke(goal, wanted, code)),
        (0.20, float(function is not None)),
        (0.15, float(flow)),
        (0.10, float(meaningful)),
        (0.10, float(_imports_fit(tree))),
        (0.10, float(1 <= len(code.splitlines()) <= 120)),
    )
    return sum(weight * value for weight, value in parts) * (1 - 0.8 * _hacking(nodes, returns))


@lru_cache(maxsize=4096)
def smoke(goal: str, entry_point: str, code: str) -> float:
    """.85 if all examples pass, less for some; .5 if it loads and there are none; 0 if it does not load."""
    shown: tuple[Example, ...] = examples(goal, entry_point)
    trial = attempt(code, entry_point, shown, limit_s=SMOKE_LIMIT_S)
    if not shown:
        return 0.5 if trial.ok else 0.0
    return 0.85 if trial.ok else 0.45 * trial.passed / trial.total


def _imports_fit(tree: ast.AST) -> bool:
    """What is used of the usual modules is imported."""
    bound = {
        alias.asname or alias.name.split(".")[0]
        for n in ast.walk(tree)
        if isinstance(n, ast.Import | ast.ImportFrom)
        for alias in n.names
    }
    used = {n.value.id for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
    return not (used & {"math", "re", "collections", "itertools", "functools", "string", "heapq", "hashlib", "np"}) - bound


def _hacking(nodes: Sequence[ast.AST], returns: Sequence[ast.expr | None]) -> float:
    """How much it looks like answers instead of a method, 0 to 1."""
    literal = bool(returns) and all(value is None or isinstance(value, ast.Constant) for value in returns)
    branches = sum(isinstance(n, ast.If) for n in nodes)
    table = any(isinstance(n, ast.Dict) and len(n.keys) > 8 for n in nodes) or (literal and branches > 4)
    swallowed = any(isinstance(n, ast.ExceptHandler) and all(isinstance(s, ast.Pass) for s in n.body) for n in nodes)
    return min(1.0, 0.6 * (literal and branches == 0) + 0.5 * table + 0.3 * swallowed)


def _repetition(text: str, done: Sequence[str], observations: Sequence[str]) -> float:
    """.10 for code written once before, .25 for more; .05 to .20 more where the tests of it failed."""
    before = [t for t, earlier in enumerate(done) if earlier == text]
    if not before:
        return 0.0
    failed = sum("FAILED" in observation for t in before for observation in observations[t + 1 : t + 3])
    return (0.10 if len(before) == 1 else 0.25) + min(0.20, 0.05 * failed)


def _blend(score: float, observation: str) -> float:
    """60/40 with the visible test result."""
    counts = TESTED.search(observation)
    if counts is None or int(counts[2]) == 0:
        return score * (0.6 if "FAILED" in observation else 1.0)
    return 0.6 * score + 0.4 * int(counts[1]) / int(counts[2])
