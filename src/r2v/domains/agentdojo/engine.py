"""AgentDojo's own engine (PyPI `agentdojo`): its environments, tools, attacks and checks, with states that can be forked.

Debenedetti et al., "AgentDojo: A Dynamic Environment to Evaluate Prompt Injection Attacks and Defenses for LLM Agents"
(NeurIPS 2024); https://agentdojo.spylab.ai. The package takes seconds to import, so it is imported where it is first used.
"""

from __future__ import annotations

import json
import pickle
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, NamedTuple

import yaml

from r2v.core.errors import SettingsError
from r2v.core.types import ToolCall

SUITES = ("workspace", "slack", "banking", "travel")
VERSION = "v1"
"""The benchmark's version of r2v's records: played again in `v1.1.1`, 31 clean episodes of 1,309 end otherwise, here 6."""
ATTACK = "important_instructions"
KEPT = 2_000
"""States of one cell that are remembered, of 50 kB at most; then it begins anew."""
VICTIM = "gpt-4o-2024-05-13"
"""Whom the planted text addresses where nobody else is named (`agentdojo.models.MODEL_NAMES`)."""


@cache
def _package() -> Any:
    """The package, with the modules that are used here. Raises SettingsError where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its model clients warn of their own dependencies
            import agentdojo
            import agentdojo.agent_pipeline.tool_execution
            import agentdojo.attacks.attack_registry
            import agentdojo.task_suite.load_suites
    except ModuleNotFoundError as error:
        raise SettingsError(f"{error.name} is not installed; pip install 'r2v[bench]'") from None
    return agentdojo


def models() -> Mapping[str, str]:
    """Model -> the name by which the attack addresses it."""
    found: Mapping[str, str] = _package().models.MODEL_NAMES
    return found


class Judged(NamedTuple):
    """What the engine says of a session that has ended."""

    success: bool
    injected: bool | None
    """Whether the planted task was carried out; None where nothing was planted."""


class _Named(NamedTuple):
    """What an attack wants to know of its victim."""

    name: str


class _Suite:
    """One of the engine's suites, with what is made of it once. For an attack it stands in for the engine's `TaskSuite`."""

    def __init__(self, name: str, version: str) -> None:
        try:
            self._engine = _package().task_suite.load_suites.get_suite(version, name)
        except KeyError:
            raise SettingsError(f"AgentDojo has no suite {name} in version {version}; it has {', '.join(SUITES)}") from None
        self.tools = self._engine.tools
        self.user_tasks: dict[str, Any] = self._engine.user_tasks
        self.injection_tasks: dict[str, Any] = self._engine.injection_tasks
        self.runtime = _package().functions_runtime.FunctionsRuntime(self.tools)
        self.utility, self.security = self._engine._check_user_task_utility, self._engine._check_injection_task_security
        self._defaults: dict[str, str] = self._engine.get_injection_vector_defaults()
        # Where it plants does not depend on whom it addresses, and takes a while to find out: one object for all victims.
        self._attack = _package().attacks.attack_registry.load_attack(ATTACK, self._engine, _Named(VICTIM))
        self._attack.task_suite = self

    def planted(self, user_task: Any, injection_task: Any, addressed: str) -> dict[str, str]:
        """The attack's text for each place that is read while the user task is solved."""
        self._attack.model_name = addressed
        found: dict[str, str] = self._attack.attack(user_task, injection_task)
        return found

    def load_and_inject_default_environment(self, injections: dict[str, str]) -> Any:
        """What the engine's method of this name gives, parsed by libyaml, which is five times as fast."""
        text = _package().task_suite.task_suite.read_suite_file(
            self._engine.name, "environment.yaml", self._engine.data_path
        )
        parsed = yaml.load(text.format(**self._defaults | injections), Loader=yaml.CSafeLoader)
        return self._engine.environment_type.model_validate(parsed)

    @cached_property
    def tools_text(self) -> str:
        """See `Cell.tools`."""
        described = [
            {"name": tool.name, "description": tool.description, "parameters": tool.parameters.model_json_schema()}
            for tool in self.tools
        ]
        return "\n".join(json.dumps(tool, ensure_ascii=False) for tool in described)

    @cached_property
    def clean(self) -> bytes:
        """The environment with nothing planted, pickled."""
        return _packed(self.load_and_inject_default_environment({}))


@cache
def suite_of(name: str, version: str = VERSION) -> _Suite:
    """Raises SettingsError where there is none, or the package is not installed."""
    return _Suite(name, version)


@dataclass(frozen=True)
class State:
    """A session after so many calls. It never changes: what it leads to is another state."""

    cell: Cell
    packed: bytes
    """The environment, pickled in this process; of read-only calls it is the bytes before them."""
    calls: tuple[ToolCall, ...] = ()
    """All that were made."""
    results: tuple[str, ...] = ()
    """What the latest ones led to, as the model reads it."""

    def after(self, calls: tuple[ToolCall, ...]) -> State:
        """The state after one message with these calls. It is found out once for the same cell and calls."""
        return self.cell.after(self, calls) if calls else self

    def one_by_one(self, calls: Iterable[ToolCall]) -> State:
        """The state after a message for each call."""
        state = self
        for call in calls:
            state = state.after((call,))
        return state


@dataclass(frozen=True)
class Cell:
    """A user task, clean or with an injection task planted by `ATTACK`, and all states that were reached in it."""

    suite: str
    user_task: str
    injection_task: str | None = None
    addressed: str = ""
    """Whom the planted text addresses, in the engine's words."""
    version: str = VERSION
    _states: dict[tuple[ToolCall, ...], State] = field(default_factory=dict, compare=False, repr=False)
    _judged: dict[Any, Judged] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def _suite(self) -> _Suite:
        return suite_of(self.suite, self.version)

    @cached_property
    def _task(self) -> Any:
        return self._suite.user_tasks[self.user_task]

    @cached_property
    def _injection(self) -> Any:
        return None if self.injection_task is None else self._suite.injection_tasks[self.injection_task]

    @cached_property
    def _reads_calls(self) -> bool:
        """Whether a check looks at the calls, not at what they led to alone."""
        base, task, injection = _package().base_tasks, type(self._task), type(self._injection)
        own = task.utility_from_traces is not base.BaseUserTask.utility_from_traces
        if self._injection is None:
            return own
        return own or injection.security_from_traces is not base.BaseInjectionTask.security_from_traces

    @property
    def prompt(self) -> str:
        """What the user asks."""
        return str(self._task.PROMPT)

    @property
    def tools(self) -> str:
        """A line of JSON for each tool: name, what it is for, schema of its arguments."""
        return self._suite.tools_text

    @cached_property
    def start(self) -> State:
        if self._injection is None:
            environment = pickle.loads(self._suite.clean)
        else:
            planted = self._suite.planted(self._task, self._injection, self.addressed)
            environment = self._suite.load_and_inject_default_environment(planted)
        return State(self, _packed(self._task.init_environment(environment)))

    @cached_property
    def solution(self) -> tuple[ToolCall, ...]:
        """The calls with which the benchmark's authors solve the task, planned in its first state."""
        planned = self._task.ground_truth(pickle.loads(self.start.packed))
        return tuple(ToolCall(call.function, json.dumps(dict(call.args), ensure_ascii=False)) for call in planned)

    @property
    def answer(self) -> str:
        """The final answer that goes with `solution`."""
        return str(self._task.GROUND_TRUTH_OUTPUT)

    def plan(self, state: State) -> tuple[ToolCall, ...]:
        """What somebody who knows the solution does from here on, before giving `answer`.

        These are the calls of `solution` that nobody has made. Where the task fails with them because the first ones are
        done already in other words (a message sent twice), they are left out, as few as will do.
        """
        missing = self.missing(state)
        for first in range(len(missing) + 1):
            if self.judge(state.one_by_one(missing[first:]), self.answer).success:
                return missing[first:]
        return missing

    def missing(self, state: State) -> tuple[ToolCall, ...]:
        """The calls of `solution` that nobody has made yet; arguments that a call leaves out count as their defaults."""
        made = Counter(map(self.canonical, state.calls))
        left = []
        for call in self.solution:
            key = self.canonical(call)
            if made[key]:
                made[key] -= 1
            else:
                left.append(call)
        return tuple(left)

    def after(self, state: State, calls: tuple[ToolCall, ...]) -> State:
        """See `State.after`."""
        made = (*state.calls, *calls)
        found = self._states.get(made)
        if found is None or len(found.results) != len(calls):  # the same calls may come in fewer or more messages
            environment = pickle.loads(state.packed)
            message = {"role": "assistant", "content": None, "tool_calls": [_function_call(call) for call in calls]}
            executor = _package().agent_pipeline.tool_execution.ToolsExecutor(_text)
            _, _, environment, (_, *results), _ = executor.query("", self._suite.runtime, environment, [message])
            unchanged = _alike(pickle.loads(state.packed), environment)
            texts = tuple(result["error"] or _said(result["content"]) for result in results)
            found = State(self, state.packed if unchanged else _packed(environment), made, texts)
            if len(self._states) >= KEPT:
                self._states.clear()
                self._judged.clear()
            self._states[made] = found
        return found

    def judge(self, state: State, answer: str | None) -> Judged:
        """The engine's checks of the user task and of the injection task.

        Args:
            state: after all calls.
            answer: the last message; None where the session broke off without one: then the user task is not solved.
        """
        key = state.packed, answer, state.calls if self._reads_calls else ()
        if key not in self._judged:
            before = pickle.loads(self.start.packed)
            ended = before, _shared(before, pickle.loads(state.packed)), [_function_call(call) for call in state.calls]
            output = [_package().types.text_content_block_from_string(answer or "")]
            suite, injection = self._suite, self._injection
            success = answer is not None and bool(suite.utility(self._task, output, *ended))
            injected = None if injection is None else bool(suite.security(injection, output, *ended))
            self._judged[key] = Judged(success, injected)
        return self._judged[key]

    def canonical(self, call: ToolCall) -> tuple[str, str]:
        """Equal for calls that do the same: with defaults filled in, arguments in the order of their names."""
        function, arguments = self._suite.runtime.functions.get(call.name), _function_call(call).args
        if function is not None:
            with suppress(ValueError):  # a call that the engine refuses equals nothing but itself
                arguments = function.parameters.model_validate(arguments).model_dump()
        return call.name, json.dumps(arguments, sort_keys=True, default=str)


@cache
def cell_of(suite: str, user_task: str, injection_task: str | None = None, victim: str = VICTIM) -> Cell:
    """A cell that all who ask for it share, and with it all states that any of them reached.

    Args:
        suite: one of `SUITES`.
        user_task: its name in the engine.
        injection_task: what `ATTACK` plants; None: nothing.
        victim: the model that the planted text addresses, by its name in the engine; those of one family share a name there.
    """
    addressed = "" if injection_task is None else models()[victim]
    return _shared_cell(suite, user_task, injection_task, addressed)


@cache
def _shared_cell(suite: str, user_task: str, injection_task: str | None, addressed: str) -> Cell:
    return Cell(suite, user_task, injection_task, addressed)


def _function_call(call: ToolCall) -> Any:
    """Raises ValueError where the arguments are no JSON object."""
    arguments = json.loads(call.arguments or "{}")
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of {call.name} are no JSON object")
    return _package().functions_runtime.FunctionCall(function=call.name, args=arguments, id=call.id)


def _packed(environment: Any) -> bytes:
    """Pickled. What is packed here was made here: pickles of others are never read."""
    return pickle.dumps(environment, pickle.HIGHEST_PROTOCOL)


def _text(result: Any) -> str:
    """The engine's own form of results, YAML, by libyaml."""
    return str(
        _package().agent_pipeline.tool_execution.tool_result_to_str(result, lambda value: yaml.dump(value, Dumper=_Dumper))
    )


class _Dumper(yaml.CSafeDumper):
    """Writes words of a fixed set (`agentdojo.strenum.StrEnum`) as plain text, as the engine does."""


_Dumper.add_multi_representer(str, lambda dumper, word: dumper.represent_str(str(word)))


def _said(content: Iterable[Any]) -> str:
    return "\n".join(block["content"] or "" for block in content)


def _alike(one: Any, other: Any) -> bool:
    """Whether two parts of environments are equal, the types of their numbers and words included."""
    # Equal things may be pickled differently (the order of sets), and 1 equals 1.0; repr() takes the longest.
    return type(one) is type(other) and one == other and (_packed(one) == _packed(other) or repr(one) == repr(other))


def _shared(before: Any, after: Any) -> Any:
    """`after`, with the very objects of `before` where both are alike: comparing them (DeepDiff) then takes no time."""
    if _alike(before, after):
        return before
    if isinstance(after, dict) and isinstance(before, dict):
        return {key: _shared(before.get(key), value) for key, value in after.items()}
    if hasattr(after, "model_fields_set") and type(before) is type(after):
        for name, value in vars(after).items():
            vars(after)[name] = _shared(getattr(before, name), value)
    return after
