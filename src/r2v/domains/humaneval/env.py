"""One HumanEval problem as an episode: write code, see it run on the docstring's examples, submit it to the hidden tests.

write_code      followed by a block ```python ... ```: saves the program and runs the examples in the docstring
test            runs the saved program on the examples again
submit          ends the episode; the hidden tests decide

When the steps have run out, the program that was saved last is submitted.
"""

from __future__ import annotations

import asyncio
import hashlib

from r2v.core.types import Action, Observation, Task
from r2v.domains.humaneval.chat_format import PROGRAM
from r2v.domains.humaneval.check import check
from r2v.domains.humaneval.problems import Problem
from r2v.runtime.sandbox.examples import examples
from r2v.runtime.sandbox.try_solution import attempt

TEST_LIMIT_S = 5.0
USAGE = "Unknown command. Use write_code with a ```python block, test, or submit."


def task_of(problem: Problem) -> Task:
    return Task(problem.id, "humaneval", "humaneval", goal_of(problem))


def goal_of(problem: Problem) -> str:
    return f"Write the Python function {problem.entry_point}.\n\n{problem.prompt.strip()}"


class CodeTask:
    """An episode (`r2v.core.protocols.Branching`)."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.goal = goal_of(problem)
        self._code = ""
        self._done = False
        self._examples = examples(problem.prompt, problem.entry_point)

    async def start(self) -> Observation:
        count = len(self._examples)
        tests = f"The docstring has {count} example{'s' if count != 1 else ''} to test on."
        return self._observe(tests if count else "The docstring has no examples; test only loads the code.")

    async def step(self, action: Action) -> Observation:
        if self._done:
            raise RuntimeError("the episode is over; build a new environment")
        command, _, rest = action.text.strip().partition("\n")
        command = command.strip()
        if command == "write_code":
            return self._observe(await asyncio.to_thread(self._write, rest))
        if command == "test" and not rest:
            return self._observe(await asyncio.to_thread(self._test))
        if command == "submit" and not rest:
            return await self._submit()
        return self._observe(USAGE)

    async def out_of_steps(self) -> Observation:
        return await self._submit()

    async def close(self) -> None:
        """Nothing to free: every sandboxed process ends with its run."""

    def clone(self) -> CodeTask:
        """An independent copy of the present."""
        copy = CodeTask.__new__(CodeTask)
        copy.__dict__.update(self.__dict__)
        return copy

    async def _submit(self) -> Observation:
        verdict = await asyncio.to_thread(check, self.problem, self._code)
        self._done = True
        text = "All hidden tests pass." if verdict.passed else "The hidden tests fail."
        return Observation(text, True, verdict.passed, float(verdict.passed), self._latent(), ())

    def _write(self, rest: str) -> str:
        block = PROGRAM.search(rest)
        if block is None:
            return "No code found: put the whole program into a ```python block after write_code."
        self._code = block[1].rstrip() + "\n"
        try:
            compile(self._code, "solution.py", "exec")
        except (SyntaxError, ValueError) as error:  # ValueError: null bytes
            where = f" in line {error.lineno}" if isinstance(error, SyntaxError) else ""
            return f"Saved, but it is no valid Python: {getattr(error, 'msg', error)}{where}."
        lines = self._code.count("\n")
        return f"Saved {lines} line{'s' if lines != 1 else ''}. {self._test()}"

    def _test(self) -> str:
        if not self._code:
            return "Nothing to test: write_code first."
        trial = attempt(self._code, self.problem.entry_point, self._examples, limit_s=TEST_LIMIT_S)
        if trial.total == 0:
            return "The code loads." if trial.ok else f"FAILED {trial.failures[0]}"
        lines = [f"{trial.passed} of {trial.total} examples pass.", *(f"FAILED {failure}" for failure in trial.failures)]
        return "\n".join(lines)

    def _observe(self, text: str) -> Observation:
        return Observation(text, False, None, None, self._latent(), ())

    def _latent(self) -> str:
        state = f"{self.problem.key}\x1f{self._code}\x1f{self._done}"
        return hashlib.blake2b(state.encode(errors="replace"), digest_size=16).hexdigest()
